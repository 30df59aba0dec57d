//! Faulty networks, between client and gateway and between node and gateway: half-closed, slow, late and cut connections.
//! Whatever the network does, answers are whole or end with words, other nodes go on, and bills follow the abort table.

use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_wire::{Epoch, MicroCredits};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::leaving::heard;
use crate::client::{Client, Event, content};
use crate::ground::until;
use crate::paths::{Got, Path, settled};
use crate::proxy::{Fault, Proxy, Way};
use crate::settings::Setting;
use crate::stand_in::{StandIn, text};
use crate::verdict::Verdict;
use crate::world::{Account, World};

/// The assertion that catches a gateway that bills what broke off.
pub const CAUGHT_BY: &str = "nobody pays for an answer whose node was lost";

/// How fast a slow tunnel is, in bytes per second, and how many tokens go through it: four seconds.
const SLOW: u64 = 20_000;
const SLOW_TOKENS: u64 = 400;

/// Requests of others while that lasts.
const OTHERS: usize = 10;

/// The world's limits on a silent tunnel; the product's are 2 s and 6 s.
const PING: Duration = Duration::from_millis(500);
const DEAD: Duration = Duration::from_millis(3_000);

/// A delay each way that such a tunnel must bear, and one that it must not.
const BEARABLE: Duration = Duration::from_millis(300);
const UNBEARABLE: Duration = Duration::from_millis(4_000);

/// How long anything here may take before it counts as hanging.
const PATIENCE: Duration = Duration::from_secs(20);

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("FAULTS");
    for _ in 0..setting.counts.pick(1, 10) {
        half_closed_clients(setting, &mut verdict).await.context("half-closed clients")?;
        cut_clients(setting, &mut verdict).await.context("clients that are cut off")?;
        slow_tunnel(setting, &mut verdict).await.context("a slow tunnel")?;
        late_tunnel(setting, &mut verdict).await.context("a late tunnel")?;
        cut_tunnels(setting, &mut verdict).await.context("tunnels that are cut")?;
        taken_over(setting, &mut verdict).await.context("a node that takes over")?;
        half_closed_tunnels(setting, &mut verdict).await.context("half-closed tunnels")?;
    }
    Ok(verdict)
}

async fn account(world: &World) -> Result<Account> {
    world.account("asker@example.org", MicroCredits(1_000_000_000)).await
}

fn through(account: &Account, proxy: &Proxy) -> Client {
    Client { address: proxy.address, ..account.client.clone() }
}

/// A client that ends its sending side has left, whether it did so itself or the network says so: the node is stopped, the
/// connection closed, and the bill is that of a client that left.
async fn half_closed_clients(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).start().await?;
    let node = world.stand_in("node").await?;
    let account = account(&world).await?;
    for path in [Path::ChatStream, Path::ChatWhole, Path::CompletionWhole, Path::Embeddings] {
        for by_network in [false, true] {
            verdict.count += 1;
            let what = format!("{path:?}, by the network: {by_network}");
            let proxy = Proxy::start(world.address).await?;
            let body = path.body("hold 3", 64);
            let place = node.notes().len();
            let mut conversation = through(&account, &proxy).send("POST", path.url(), Some(&body)).await?;
            let note = until("the node to accept", PATIENCE, async || {
                let tokens = if path == Path::Embeddings { 0 } else { 3 };
                let note = node.notes().get(place).cloned();
                Ok(note.filter(|note| note.accepted.is_some() && note.sent >= tokens))
            })
            .await?;
            heard(&account).await?;
            let got = if path.streamed() {
                conversation.read_head().await?;
                conversation.contents(3).await?.concat()
            } else {
                String::new()
            };
            if by_network {
                proxy.set(Way::ToTarget, Fault::HalfClose);
            } else {
                conversation.half_close().await?;
            }
            let left = Instant::now();
            let stopped = until("the node to be stopped", PATIENCE, async || {
                Ok(node.notes().get(place).and_then(|note| note.cancelled))
            })
            .await;
            verdict.check(
                "a client that half-closed has left",
                stopped.as_ref().is_ok_and(|at| *at - left <= Duration::from_secs(1)),
                format!("{what}: {stopped:?}"),
            );
            let rest = match path.streamed() {
                true => conversation.event().await.ok().flatten().map(|event| format!("{event:?}")),
                false => conversation.read_head().await.ok().map(|()| "a head".to_owned()),
            };
            verdict.check(
                "its connection is closed without an answer",
                rest.is_none(),
                format!("{what}: {rest:?}"),
            );
            let row = settled(&account.client, &note.request_id, PATIENCE).await?;
            let wanted = match path {
                Path::Embeddings => 0,
                Path::CompletionWhole => world.price(world.money.completion_prompt_tokens("hold 3")?, 0)?,
                _ => world.price(world.money.prompt_tokens(&body)?, world.money.count(&got)?)?,
            };
            let cost = world.cost_of(&row)?;
            verdict.check("it pays what it got", cost == wanted, format!("{what}: {row}, wanted {wanted}"));
        }
    }
    world.finish(verdict).await
}

/// The line to the client ends after so many bytes: it pays at least what it got, at most what was sent.
async fn cut_clients(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    const TOKENS: u64 = 50;
    let world = World::plan(setting).start().await?;
    let node = world.stand_in("node").await?;
    let account = account(&world).await?;
    for after in [1, 700, 3_000, 6_000] {
        verdict.count += 1;
        let proxy = Proxy::start(world.address).await?;
        proxy.set(Way::ToCaller, Fault::CutAfter(after));
        let body = Path::ChatStream.body(&format!("hold {TOKENS}"), 64);
        let place = node.notes().len();
        let client = Client { lenient: true, ..through(&account, &proxy) };
        let mut conversation = client.send("POST", Path::ChatStream.url(), Some(&body)).await?;
        let mut got = String::new();
        if conversation.read_head().await.is_ok() {
            while let Ok(Some(Event::Data(event))) = conversation.event().await {
                got.push_str(content(&event).unwrap_or_default());
            }
        }
        let note = node.notes().get(place).cloned().context("the node was not asked")?;
        let row = settled(&account.client, &note.request_id, PATIENCE).await?;
        let billed = row["tokens_completion"].as_u64().unwrap_or_default();
        let prompt = world.money.prompt_tokens(&body)?;
        verdict.check(
            "a client that was cut off pays what was sent to it",
            (world.money.count(&got)?..=TOKENS).contains(&billed)
                && world.cost_of(&row)? == world.price(prompt, billed)?,
            format!("after {after} bytes: {row} for {got:?}"),
        );
    }
    world.finish(verdict).await
}

/// One node behind a slow line: the others do not wait for it, and its own stream is whole, late, and billed exactly.
async fn slow_tunnel(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).start().await?;
    let account = account(&world).await?;
    let proxy = Proxy::start(world.address).await?;
    let _slow = world.stand_in_through(&proxy, "slow").await?;
    let slow_name = provider_of(&account, None).await?;
    let _quick = world.stand_in("quick").await?;
    let quick_name = provider_of(&account, Some(json!({"ignore": [slow_name]}))).await?;
    proxy.set(Way::ToTarget, Fault::Throttle(SLOW));
    let mut body = Path::ChatStream.body(&format!("say {SLOW_TOKENS}"), SLOW_TOKENS + 1);
    body["provider"] = json!({"only": [slow_name]});
    let mut slow_stream = JoinSet::new();
    let (client, asked) = (account.client.clone(), body.clone());
    slow_stream.spawn(async move { Path::ChatStream.ask(&client, &asked).await });
    let mut longest = Duration::ZERO;
    for _ in 0..OTHERS {
        verdict.count += 1;
        let mut body = Path::ChatStream.body("say 8", 16);
        body["provider"] = json!({"only": [quick_name]});
        let got = Path::ChatStream.ask(&account.client, &body).await?;
        verdict.check(
            "the others are served meanwhile",
            got.complete && got.text == text(8),
            format!("{got:?}"),
        );
        longest = longest.max(got.took);
    }
    let still = slow_stream.try_join_next().is_none();
    verdict.check("the slow stream still ran when the others were done", still, "it had ended");
    let Some(slow) = slow_stream.join_next().await else { return Ok(()) };
    let slow = slow??;
    verdict.check(
        "others do not wait for a slow tunnel",
        longest * 2 < slow.took,
        format!("{longest:?} beside {:?}", slow.took),
    );
    verdict.check(
        "a slow stream is whole",
        slow.complete && slow.text == text(SLOW_TOKENS),
        format!("{:?}", slow.reply),
    );
    exact(&world, &account, &body, &slow, verdict).await?;
    world.finish(verdict).await
}

/// A delay below the limit on silence costs nobody his place; one above it ends the tunnel.
async fn late_tunnel(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).tunnel_limits(PING, DEAD).start().await?;
    let account = account(&world).await?;
    let proxy = Proxy::start(world.address).await?;
    let node = world.stand_in_through(&proxy, "late").await?;
    let epoch = node.epoch();
    for way in [Way::ToTarget, Way::ToCaller] {
        proxy.set(way, Fault::Delay(BEARABLE));
    }
    let start = Instant::now();
    // Longer than the limit on silence, so that a mistaken watch would have time to bite.
    while start.elapsed() < DEAD * 2 {
        verdict.count += 1;
        let body = Path::ChatStream.body("say 8", 16);
        let got = Path::ChatStream.ask(&account.client, &body).await?;
        let row = got.settled(&account.client).await?;
        let first = row["attempts"].as_array().is_some_and(|attempts| attempts.len() == 1);
        verdict.check(
            "a late tunnel serves",
            got.complete && first && got.took >= BEARABLE * 2,
            format!("{:?}, {row}", got.took),
        );
    }
    verdict.check(
        "a delay below the limit ends no tunnel",
        node.epoch() == epoch && proxy.connections() == 1,
        format!("epoch {:?} after {epoch:?}", node.epoch()),
    );
    proxy.set(Way::ToTarget, Fault::Delay(UNBEARABLE));
    let ended =
        until("the tunnel to be ended", PATIENCE, async || Ok((proxy.connections() > 1).then_some(()))).await;
    verdict.check("a delay above the limit ends the tunnel", ended.is_ok(), format!("{ended:?}"));
    proxy.set(Way::ToTarget, Fault::None);
    back(&node, epoch).await?;
    world.finish(verdict).await
}

/// The tunnel breaks after so many bytes of an answer: the client is told in words, nobody pays, and the node is back soon.
async fn cut_tunnels(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).start().await?;
    let account = account(&world).await?;
    let proxy = Proxy::start(world.address).await?;
    let node = world.stand_in_through(&proxy, "cut").await?;
    for after in [1, 100, 1_000, 5_000] {
        verdict.count += 1;
        let what = format!("after {after} bytes");
        broken_stream(&world, (&proxy, Fault::CutAfter(after)), &node, &account, &what, verdict).await?;
    }
    world.finish(verdict).await
}

/// The tunnel breaks before the first byte at the client: another node takes over, and one answer is paid.
async fn taken_over(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).start().await?;
    let account = account(&world).await?;
    let proxy = Proxy::start(world.address).await?;
    let node = world.stand_in_through(&proxy, "cut").await?;
    let cut = provider_of(&account, None).await?;
    let other = world.stand_in("other").await?;
    for path in [Path::ChatWhole, Path::CompletionWhole] {
        verdict.count += 1;
        let mut body = path.body("pace 40 10", 64);
        body["provider"] = json!({"order": [cut]});
        let place = node.notes().len();
        let mut asked = JoinSet::new();
        let (client, sent) = (account.client.clone(), body.clone());
        asked.spawn(async move { path.ask(&client, &sent).await });
        until("the node to begin", PATIENCE, async || {
            Ok(node.notes().get(place).filter(|note| note.sent > 3).map(drop))
        })
        .await?;
        let epoch = node.epoch();
        proxy.set(Way::ToTarget, Fault::CutAfter(300));
        let got = asked.join_next().await.context("no answer")???;
        proxy.set(Way::ToTarget, Fault::None);
        let served = other.notes().iter().any(|note| note.request_id == got.request_id);
        verdict.check(
            "another node takes over before the first byte",
            got.complete && got.text == text(40) && served,
            format!("{path:?}: {got:?}"),
        );
        if path.is_chat() {
            exact(&world, &account, &body, &got, verdict).await?;
        }
        back(&node, epoch).await?;
    }
    world.finish(verdict).await
}

/// Either end of a tunnel is told that nothing more comes: the tunnel is lost, and a new one made.
async fn half_closed_tunnels(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = World::plan(setting).start().await?;
    let account = account(&world).await?;
    let proxy = Proxy::start(world.address).await?;
    let node = world.stand_in_through(&proxy, "half").await?;
    for way in [Way::ToTarget, Way::ToCaller] {
        verdict.count += 1;
        let what = format!("half-closed {way:?}");
        let fault = (way, Fault::HalfClose);
        broken_stream_by(&world, (&proxy, fault), &node, &account, &what, verdict).await?;
    }
    world.finish(verdict).await
}

async fn broken_stream(
    world: &World,
    (proxy, fault): (&Proxy, Fault),
    node: &StandIn,
    account: &Account,
    what: &str,
    verdict: &mut Verdict,
) -> Result<()> {
    broken_stream_by(world, (proxy, (Way::ToTarget, fault)), node, account, what, verdict).await
}

/// A stream in whose middle the fault sets in.
async fn broken_stream_by(
    world: &World,
    (proxy, (way, fault)): (&Proxy, (Way, Fault)),
    node: &StandIn,
    account: &Account,
    what: &str,
    verdict: &mut Verdict,
) -> Result<()> {
    let body = Path::ChatStream.body("pace 20000 5", 30_000);
    let mut conversation = account.client.send("POST", Path::ChatStream.url(), Some(&body)).await?;
    conversation.read_head().await?;
    conversation.contents(3).await?;
    let note = node.notes().last().cloned().context("the node was not asked")?;
    let epoch = node.epoch();
    proxy.set(way, fault);
    let (mut code, mut done) = (None, false);
    while let Some(event) = conversation.event().await? {
        match event {
            Event::Data(value) => code = value["error"]["code"].as_str().map(str::to_owned).or(code),
            Event::Done => done = true,
        }
    }
    verdict.check(
        "a stream whose node was lost ends with words and without [DONE]",
        code.as_deref() == Some("provider_lost") && !done,
        format!("{what}: {code:?}, done {done}"),
    );
    // New tunnels must not be cut, too.
    proxy.set(way, Fault::None);
    let row = settled(&account.client, &note.request_id, PATIENCE).await?;
    verdict.check(
        CAUGHT_BY,
        world.cost_of(&row)? == 0 && world.money.reward_of(&note.request_id).await? == 0,
        format!("{what}: {row}"),
    );
    back(node, epoch).await?;
    let body = Path::ChatStream.body("say 3", 16);
    let got = Path::ChatStream.ask(&account.client, &body).await?;
    verdict.check(
        "the next good request works",
        got.complete && got.text == text(3),
        format!("{what}: {got:?}"),
    );
    exact(world, account, &body, &got, verdict).await
}

/// Waits for a tunnel newer than that one, with work.
async fn back(node: &StandIn, epoch: Epoch) -> Result<()> {
    until("the node to be back", PATIENCE, async || {
        Ok((node.epoch() > epoch && node.routable() >= 3).then_some(()))
    })
    .await
}

/// The public name of the node that serves a request.
pub(super) async fn provider_of(account: &Account, wishes: Option<Value>) -> Result<String> {
    let mut body = Path::ChatWhole.body("say 1", 16);
    if let Some(wishes) = wishes {
        body["provider"] = wishes;
    }
    let got = Path::ChatWhole.ask(&account.client, &body).await?;
    Ok(got.reply.header("x-cxmpute-provider").with_context(|| format!("{got:?}"))?.to_owned())
}

/// A chat that ended well is paid by our count of prompt and text.
async fn exact(
    world: &World,
    account: &Account,
    body: &Value,
    got: &Got,
    verdict: &mut Verdict,
) -> Result<()> {
    let row = got.settled(&account.client).await?;
    let prompt = world.money.prompt_tokens(body)?;
    let wanted = world.price(prompt, world.money.count(&got.text)?)?;
    let cost = world.cost_of(&row)?;
    verdict.check("the bill is exact", cost == wanted, format!("{row}, wanted {wanted}"));
    verdict.check(
        "the provider gets its share",
        world.money.reward_of(&got.request_id).await? == world.share(cost)?,
        format!("{row}"),
    );
    Ok(())
}
