//! NR48, section 6 of the node's rules: work that a node gives up for its owner goes elsewhere and counts against nobody.

use std::time::Duration;

use cxmpute_e2e::client::{Client, Reply};
use cxmpute_e2e::ground::until;
use cxmpute_e2e::paths::Path;
use cxmpute_e2e::settings::Setting;
use cxmpute_e2e::stand_in::{Mood, StandIn};
use cxmpute_e2e::verdict::Verdict;
use cxmpute_e2e::world::World;
use cxmpute_wire::MicroCredits;
use serde_json::json;

/// Faults in a row that open a breaker, and some more.
const ROUNDS: usize = 8;
/// Patience of these tests; a breaker stays open for longer.
const SOON: Duration = Duration::from_secs(20);
const NEVER: Duration = Duration::from_secs(120);

async fn world() -> (World, Client) {
    let plan = World::plan(Setting::clean()).relay_deadlines(NEVER, NEVER, NEVER);
    let world = plan.queue(Duration::from_millis(300)).start().await.unwrap();
    let account = world.account("asker@example.org", MicroCredits(1_000_000_000)).await.unwrap();
    (world, account.client)
}

/// Asks with this node first.
async fn ask(client: &Client, path: Path, first: &StandIn) -> Reply {
    let mut body = path.body("say 3", 64);
    body["provider"] = json!({"order": [first.slug()]});
    client.call("POST", path.url(), Some(&body)).await.unwrap()
}

async fn finish(world: World) {
    let mut verdict = Verdict::new("NR48");
    world.finish(&mut verdict).await.unwrap();
    assert_eq!(verdict.broken().len(), 0, "{:?}", verdict.broken());
}

#[tokio::test]
async fn work_given_up_for_an_owner_is_done_by_another_node_and_blames_nobody() {
    let (world, client) = world().await;
    let (resting, _other) =
        (world.stand_in("resting").await.unwrap(), world.stand_in("other").await.unwrap());
    for path in [Path::ChatStream, Path::Embeddings] {
        let before = resting.notes().len();
        resting.set_mood(Mood::Withdrawing { after: 0 });
        // Each time it is left alone for a moment, so more requests than withdrawals are made; all are answered.
        until("the withdrawals", SOON, async || {
            let reply = ask(&client, path, &resting).await;
            assert_eq!(reply.status, 200, "{path:?}: {}", String::from_utf8_lossy(&reply.body));
            Ok((resting.notes().len() >= before + ROUNDS).then_some(()))
        })
        .await
        .unwrap();
        // A breaker would keep it away for two minutes now.
        resting.set_mood(Mood::Willing);
        until("work for the node that rested", SOON, async || {
            assert_eq!(ask(&client, path, &resting).await.status, 200);
            Ok(resting.notes().last().is_some_and(|note| note.finished.is_some()).then_some(()))
        })
        .await
        .unwrap();
    }
    finish(world).await;
}

#[tokio::test]
async fn where_nobody_else_can_do_it_the_client_is_told_and_pays_nothing() {
    let (world, client) = world().await;
    let node = world.stand_in("only").await.unwrap();
    node.set_mood(Mood::Withdrawing { after: 0 });
    let reply = ask(&client, Path::ChatStream, &node).await;
    assert_eq!((reply.status, reply.error_code().as_str()), (503, "no_provider"));
    assert!(
        reply.header("retry-after").is_some() && reply.json().to_string().contains("owner"),
        "{}",
        reply.json()
    );
    // After the first content nobody else can go on.
    node.set_mood(Mood::Withdrawing { after: 2 });
    let cut = until("an answer that is cut off", SOON, async || {
        let reply = ask(&client, Path::ChatStream, &node).await;
        Ok((reply.status == 200).then(|| String::from_utf8(reply.body.to_vec()).unwrap()))
    });
    let text = cut.await.unwrap();
    assert!(text.contains("provider_lost") && !text.contains("[DONE]"), "{text}");
    assert_eq!(world.money.charges().await.unwrap().iter().map(|(_, charge)| charge).sum::<i64>(), 0);
    finish(world).await;
}
