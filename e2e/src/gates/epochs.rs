//! P5: two nodes with one key, answers in another request's name, answers of an older epoch: dropped, never settled.

use std::time::Duration;

use anyhow::Result;
use cxmpute_wire::MicroCredits;
use serde_json::json;

use crate::ground::until;
use crate::settings::Setting;
use crate::stand_in::{Identity, Mood};
use crate::verdict::Verdict;
use crate::world::{CHAT_MODEL, World};

/// The assertion that catches a request id without an owner check.
pub const CAUGHT_BY: &str = "a foreign answer never reaches a client";

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("P5");
    let world = World::plan(setting).start().await?;
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await?;
    let body =
        json!({"model": CHAT_MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": "say 5"}]});

    // Two processes with one key: the newest wins, the older is told why and gets no work any more.
    let identity = Identity::fresh();
    let older = world.stand_in_as(&identity, "older").await?;
    for _ in 0..setting.counts.pick(3, 30) {
        verdict.count += 1;
        let newer = world.stand_in_as(&identity, "newer").await?;
        let code =
            until("the older tunnel to be cut", Duration::from_secs(8), async || Ok(older.closed_with()))
                .await?;
        verdict.check("the older tunnel is cut with epoch_stale", code == "epoch_stale", &code);
        verdict.check(
            "the newest epoch is larger",
            newer.epoch() > older.epoch(),
            format!("{} after {}", newer.epoch(), older.epoch()),
        );
        let reply = account.client.call("POST", "/v1/chat/completions", Some(&body)).await?;
        verdict.check(
            "work goes to the newest",
            reply.status == 200
                && older.notes().iter().all(|note| note.finished.is_some() || note.accepted.is_some()),
            reply.json(),
        );
        let before = older.notes().len();
        account.client.call("POST", "/v1/chat/completions", Some(&body)).await?;
        verdict.check(
            "the older gets no work",
            older.notes().len() == before,
            format!("{} notes", older.notes().len()),
        );
        newer.stop().await;
    }
    older.stop().await;

    // A node that answers for somebody else, and one that answers from an older epoch.
    for mood in [Mood::Impersonating, Mood::Outdated] {
        let liar = world.stand_in("liar").await?;
        liar.set_mood(mood);
        for _ in 0..setting.counts.pick(2, 20) {
            verdict.count += 1;
            let reply = account.client.call("POST", "/v1/chat/completions", Some(&body)).await?;
            verdict.check(
                CAUGHT_BY,
                reply.status >= 500,
                format!("{mood:?}: {} {}", reply.status, reply.json()),
            );
        }
        for note in liar.notes().iter().filter(|note| !note.request_id.is_empty() && note.attempt > 0) {
            let posts = world.money.settlements_of(&note.request_id).await?;
            let reward = world.money.reward_of(&note.request_id).await?;
            verdict.check(
                "a foreign answer is never settled",
                posts == 0 && reward == 0,
                format!("{mood:?}: {posts} settlements, reward {reward}"),
            );
        }
        liar.stop().await;
    }
    world.finish(&mut verdict).await?;
    Ok(verdict)
}
