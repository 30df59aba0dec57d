//! P1, memory: what rogue streams cost a gateway at their worst, measured from outside: the peak of a real process, beside
//! the documented bound for a hostile stream.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::client::{Client, Conversation};
use crate::ground::until;
use crate::house::{CHAT_MODEL, House};
use crate::money::Money;
use crate::paths::Path;
use crate::settings::Setting;
use crate::stand_in::{Identity, Script, StandIn, Step};
use crate::verdict::Verdict;

/// The assertion that catches a bound on events that is no bound.
pub const CAUGHT_BY: &str = "a rogue stream costs at most 256 KiB";

/// Streams at a time. The gateway gives a node 64 pieces of work at most, and good work must fit beside these.
const STREAMS: usize = 48;

/// What a hostile stream may cost (GR section 9); what may be under way on its tunnel, all streams together; and what the
/// process may take beside, because its allocator gives back pages in large pieces only.
const PER_STREAM: u64 = 256 * 1024;
const UNDER_WAY: u64 = 8 << 20;
const BESIDE: u64 = 16 << 20;

/// `max_tokens` of the requests; by it the text of an answer is bounded to 33 KiB for each of its choices.
const LIMIT: u64 = 256;

/// Choices of the requests. They raise the bound on the bytes of a whole answer above a mebibyte, so that only the bound on
/// an event is left to keep a long line small.
const CHOICES: u64 = 8;

/// How long a part may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// Reads all there is.
    Eager,
    /// Reads nothing until the end of the part.
    Asleep,
}

/// What one node sends to all of them, how much of it, and whether it then keeps the stream open.
struct Part {
    name: &'static str,
    script: Script,
    bytes: u64,
    held: bool,
    reader: Reader,
}

/// The gate. `event_bytes` sets another bound on events than the product's.
///
/// # Errors
/// A program is missing or does not start.
pub async fn gate(setting: Setting, event_bytes: Option<u64>) -> Result<Verdict> {
    let mut verdict = Verdict::new("P1-mem");
    let folder = tempfile::tempdir()?;
    let mut house = House::plan(folder.path(), setting.bad)?;
    house.set("CXMPUTE_RELAY_QUEUE_MS", "100");
    house.set("CXMPUTE_RELAY_FIRST_TOKEN_MS", "5000");
    if let Some(bytes) = event_bytes {
        house.set("CXMPUTE_RELAY_EVENT_BYTES", &bytes.to_string());
    }
    house.start_gateway().await?;
    let user = house.create_user("victim@example.org")?;
    house.grant_credits(&user, 1_000_000_000_000)?;
    let client = Client::with_key(house.address, &house.create_key(&user)?);
    let owner = house.create_user("rogue@example.org")?;
    let grant = house.enrol_grant(&owner)?;
    let node = StandIn::enrol_and_start(house.address, &Identity::fresh(), "rogue", &grant).await?;
    house.routable(CHAT_MODEL, 1).await?;
    let money = Money::open(&house.database_url()).await?;
    let process = house.gateway()?.pid();
    // What the process needs for so many good streams it has from then on.
    good(&client, &node).await.context("before")?;
    for part in parts() {
        verdict.count += STREAMS as u64;
        let grown = peak_of(process, &client, &node, &part).await.with_context(|| part.name)?;
        let most = PER_STREAM * STREAMS as u64 + UNDER_WAY + BESIDE;
        verdict.check(CAUGHT_BY, grown <= most, format!("{}: {grown} bytes, at most {most}", part.name));
        if grown > most {
            break;
        }
        until(
            "the streams to be settled",
            PATIENCE,
            async || Ok((money.running().await? == 0).then_some(())),
        )
        .await?;
        let still_good = good(&client, &node).await;
        verdict.check("good streams work afterwards", still_good.is_ok(), format!("{still_good:?}"));
    }
    until("every hold to be resolved", PATIENCE, async || Ok((money.open_holds().await? == 0).then_some(())))
        .await?;
    let complaint = money.complaint().await?;
    verdict.check("the ledger explains every credit", complaint.is_none(), format!("{complaint:?}"));
    node.stop().await;
    Ok(verdict)
}

fn parts() -> Vec<Part> {
    let line = |bytes: u64| {
        let block = Bytes::from(vec![b'x'; 16 * 1024]);
        vec![Step::Raw("data: ".into()), Step::Repeat(block, bytes / (16 * 1024))]
    };
    let held = |mut steps: Vec<Step>| {
        steps.push(Step::Hold);
        Script::of(steps)
    };
    let path = Path::ChatStream;
    // As much text as the answer may have, in the fewest events.
    let fat = path.piece(&"7".repeat(200));
    vec![
        Part {
            name: "a line that stops just below the bound",
            script: held(line(240 * 1024)),
            bytes: 240 * 1024,
            held: true,
            reader: Reader::Eager,
        },
        Part {
            name: "a line that stops far above it",
            script: held(line(2 << 20)),
            bytes: 512 * 1024,
            held: false,
            reader: Reader::Eager,
        },
        Part {
            name: "a line of a gibibyte",
            script: Script::of(line(1 << 30)),
            bytes: 512 * 1024,
            held: false,
            reader: Reader::Eager,
        },
        Part {
            name: "an event without end",
            script: Script::of(vec![Step::Repeat(Bytes::from("data: x\n".repeat(512)), 1 << 18)]),
            bytes: 512 * 1024,
            held: false,
            reader: Reader::Eager,
        },
        Part {
            name: "an endless answer",
            script: Script::of(vec![Step::Repeat(path.piece(" the"), 1 << 30)]),
            bytes: 0,
            held: false,
            reader: Reader::Eager,
        },
        Part {
            name: "a fat answer that nobody reads",
            script: Script::of(vec![Step::Repeat(fat, 1 << 30)]),
            bytes: 0,
            held: false,
            reader: Reader::Asleep,
        },
    ]
}

/// By how much the process's memory grew at its peak while so many of these streams ran.
async fn peak_of(process: u32, client: &Client, node: &StandIn, part: &Part) -> Result<u64> {
    node.learn("rogue", part.script.clone());
    let seen = node.notes().len();
    let before = memory(process, "VmRSS")?;
    // Forgets the peak so far.
    std::fs::write(format!("/proc/{process}/clear_refs"), "5").context("resetting the peak")?;
    let mut conversations = ask(client, "play rogue").await?;
    if part.reader == Reader::Eager && !part.held {
        drain(&mut conversations).await?;
    }
    until("the node to have sent all it could", PATIENCE, async || {
        let notes = node.notes().split_off(seen.min(node.notes().len()));
        let sent = notes.iter().filter(|note| {
            let over = note.cancelled.is_some() || note.finished.is_some();
            if part.held { note.sent >= part.bytes || over } else { over }
        });
        Ok((sent.count() >= STREAMS).then_some(()))
    })
    .await?;
    if part.held {
        // What was sent has arrived when a later request on the same tunnel is answered.
        good_one(client).await?;
    }
    let peak = memory(process, "VmHWM")?;
    drop(conversations);
    Ok(peak.saturating_sub(before))
}

async fn ask(client: &Client, prompt: &str) -> Result<Vec<Conversation>> {
    let mut body = Path::ChatStream.body(prompt, LIMIT);
    body["model"] = CHAT_MODEL.into();
    body["n"] = CHOICES.into();
    let mut conversations = Vec::new();
    for _ in 0..STREAMS {
        conversations.push(client.send("POST", Path::ChatStream.url(), Some(&body)).await?);
    }
    Ok(conversations)
}

/// Reads all of them to their ends, at the same time.
async fn drain(conversations: &mut Vec<Conversation>) -> Result<()> {
    let mut readers = JoinSet::new();
    for mut conversation in conversations.drain(..) {
        readers.spawn(async move {
            conversation.read_head().await?;
            conversation.rest().await
        });
    }
    while let Some(done) = readers.join_next().await {
        done??;
    }
    Ok(())
}

async fn good(client: &Client, node: &StandIn) -> Result<()> {
    node.learn("good", Script::of(vec![Step::Raw(Path::ChatStream.piece("The")), Step::Hold]));
    let seen = node.notes().len();
    let conversations = ask(client, "play good").await?;
    until("the good streams to run", PATIENCE, async || {
        Ok((node.notes()[seen..].iter().filter(|note| note.sent > 0).count() >= STREAMS).then_some(()))
    })
    .await?;
    drop(conversations);
    good_one(client).await
}

async fn good_one(client: &Client) -> Result<()> {
    let mut body = Path::ChatStream.body("say 3", LIMIT);
    body["model"] = CHAT_MODEL.into();
    let got = Path::ChatStream.ask(client, &body).await?;
    anyhow::ensure!(got.complete, "{got:?}");
    Ok(())
}

/// One line of `/proc/PID/status`, in bytes.
fn memory(process: u32, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).with_context(|| format!("no {field}"))?;
    let kib: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
    Ok(kib * 1024)
}
