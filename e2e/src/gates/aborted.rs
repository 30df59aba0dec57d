//! L4: the client drops after k tokens, by reset, close, half-close or by reading no more. It pays for what it got.

use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_wire::MicroCredits;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::leaving::heard;
use crate::client::{Conversation, Event, content};
use crate::ground::until;
use crate::settings::Setting;
use crate::stand_in::StandIn;
use crate::verdict::Verdict;
use crate::world::{Account, CHAT_MODEL, World};

/// The assertion that catches metering in an end-of-stream callback.
pub const CAUGHT_BY: &str = "the user pays the prompt and the tokens handed over";

/// Deadlines are asserted at four times their value.
const CANCELLED_WITHIN: Duration = Duration::from_millis(4 * 250);
const RELEASED_WITHIN: Duration = Duration::from_secs(4);

/// Bytes that may sit in the sockets between gateway and client when a reader stalls.
const SOCKET_BUFFERS: usize = 6 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leave {
    Reset,
    Close,
    HalfClose,
    Stall,
}

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("L4");
    let world = World::plan(setting).write_stall(Duration::from_secs(1)).start().await?;
    let node = world.stand_in("node").await?;
    let account = world.account("leaver@example.org", MicroCredits(1_000_000_000)).await?;
    let mut spans = Spans::default();
    let rounds = setting.counts.pick(1, 10);
    for _ in 0..rounds {
        for tokens in [0_u64, 1, 7, 500] {
            for leave in [Leave::Reset, Leave::Close, Leave::HalfClose, Leave::Stall] {
                verdict.count += 1;
                one(&world, &node, &account, (tokens, leave), &mut spans, &mut verdict)
                    .await
                    .with_context(|| format!("{leave:?} after {tokens}"))?;
            }
        }
    }
    verdict.measured("cancel at the node", Duration::from_millis(250), spans.cancelled);
    verdict.measured("hold released", Duration::from_secs(1), spans.released);
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

/// What is measured, for the report.
#[derive(Default)]
struct Spans {
    cancelled: Vec<Duration>,
    released: Vec<Duration>,
}

async fn one(
    world: &World,
    node: &StandIn,
    account: &Account,
    (tokens, leave): (u64, Leave),
    spans: &mut Spans,
    verdict: &mut Verdict,
) -> Result<()> {
    let what = format!("{leave:?} after {tokens}");
    let prompt = if leave == Leave::Stall { "endless".to_owned() } else { format!("hold {tokens}") };
    let body = json!({"model": CHAT_MODEL, "stream": true, "max_tokens": 200_000, "messages": [{"role": "user", "content": prompt}]});
    let seen = node.notes().len();
    let mut conversation = account.client.send("POST", "/v1/chat/completions", Some(&body)).await?;
    let note = until("the node to accept", Duration::from_secs(20), async || {
        Ok(node.notes().get(seen).filter(|note| note.accepted.is_some()).cloned())
    })
    .await?;
    let mut received = String::new();
    if tokens == 0 {
        // That the node accepted is a message, too: a client that is quicker has left before.
        heard(account).await?;
    } else {
        conversation.read_head().await?;
        received = conversation.contents(usize::try_from(tokens)?).await?.concat();
    }
    let left = Instant::now();
    let mut kept = None;
    match leave {
        Leave::Reset => conversation.reset()?,
        Leave::Close => drop(conversation),
        Leave::HalfClose => {
            conversation.half_close().await?;
            kept = Some(conversation);
        }
        Leave::Stall => kept = Some(conversation),
    }
    // A stalled reader is cut by the write stall of this world (1 s) first.
    let grace = if leave == Leave::Stall { Duration::from_secs(20) } else { Duration::ZERO };
    let cancelled =
        until("the node to be cancelled", CANCELLED_WITHIN + grace + Duration::from_secs(10), async || {
            Ok(node.notes().get(seen).and_then(|note| note.cancelled))
        })
        .await?;
    verdict.check(
        "the node is cancelled within 250 ms (4 x)",
        cancelled - left <= CANCELLED_WITHIN + grace,
        format!("{what}: {:?}", cancelled - left),
    );
    let settled = settled(account, &note.request_id, RELEASED_WITHIN + Duration::from_secs(10)).await;
    verdict.check(
        "the hold is released within 1 s (4 x)",
        settled.is_ok() && cancelled.elapsed() <= RELEASED_WITHIN,
        format!("{what}: {settled:?}"),
    );
    spans.released.push(cancelled.elapsed());
    if leave != Leave::Stall {
        spans.cancelled.push(cancelled - left);
    }
    let Ok(settled) = settled else { return Ok(()) };
    if let Some(mut conversation) = kept {
        received.push_str(&drain(&mut conversation).await);
    }
    let prompt_tokens = settled["tokens_prompt"].as_u64().unwrap_or_default();
    let billed = settled["tokens_completion"].as_u64().unwrap_or_default();
    let got = world.money.count(&received)?;
    let cost = world.cost_of(&settled)?;
    verdict.check(
        "the prompt is billed by the public template",
        prompt_tokens == world.money.prompt_tokens(&body)?,
        format!("{what}: {prompt_tokens}"),
    );
    verdict.check(
        CAUGHT_BY,
        cost == world.price(prompt_tokens, billed)? && cost > 0 && billed >= got,
        format!("{what}: {settled} for {got} received"),
    );
    let slack = if leave == Leave::Stall { u64::try_from(SOCKET_BUFFERS / EVENT_BYTES)? } else { 0 };
    verdict.check(
        "what is billed beyond what was read fits a socket buffer",
        billed - got.min(billed) <= slack,
        format!("{what}: billed {billed}, read {got}"),
    );
    verdict.check(
        "the provider is paid for the same tokens",
        world.money.reward_of(&note.request_id).await? == world.share(cost)?,
        format!("{what}: cost {cost}"),
    );
    Ok(())
}

/// A content event is never smaller than this on the wire.
const EVENT_BYTES: usize = 128;

async fn settled(account: &Account, request_id: &str, deadline: Duration) -> Result<Value> {
    until("the settlement", deadline, async || {
        let reply = account.client.call("GET", &format!("/v1/generation?id={request_id}"), None).await?;
        let data = reply.json()["data"].clone();
        Ok((reply.status == 200 && data["outcome"] != "running").then_some(data))
    })
    .await
}

async fn drain(conversation: &mut Conversation) -> String {
    let mut text = String::new();
    if conversation.status == 0 && conversation.read_head().await.is_err() {
        return text;
    }
    while let Ok(Some(event)) = conversation.event().await {
        if let Event::Data(value) = &event {
            text.push_str(content(value).unwrap_or_default());
        }
    }
    text
}
