//! G1: slow heads, slow bodies and slow readers are freed by timers, and nobody else notices them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use cxmpute_wire::MicroCredits;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::client::{Client, Conversation};
use crate::ground::until;
use crate::settings::Setting;
use crate::verdict::Verdict;
use crate::world::{CHAT_MODEL, World};

/// The assertion that catches an accept loop without timers.
pub const CAUGHT_BY: &str = "slow heads are freed";

/// The timers of this world; the product's defaults are 10 s (head), 10 s (body) and 30 s (write).
const TIMER: Duration = Duration::from_secs(1);

/// Deadlines are asserted at four times their value.
const FREED_WITHIN: Duration = Duration::from_secs(4);

/// Clients that read nothing of an endless stream.
const STALLED: usize = 5;

/// A stream that sent nothing for this long has stalled.
const STILL: Duration = Duration::from_millis(100);

/// A laptop's noise: latencies below this are not compared.
const NOISE: Duration = Duration::from_millis(50);

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("G1");
    let sockets = setting.counts.pick(200, 2_000);
    verdict.count = sockets;
    let world = World::plan(setting).slow_client_timers(TIMER).start().await?;
    let node = world.stand_in("node").await?;
    let account = world.account("reader@example.org", MicroCredits(1_000_000_000)).await?;
    let quiet = p99(&account.client, 50).await?;

    let mut slow = JoinSet::new();
    for number in 0..sockets {
        let address = world.address;
        match number % 4 {
            0 | 1 => slow.spawn(async move { ("slow heads are freed", dripping(address, b"GET /v1/models HTTP/1.1\r\nhost: x\r\nx-slow: ").await) }),
            2 => slow.spawn(async move {
                let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n{";
                ("slow bodies are freed", dripping(address, head).await)
            }),
            _ => slow.spawn(async move { ("silent connections are freed", dripping(address, b"").await) }),
        };
    }
    let mut stalling = Vec::new();
    for _ in 0..STALLED {
        stalling.push(stalled(&account.client).await?);
    }
    // The streams fill the sockets' buffers first, which is work; from then on they are only in the way.
    until("the streams to stall", Duration::from_secs(30), async || {
        let notes = node.notes();
        let still = |sent: Option<Instant>| sent.is_some_and(|at| at.elapsed() > STILL);
        Ok((notes.iter().filter(|note| still(note.last_sent)).count() == STALLED).then_some(()))
    })
    .await?;
    let loud = p99(&account.client, 200).await?;
    verdict.check(
        "a good client's p99 at most doubles",
        loud <= (quiet * 2).max(NOISE),
        format!("{quiet:?} alone, {loud:?} beside them"),
    );
    let descriptors = std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default();
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.0;
    // Both ends of every connection are in this process: half of what is open is the gateway's.
    let share = u64::try_from(descriptors)? / 2 * 100 / limit.max(1);
    verdict.check(
        "file descriptors stay under 60 % of the limit",
        share < 60,
        format!("{descriptors} open of {limit}"),
    );
    while let Some(done) = slow.join_next().await {
        let (name, freed) = done?;
        let held = matches!(freed, Ok(after) if after <= FREED_WITHIN);
        verdict.check(name, held, format!("{freed:?}"));
    }
    let cut = until("the slow readers to be cut", Duration::from_secs(60), async || {
        let notes = node.notes();
        let cut: Vec<Duration> =
            notes.iter().filter_map(|note| Some(note.cancelled? - note.last_sent?)).collect();
        Ok((cut.len() == STALLED).then_some(cut))
    })
    .await;
    let longest = cut.as_ref().map(|cut| cut.iter().max().copied().unwrap_or_default());
    verdict.check(
        "slow readers are cut",
        longest.as_ref().is_ok_and(|longest| *longest <= FREED_WITHIN),
        format!("{longest:?}"),
    );
    drop(stalling);
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

/// Sends a beginning, then one byte every 200 ms, until the other side closes; gives how long that took.
async fn dripping(address: SocketAddr, beginning: &[u8]) -> Result<Duration> {
    let start = Instant::now();
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(beginning).await?;
    let mut answer = [0_u8; 4096];
    loop {
        match timeout(Duration::from_millis(200), stream.read(&mut answer)).await {
            Ok(Ok(0) | Err(_)) => return Ok(start.elapsed()),
            // An error answer such as 408 comes before the close.
            Ok(Ok(_)) => {}
            Err(_) => {
                if !beginning.is_empty() && stream.write_all(b"a").await.is_err() {
                    return Ok(start.elapsed());
                }
            }
        }
        anyhow::ensure!(
            start.elapsed() < FREED_WITHIN + Duration::from_secs(2),
            "still open after {:?}",
            start.elapsed()
        );
    }
}

/// Asks for an endless stream and reads nothing, for as long as the test lasts.
async fn stalled(client: &Client) -> Result<Conversation> {
    let prompt = json!([{"role": "user", "content": "endless"}]);
    let body = json!({"model": CHAT_MODEL, "stream": true, "max_tokens": 200_000, "messages": prompt});
    client.send("POST", "/v1/chat/completions", Some(&body)).await
}

async fn p99(client: &Client, count: usize) -> Result<Duration> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        client.call("GET", "/v1/models", None).await?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Ok(times[(times.len() * 99).div_ceil(100) - 1])
}
