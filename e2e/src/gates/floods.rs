//! G2: floods of HTTP/2 frames that cost a client nothing. Each ends in GOAWAY soon, memory stays, and other connections
//! do not notice. The frames are written here, byte by byte, over TCP with prior knowledge.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use cxmpute_wire::MicroCredits;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::settings::Setting;
use crate::verdict::Verdict;
use crate::world::World;

/// The assertion that catches a connection without limits.
pub const CAUGHT_BY: &str = "every flood ends in GOAWAY";

/// Abusive frames after which GOAWAY is due, and what is sent to see it.
const DUE: u32 = 200;
const SENT: u32 = 2 * DUE;

/// How long GOAWAY may take after the last frame, at four times what a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(8);

/// What the process may grow by while all floods run.
const GROWTH: u64 = 20 << 20;

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
    Ok(verdict)
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
    while let [a, b, c, kind, ..] = bytes {
        if *kind == GOAWAY {
            return true;
        }
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        let Some(rest) = bytes.get(9 + length..) else { return false };
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
