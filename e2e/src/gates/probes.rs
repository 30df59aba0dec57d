//! P6: one node passes the gateway's checks but fails work, another the reverse; work decides.

use std::time::Duration;

use anyhow::Result;
use cxmpute_wire::MicroCredits;
use serde_json::json;
use tokio::time::Instant;

use crate::client::Client;
use crate::ground::until;
use crate::settings::Setting;
use crate::stand_in::{Mood, StandIn};
use crate::verdict::Verdict;
use crate::world::{CHAT_MODEL, World};

/// The assertion that catches routing by probes alone.
pub const CAUGHT_BY: &str = "a node that fails work is ejected though it passes checks";

/// How long the product's breakers stay open the first time; then one request may try.
const OPEN: Duration = Duration::from_secs(30);

/// The longest time between two checks that fail, four times.
const CHECKED_WITHIN: Duration = Duration::from_secs(4 * 32);

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("P6");
    let world = World::plan(setting).start().await?;
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000_000)).await?;
    let flatterer = world.stand_in("flatterer").await?;
    let shy = world.stand_in("shy").await?;
    let steady = world.stand_in("steady").await?;
    let requests = setting.counts.pick(80, 1_000);

    // All do honest work first. Who is chosen is a matter of chance and latency, so each is asked for by name.
    for node in [&flatterer, &shy, &steady] {
        let answered = ask(&account.client, 3, Some(node)).await;
        verdict.check("everybody gets work", answered == 3 && node.notes().len() >= 3, "");
    }

    // Checks are answered truthfully in any mood but one, so this node passes every one of them.
    flatterer.set_mood(Mood::Failing);
    flatterer.change_engine();
    shy.set_mood(Mood::Shy);
    shy.change_engine();
    let failed = until("a failed check", Duration::from_secs(10), async || {
        ask(&account.client, 1, None).await;
        Ok((shy.checks_failed() > 0).then_some(()))
    })
    .await;
    verdict.check("the shy node is checked", failed.is_ok(), format!("{failed:?}"));

    // Clients that would have it rather than anybody else, so that every request tries it that may.
    let (start, before) = (Instant::now(), flatterer.notes().len());
    let answered = ask(&account.client, requests, Some(&flatterer)).await;
    verdict.count += requests as u64;
    verdict.check("clients do not notice", answered == requests, format!("{answered} of {requests}"));
    let tried = flatterer.notes().len() - before;
    let most = 5 + usize::try_from(start.elapsed().as_secs() / OPEN.as_secs())?;
    verdict.check(
        CAUGHT_BY,
        tried <= most,
        format!("tried {tried} times in {requests} requests, at most {most}"),
    );

    // With the third node gone, whatever is answered is the work of the one that fails its checks.
    steady.stop().await;
    let before = finished(&shy);
    let answered = ask(&account.client, requests, None).await;
    verdict.count += requests as u64;
    verdict.check("clients do not notice", answered == requests, format!("{answered} of {requests}"));
    let kept = finished(&shy) - before;
    verdict.check(
        "a node that works is kept though it fails checks",
        kept == requests,
        format!("{kept} of {requests} requests"),
    );
    let checks = shy.checks_failed();
    let again = until("another check", CHECKED_WITHIN, async || {
        ask(&account.client, 1, None).await;
        Ok((shy.checks_failed() > checks).then_some(()))
    })
    .await;
    verdict.check("and it is checked on", again.is_ok(), format!("{again:?} after {checks}"));
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

/// Work that a node did to its end.
fn finished(node: &StandIn) -> usize {
    node.notes().iter().filter(|note| note.finished.is_some()).count()
}

/// How many of so many requests, one after the other, are answered; by a node of the client's own choice if it is there.
async fn ask(client: &Client, requests: usize, first: Option<&StandIn>) -> usize {
    let mut body =
        json!({"model": CHAT_MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": "say 5"}]});
    if let Some(node) = first {
        body["provider"] = json!({"order": [node.slug()]});
    }
    let mut answered = 0;
    for _ in 0..requests {
        let reply = client.call("POST", "/v1/chat/completions", Some(&body)).await;
        answered += usize::from(reply.is_ok_and(|reply| reply.status == 200));
    }
    answered
}
