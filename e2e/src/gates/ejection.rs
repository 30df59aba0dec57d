//! G5: one of five nodes misbehaves; clients do not notice, the node is ejected, and the last ones never silently.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use cxmpute_wire::MicroCredits;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::client::Client;
use crate::ground::until;
use crate::settings::Setting;
use crate::stand_in::{Mood, StandIn};
use crate::verdict::Verdict;
use crate::world::{CHAT_MODEL, World};

/// The assertion that catches a gateway that never ejects.
pub const CAUGHT_BY: &str = "a faulty node is ejected after five faults";

/// Requests at a time.
const CLIENTS: usize = 8;
/// How long a node may take to accept work, as in the product, and to its first token; 30 s in the product. A good node of
/// a busy machine must not miss them, or the gate would measure the machine.
const ACCEPT: Duration = Duration::from_secs(2);
const FIRST_TOKEN: Duration = Duration::from_secs(3);
/// How long a breaker stays open in this gate; 30 s in the product.
const OPEN: Duration = Duration::from_secs(20);

/// How the one misbehaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Case {
    Mood(Mood),
    /// Its tunnel ends again and again.
    Flapping,
}

/// The gate.
///
/// # Errors
/// The world could not be built.
pub async fn gate(setting: Setting) -> Result<Verdict> {
    let mut verdict = Verdict::new("G5");
    let cases = [
        Case::Mood(Mood::Rejecting),
        Case::Mood(Mood::Blackhole),
        Case::Mood(Mood::Failing),
        Case::Mood(Mood::Resetting { after: 0 }),
        Case::Mood(Mood::Resetting { after: 4 }),
        Case::Mood(Mood::Late { by: Duration::from_secs(30) }),
        Case::Flapping,
    ];
    for case in cases {
        one_of_five(setting, case, &mut verdict).await?;
    }
    asked_by_name(setting, &mut verdict).await?;
    the_last_one(setting, &mut verdict).await?;
    back_by_trial(setting, &mut verdict).await?;
    Ok(verdict)
}

async fn world(setting: Setting, open: Duration) -> Result<World> {
    World::plan(setting).relay_deadlines(ACCEPT, FIRST_TOKEN, open).start().await
}

async fn one_of_five(setting: Setting, case: Case, verdict: &mut Verdict) -> Result<()> {
    let world = world(setting, OPEN).await?;
    let mut nodes = Vec::new();
    for number in 0..5 {
        nodes.push(world.stand_in(&format!("node-{number}")).await?);
    }
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000_000)).await?;
    let bad = &nodes[0];
    let flapping = Arc::new(AtomicBool::new(case == Case::Flapping));
    if let Case::Mood(mood) = case {
        bad.set_mood(mood);
    }
    let requests = setting.counts.pick(160, 2_000);
    let (stop, flaps) = (flapping.clone(), async {
        let mut beat = tokio::time::interval(Duration::from_millis(setting.counts.pick(200, 2_000)));
        while flapping.load(Ordering::SeqCst) {
            beat.tick().await;
            bad.flap();
        }
    });
    let start = Instant::now();
    let traffic = async {
        let answered = ask_many(&account.client, requests).await;
        stop.store(false, Ordering::SeqCst);
        answered
    };
    let (answered, ()) = tokio::join!(traffic, flaps);
    verdict.count += requests as u64;
    verdict.check(
        "99.9 % succeed before the first byte",
        answered * 1_000 >= requests * 999,
        format!("{case:?}: {answered} of {requests}"),
    );
    let extra = attempts(&nodes).saturating_sub(requests);
    verdict.check(
        "extra attempts are at most 20 %",
        extra * 5 <= requests,
        format!("{case:?}: {extra} for {requests} requests"),
    );
    if case != Case::Flapping {
        let tried = bad.notes().len();
        // What was under way when the fifth fault came is not called back, and each time that is over is followed by a trial.
        let trials = usize::try_from(start.elapsed().as_secs() / OPEN.as_secs())?;
        let most = 5 + CLIENTS + trials;
        verdict.check(
            CAUGHT_BY,
            (1..=most).contains(&tried),
            format!("{case:?}: tried {tried} times, at most {most}"),
        );
    }
    drop(nodes);
    world.finish(verdict).await
}

/// A node that fails loses work by its score alone; one that clients ask for first is kept away by its breaker.
async fn asked_by_name(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = world(setting, OPEN).await?;
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000_000)).await?;
    let bad = world.stand_in("bad").await?;
    let _good = (world.stand_in("good").await?, world.stand_in("other").await?);
    bad.set_mood(Mood::Failing);
    let (requests, start) = (setting.counts.pick(40, 400), Instant::now());
    let mut body = question();
    body["provider"] = json!({"order": [bad.slug()]});
    let mut answered = 0;
    for _ in 0..requests {
        let reply = account.client.call("POST", "/v1/chat/completions", Some(&body)).await;
        answered += usize::from(reply.is_ok_and(|reply| reply.status == 200));
    }
    verdict.count += requests as u64;
    verdict.check(
        "99.9 % succeed before the first byte",
        answered == requests,
        format!("by name: {answered} of {requests}"),
    );
    let most = 5 + usize::try_from(start.elapsed().as_secs() / OPEN.as_secs())?;
    let tried = bad.notes().len();
    verdict.check(
        CAUGHT_BY,
        (1..=most).contains(&tried),
        format!("by name: tried {tried} times, at most {most}"),
    );
    world.finish(verdict).await
}

/// When most fail, at most half are away; when all fail, the last is asked on, and serves the moment it can.
async fn the_last_one(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = world(setting, OPEN).await?;
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000_000)).await?;
    let nodes = [world.stand_in("a").await?, world.stand_in("b").await?];
    for node in &nodes {
        node.set_mood(Mood::Failing);
    }
    ask_many(&account.client, 40).await;
    let before = attempts(&nodes);
    ask_many(&account.client, 20).await;
    verdict.check(
        "at most half are ejected",
        attempts(&nodes) > before,
        format!("{} attempts after {before}", attempts(&nodes)),
    );
    for node in &nodes {
        node.set_mood(Mood::Willing);
    }
    let answered = ask_many(&account.client, 20).await;
    verdict.count += 80;
    verdict.check("the last node stays and serves when it can", answered == 20, format!("{answered} of 20"));
    world.finish(verdict).await
}

async fn back_by_trial(setting: Setting, verdict: &mut Verdict) -> Result<()> {
    let world = world(setting, Duration::from_secs(1)).await?;
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000_000)).await?;
    let (bad, _good, _other) =
        (world.stand_in("bad").await?, world.stand_in("good").await?, world.stand_in("other").await?);
    bad.set_mood(Mood::Failing);
    let failed = until("the fifth fault", Duration::from_secs(60), async || {
        ask_many(&account.client, CLIENTS).await;
        Ok((bad.notes().len() >= 5).then_some(()))
    })
    .await;
    bad.set_mood(Mood::Willing);
    let back = until("the node to be back", Duration::from_secs(60), async || {
        ask_many(&account.client, 4).await;
        let finished = bad.notes().iter().filter(|note| note.finished.is_some()).count();
        Ok((finished >= 2).then_some(()))
    })
    .await;
    verdict.count += bad.notes().len() as u64;
    verdict.check(
        "it is back by a trial",
        back.is_ok() && failed.is_ok(),
        format!("{back:?} after {failed:?}"),
    );
    world.finish(verdict).await
}

fn attempts(nodes: &[StandIn]) -> usize {
    nodes.iter().map(|node| node.notes().len()).sum()
}

fn question() -> serde_json::Value {
    json!({"model": CHAT_MODEL, "max_tokens": 16, "messages": [{"role": "user", "content": "say 8"}]})
}

/// How many of so many requests are answered with 200.
async fn ask_many(client: &Client, requests: usize) -> usize {
    let mut tasks = JoinSet::new();
    for number in 0..CLIENTS {
        let client = client.clone();
        let share = requests / CLIENTS + usize::from(number < requests % CLIENTS);
        tasks.spawn(async move {
            let body = question();
            let mut answered = 0;
            for _ in 0..share {
                let reply = client.call("POST", "/v1/chat/completions", Some(&body)).await;
                answered += usize::from(reply.is_ok_and(|reply| reply.status == 200));
            }
            answered
        });
    }
    tasks.join_all().await.into_iter().sum()
}
