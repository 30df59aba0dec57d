//! P6: one node passes the gateway's checks but fails work, another the reverse; work decides.

use std::time::Duration;

use anyhow::Result;
use cxmpute_wire::MicroCredits;
use serde_json::json;

use crate::client::Client;
use crate::ground::until;
use crate::settings::Setting;
use crate::stand_in::Mood;
use crate::verdict::Verdict;
use crate::world::{CHAT_MODEL, World};

/// The assertion that catches routing by probes alone.
pub const CAUGHT_BY: &str = "a node that fails work is ejected though it passes checks";

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
    let _steady = world.stand_in("steady").await?;
    let requests = setting.counts.pick(80, 1_000);

    // Both do honest work first.
    ask(&account.client, 30).await;
    verdict.check("everybody gets work", !shy.notes().is_empty() && !flatterer.notes().is_empty(), "");

    // Checks are answered truthfully in any mood but one, so this node passes every one of them.
    flatterer.set_mood(Mood::Failing);
    flatterer.change_engine();
    shy.set_mood(Mood::Shy);
    shy.change_engine();
    let failed = until("a failed check", Duration::from_secs(10), async || {
        ask(&account.client, 1).await;
        Ok((shy.checks_failed() > 0).then_some(()))
    })
    .await;
    verdict.check("the shy node is checked", failed.is_ok(), format!("{failed:?}"));

    let (shy_before, flatterer_before) = (shy.notes().len(), flatterer.notes().len());
    let answered = ask(&account.client, requests).await;
    verdict.count += requests as u64;
    verdict.check("clients do not notice", answered == requests, format!("{answered} of {requests}"));
    let tried = flatterer.notes().len() - flatterer_before;
    verdict.check(CAUGHT_BY, tried <= 6, format!("tried {tried} times in {requests} requests"));
    let kept = shy.notes().len() - shy_before;
    verdict.check(
        "a node that works is kept though it fails checks",
        kept * 5 >= requests,
        format!("{kept} of {requests} requests"),
    );
    let checks = shy.checks_failed();
    let again = until("another check", Duration::from_secs(20), async || {
        ask(&account.client, 1).await;
        Ok((shy.checks_failed() > checks).then_some(()))
    })
    .await;
    verdict.check("and it is checked on", again.is_ok(), format!("{again:?} after {checks}"));
    world.finish(&mut verdict).await?;
    Ok(verdict)
}

/// How many of so many requests, one after the other, are answered.
async fn ask(client: &Client, requests: usize) -> usize {
    let body =
        json!({"model": CHAT_MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": "say 5"}]});
    let mut answered = 0;
    for _ in 0..requests {
        let reply = client.call("POST", "/v1/chat/completions", Some(&body)).await;
        answered += usize::from(reply.is_ok_and(|reply| reply.status == 200));
    }
    answered
}
