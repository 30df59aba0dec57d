//! G1: slow heads, slow bodies and slow readers are freed by timers, and nobody else notices them.

use std::collections::BTreeMap;
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

/// How often a dripping client sends one byte; real ones take 10 s, beside timers ten times as long.
const DRIP: Duration = Duration::from_millis(500);

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
    // What the machine itself is worth at each moment: a gateway of the same kind that nobody is slow at.
    let calm = World::plan(setting).slow_client_timers(TIMER).start().await?;
    let calm_client = calm.account("reader@example.org", MicroCredits(0)).await?.client;
    let mut latencies = Latencies::default();

    let mut slow = JoinSet::new();
    let key = account.client.key.clone().unwrap_or_default();
    for number in 0..sockets {
        let address = world.address;
        let (name, beginning, drips) = match number % 4 {
            0 => ("slow heads are freed", "GET /v1/models HTTP/1.1\r\nhost: x\r\nx-slow: ".to_owned(), true),
            1 => ("slow bodies are freed", slow_body(&key), true),
            2 => ("silent connections are freed", String::new(), false),
            _ => ("idle connections are freed", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n".to_owned(), false),
        };
        // One after the other: a burst beyond the kernel's queue would measure the kernel's retransmissions.
        let stream = TcpStream::connect(address).await?;
        slow.spawn(async move { (name, occupy(stream, &beginning, drips).await) });
    }
    latencies.measure(&calm_client, &account.client).await?;
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
    latencies.measure(&calm_client, &account.client).await?;
    let (quiet, loud) = (p99(&mut latencies.quiet), p99(&mut latencies.loud));
    verdict.check(
        "a good client's p99 at most doubles (4 x)",
        loud <= (quiet * 2 * 4).max(NOISE),
        format!("{quiet:?} alone, {loud:?} beside them"),
    );
    verdict.measured("a good client beside them", quiet * 2, latencies.loud);
    calm.finish(&mut verdict).await?;
    let descriptors = std::fs::read_dir("/proc/self/fd").map(Iterator::count).unwrap_or_default();
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?.0;
    // Both ends of every connection are in this process: half of what is open is the gateway's.
    let share = u64::try_from(descriptors)? / 2 * 100 / limit.max(1);
    verdict.check(
        "file descriptors stay under 60 % of the limit",
        share < 60,
        format!("{descriptors} open of {limit}"),
    );
    let mut spans = BTreeMap::<&str, Vec<Duration>>::new();
    while let Some(done) = slow.join_next().await {
        let (name, freed) = done?;
        spans.entry(name).or_default().extend(freed.as_ref().ok());
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
    spans.insert("slow readers are cut", cut.unwrap_or_default());
    for (name, spans) in spans {
        verdict.measured(name, TIMER, spans);
    }
    drop(stalling);
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

/// A chat request whose body begins and then comes byte by byte.
fn slow_body(key: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: 100000\r\n\r\n{{"
    )
}

/// Sends a beginning, then (if it drips) one byte now and then, until the other side closes; gives how long that took.
async fn occupy(mut stream: TcpStream, beginning: &str, drips: bool) -> Result<Duration> {
    let start = Instant::now();
    stream.write_all(beginning.as_bytes()).await?;
    let mut answer = [0_u8; 4096];
    loop {
        match timeout(DRIP, stream.read(&mut answer)).await {
            Ok(Ok(0) | Err(_)) => return Ok(start.elapsed()),
            // An error answer such as 408 comes before the close, the answer of an idle connection's request too.
            Ok(Ok(_)) => {}
            Err(_) if drips => {
                if stream.write_all(b"a").await.is_err() {
                    return Ok(start.elapsed());
                }
            }
            Err(_) => {}
        }
        let patience = FREED_WITHIN + Duration::from_secs(2);
        anyhow::ensure!(start.elapsed() < patience, "still open after {patience:?}");
    }
}

/// Asks for an endless stream and reads nothing, for as long as the test lasts.
async fn stalled(client: &Client) -> Result<Conversation> {
    let prompt = json!([{"role": "user", "content": "endless"}]);
    let body = json!({"model": CHAT_MODEL, "stream": true, "max_tokens": 200_000, "messages": prompt});
    client.send("POST", "/v1/chat/completions", Some(&body)).await
}

/// How long good requests take, here and at a gateway that has no slow clients, by turns: whatever else the machine does
/// slows both.
#[derive(Default)]
struct Latencies {
    quiet: Vec<Duration>,
    loud: Vec<Duration>,
}

impl Latencies {
    async fn measure(&mut self, quiet: &Client, loud: &Client) -> Result<()> {
        for _ in 0..100 {
            for (client, spans) in [(quiet, &mut self.quiet), (loud, &mut self.loud)] {
                let start = Instant::now();
                client.call("GET", "/v1/models", None).await?;
                spans.push(start.elapsed());
            }
        }
        Ok(())
    }
}

fn p99(spans: &mut [Duration]) -> Duration {
    spans.sort_unstable();
    spans[(spans.len() * 99).div_ceil(100) - 1]
}
