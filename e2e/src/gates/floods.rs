//! G2: floods of HTTP/2 frames that cost a client nothing, and windows that stay shut. Each flood ends in GOAWAY soon, a
//! shut window frees its stream in time, memory stays, and other connections do not notice. The frames are written here, byte
//! by byte, over TCP with prior knowledge.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use cxmpute_wire::MicroCredits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::ground::until;
use crate::paths::{Path, settled};
use crate::settings::Setting;
use crate::verdict::Verdict;
use crate::world::{Account, World};

/// The assertion that catches a connection without limits.
pub const CAUGHT_BY: &str = "every flood ends in GOAWAY";

/// Abusive frames after which GOAWAY is due, and what is sent to see it.
const DUE: u32 = 200;
const SENT: u32 = 2 * DUE;

/// How long GOAWAY may take after the last frame, at four times what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(8);

/// What the process may grow by while all floods run.
const GROWTH: u64 = 20 << 20;

/// The assertion that catches streams that wait for their client's window for ever.
pub const SHUT_CAUGHT_BY: &str = "a stream whose window stays shut is freed";

/// The world's time for a client that takes nothing, and for an idle connection; the product's are 30 s and 60 s.
const TIMER: Duration = Duration::from_secs(1);

/// Deadlines are asserted at four times their value.
const FREED_WITHIN: Duration = Duration::from_secs(4);

/// Streams of one connection whose window stays shut.
const SHUT: u32 = 20;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

#[derive(Clone, Copy, Debug)]
enum Flood {
    RapidReset,
    Continuation,
    EmptyData,
    Settings,
    Ping,
    Streams,
}

const FLOODS: [Flood; 6] =
    [Flood::RapidReset, Flood::Continuation, Flood::EmptyData, Flood::Settings, Flood::Ping, Flood::Streams];

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("G2");
    let world = World::plan(setting).start().await?;
    let account = world.account("neighbour@example.org", MicroCredits(1_000_000)).await?;
    // The suite's own copy of the API's contract is made with the first answer that it checks; it is not the gateway's.
    account.client.call("GET", "/v1/models", None).await?;
    let before = resident();
    for flood in FLOODS {
        let mut floods = JoinSet::new();
        for _ in 0..setting.counts.pick(4, 40) {
            verdict.count += 1;
            floods.spawn(run(world.address, flood));
        }
        let start = Instant::now();
        let reply = account.client.call("GET", "/v1/models", None).await?;
        verdict.check(
            "other connections are unaffected",
            reply.status == 200 && start.elapsed() < PATIENCE,
            format!("{flood:?}: {} after {:?}", reply.status, start.elapsed()),
        );
        while let Some(done) = floods.join_next().await {
            let ended = done?;
            verdict.check(CAUGHT_BY, ended.is_ok(), format!("{flood:?}: {ended:?}"));
        }
    }
    let grown = resident().saturating_sub(before);
    verdict.check("memory grows by at most 20 MiB", grown <= GROWTH, format!("{grown} bytes"));
    world.finish(&mut verdict).await?;
    shut_windows(setting, &mut verdict).await?;
    Ok(verdict)
}

/// Clients that ask for whole and streamed answers and let none of them in, or one byte of each.
async fn shut_windows(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).slow_client_timers(TIMER).start().await?;
    let node = world.stand_in("node").await?;
    let account = world.account("shut@example.org", MicroCredits(1_000_000_000)).await?;
    // The document is made when it is first asked for, which takes its time.
    account.client.call("GET", "/openapi.json", None).await?;
    let (before, mut spans) = (resident(), Vec::new());
    for window in [0_u32, 1] {
        for _ in 0..setting.counts.pick(2, 20) {
            verdict.count += 1;
            let seen = node.notes().len();
            let shut = shut(&world, &account, window).await;
            // A window of one byte takes whole answers off our hands; they wait inside HTTP/2 for the connection's end.
            let due = if window == 0 { SHUT as usize } else { SHUT as usize / 2 };
            verdict.check(
                SHUT_CAUGHT_BY,
                shut.resets.len() >= due && shut.resets.iter().all(|after| *after <= FREED_WITHIN),
                format!(
                    "window {window}: {} of {due} after {:?}",
                    shut.resets.len(),
                    shut.resets.iter().max()
                ),
            );
            verdict.check(
                "a connection without streams is closed when it was idle too long",
                shut.closed.is_some_and(|after| after <= FREED_WITHIN * 2),
                format!("window {window}: {:?}", shut.closed),
            );
            spans.extend(shut.resets);
            if setting.bad.is_some() {
                continue;
            }
            let notes = node.notes().split_off(seen);
            verdict.check("the streams reached a node", notes.len() == SHUT as usize / 2, notes.len());
            for note in notes {
                let stopped = until("the node to be stopped", FREED_WITHIN, async || {
                    let note = node.notes().into_iter().find(|other| other.request_id == note.request_id);
                    Ok(note.and_then(|note| note.cancelled))
                })
                .await;
                let row = settled(&account.client, &note.request_id, FREED_WITHIN).await?;
                let (prompt, billed) = (row["tokens_prompt"].as_u64(), row["tokens_completion"].as_u64());
                let right = stopped.is_ok()
                    && billed <= Some(TAKEN)
                    && world.cost_of(&row)?
                        == world.price(prompt.unwrap_or_default(), billed.unwrap_or_default())?;
                verdict.check("what no window let in is not billed", right, format!("{stopped:?}, {row}"));
            }
            let start = Instant::now();
            let reply = account.client.call("GET", "/v1/models", None).await?;
            let unaffected = reply.status == 200 && start.elapsed() < PATIENCE;
            verdict.check("other connections are unaffected", unaffected, format!("{:?}", start.elapsed()));
        }
    }
    verdict.measured("stream with a shut window", TIMER, spans);
    let grown = resident().saturating_sub(before);
    verdict.check("shut windows cost at most 20 MiB", grown <= GROWTH, format!("{grown} bytes"));
    world.finish(verdict).await
}

/// Events that HTTP/2 holds for a stream whose window is shut: one that was taken, and the one that waits behind it.
const TAKEN: u64 = 2;

/// What became of one connection.
struct Shut {
    /// When each stream was reset.
    resets: Vec<Duration>,
    /// When the connection was closed.
    closed: Option<Duration>,
}

async fn shut(world: &World, account: &Account, window: u32) -> Shut {
    let mut ended = Shut { resets: Vec::new(), closed: None };
    let key = format!("Bearer {}", account.client.key.as_deref().unwrap_or_default());
    let asked = Path::ChatStream.body("endless", 100_000).to_string();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat()));
    for number in 0..SHUT {
        let stream = 2 * number + 1;
        if number % 2 == 0 {
            let get = request("GET", "/openapi.json");
            bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, stream, &get));
            continue;
        }
        let mut post = request("POST", "/v1/chat/completions");
        for (name, value) in [("authorization", key.as_str()), ("content-type", "application/json")] {
            post.push(0);
            for text in [name, value] {
                post.push(u8::try_from(text.len()).unwrap_or_default());
                post.extend_from_slice(text.as_bytes());
            }
        }
        bytes.extend(frame(HEADERS, END_HEADERS, stream, &post));
        bytes.extend(frame(DATA, END_STREAM, stream, asked.as_bytes()));
    }
    let start = Instant::now();
    let Ok(mut stream) = TcpStream::connect(world.address).await else { return ended };
    if stream.write_all(&bytes).await.is_err() {
        return ended;
    }
    let (mut seen, mut at) = (Vec::new(), 0);
    while let Ok(read) = timeout((FREED_WITHIN * 2).saturating_sub(start.elapsed()), async {
        let mut came = Vec::with_capacity(16 * 1024);
        stream.read_buf(&mut came).await.map(|_| came)
    })
    .await
    {
        let came = read.unwrap_or_default();
        if came.is_empty() {
            ended.closed = Some(start.elapsed());
            break;
        }
        seen.extend(came);
        while let Some((kind, length)) = head_of(&seen[at..]).filter(|(_, length)| at + length <= seen.len())
        {
            if kind == RST_STREAM {
                ended.resets.push(start.elapsed());
            }
            at += length;
        }
    }
    ended
}

/// Kind and whole length of the frame that begins here.
fn head_of(bytes: &[u8]) -> Option<(u8, usize)> {
    let [a, b, c, kind, _, _, _, _, _, ..] = bytes else { return None };
    Some((*kind, 9 + (usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c))))
}

/// Floods one connection; well when GOAWAY came.
async fn run(address: SocketAddr, flood: Flood) -> Result<()> {
    let stream = TcpStream::connect(address).await?;
    let (mut read, mut write) = stream.into_split();
    let bytes = script(flood);
    let sending = tokio::spawn(async move {
        // The other side may close in the middle.
        let _ = write.write_all(&bytes).await;
        write
    });
    let mut seen = Vec::new();
    let start = Instant::now();
    let ended = loop {
        let mut buffer = [0_u8; 16 * 1024];
        match timeout(PATIENCE.saturating_sub(start.elapsed()), read.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => break holds_goaway(&seen),
            Ok(Ok(count)) => seen.extend_from_slice(&buffer[..count]),
            Err(_) => break false,
        }
        if holds_goaway(&seen) {
            break true;
        }
    };
    sending.abort();
    if !ended {
        bail!("no GOAWAY within {PATIENCE:?}, {} bytes came", seen.len());
    }
    Ok(())
}

fn script(flood: Flood) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(SETTINGS, 0, 0, &[]));
    let get = request("GET", "/healthz");
    let post = request("POST", "/v1/chat/completions");
    match flood {
        Flood::RapidReset => {
            for number in 0..SENT {
                bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 2 * number + 1, &get));
                bytes.extend(frame(RST_STREAM, 0, 2 * number + 1, &8_u32.to_be_bytes()));
            }
        }
        Flood::Continuation => {
            bytes.extend(frame(HEADERS, END_STREAM, 1, &get));
            for _ in 0..SENT {
                bytes.extend(frame(CONTINUATION, 0, 1, &[]));
            }
        }
        Flood::EmptyData => {
            bytes.extend(frame(HEADERS, END_HEADERS, 1, &post));
            for _ in 0..SENT {
                bytes.extend(frame(DATA, 0, 1, &[]));
            }
        }
        Flood::Settings => bytes.extend(frame(SETTINGS, 0, 0, &[]).repeat(SENT as usize)),
        Flood::Ping => bytes.extend(frame(PING, 0, 0, &[7; 8]).repeat(SENT as usize)),
        Flood::Streams => {
            for number in 0..10_000 {
                bytes.extend(frame(HEADERS, END_HEADERS, 2 * number + 1, &post));
            }
        }
    }
    bytes
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A block of header fields without compression.
fn request(method: &str, path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    // Indexed names of the static table: :method, :path, :authority; then `:scheme: http` as a whole.
    for (index, value) in [(2_u8, method), (4, path), (1, "x")] {
        bytes.push(index);
        bytes.push(u8::try_from(value.len()).unwrap_or_default());
        bytes.extend_from_slice(value.as_bytes());
    }
    bytes.push(0x86);
    bytes
}

fn holds_goaway(mut bytes: &[u8]) -> bool {
    while let Some((kind, length)) = head_of(bytes) {
        if kind == GOAWAY {
            return true;
        }
        let Some(rest) = bytes.get(length..) else { return false };
        bytes = rest;
    }
    false
}

/// Bytes of this process in memory.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = text.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4096
}
