//! Money that must not be made, and answers that must not be free: nodes that pack many tokens into one event, clients
//! that set a deadline of their own, nodes that send without end.

use std::time::Duration;

use cxmpute_e2e::client::Reply;
use cxmpute_e2e::ground::alone;
use cxmpute_e2e::paths::{DONE, Path, settled};
use cxmpute_e2e::settings::Setting;
use cxmpute_e2e::stand_in::{Script, Step};
use cxmpute_e2e::verdict::Verdict;
use cxmpute_e2e::world::{SEEING_MODEL, World};
use cxmpute_wire::MicroCredits;
use serde_json::{Value, json};

const RICH: MicroCredits = MicroCredits(1_000_000_000);

async fn world() -> World {
    World::plan(Setting::clean()).services().start().await.unwrap()
}

async fn finish(world: World) {
    let mut verdict = Verdict::new("money");
    world.finish(&mut verdict).await.unwrap();
    verdict.must_hold();
}

/// A request without a limit: 1,024 tokens are held at first.
fn unlimited(path: Path, script: &str) -> Value {
    let mut body = path.body(&format!("play {script}"), 1);
    body.as_object_mut().unwrap().remove("max_tokens");
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tokens_in_few_events_are_held_before_they_are_relayed() {
    let _alone = alone().unwrap();
    let world = world().await;
    let node = world.stand_in("friend").await.unwrap();
    let many = "far ".repeat(450);
    for path in [Path::ChatStream, Path::ChatWhole] {
        let mut steps = vec![Step::Raw(path.piece(&many)); 4];
        steps.extend([Step::Raw(path.finish("stop")), Step::Raw(DONE)]);
        let name = format!("packed-{path:?}");
        node.learn(&name, Script::of(steps));
        let body = unlimited(path, &name);
        let prompt = world.money.prompt_tokens(&body).unwrap();
        // Who can pay gets and pays all of it; who cannot gets what was held, and the node its share of that.
        for (money, events, reason) in [(RICH, 4, "stop"), (MicroCredits(600), 1, "length")] {
            let account = world.account(&format!("{name}-{events}@example.org"), money).await.unwrap();
            let got = path.ask(&account.client, &body).await.unwrap();
            assert!(got.complete, "{name}: {} {}", got.reply.status, got.code);
            assert_eq!(
                (got.text.as_str(), got.finish.as_deref()),
                (&*many.repeat(events), Some(reason)),
                "{name}"
            );
            let row = got.settled(&account.client).await.unwrap();
            let tokens = world.money.count(&got.text).unwrap();
            assert_eq!(row["tokens_completion"], tokens, "{name}: {row}");
            let cost = world.cost_of(&row).unwrap();
            assert_eq!(cost, world.price(prompt, tokens).unwrap(), "{name}");
            assert!(cost <= money.0, "{name}");
            let reward = world.money.reward_of(&got.request_id).await.unwrap();
            assert_eq!(reward, world.share(cost).unwrap(), "{name}: nothing but the charge pays the node");
        }
    }
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_characters_are_priced_no_more_are_paid_than_are_held() {
    let _alone = alone().unwrap();
    let world = world().await;
    let node = world.stand_in("friend").await.unwrap();
    let path = Path::ChatWhole;
    let mut steps = vec![Step::Raw(path.piece(&"0123456789abcdef".repeat(4))); 400];
    steps.extend([Step::Raw(path.finish("stop")), Step::Raw(DONE)]);
    node.learn("wordy", Script::of(steps));
    let account = world.account("asker@example.org", RICH).await.unwrap();
    let mut body = path.body("play wordy", 1);
    body["model"] = json!(SEEING_MODEL);
    let got = path.ask(&account.client, &body).await.unwrap();
    assert!(got.complete, "{} {}", got.reply.status, got.code);
    let cost = world.cost_of(&got.settled(&account.client).await.unwrap()).unwrap();
    let characters = i64::try_from("play wordy".len() + 16).unwrap();
    assert_eq!(cost, 2 * characters, "the prompt, and the characters of one token");
    assert!(got.text.len() <= 9 * 16, "{} characters for one token", got.text.len());
    assert_eq!(world.money.reward_of(&got.request_id).await.unwrap(), cost * 9 / 10);
    finish(world).await;
}

fn request_id(reply: &Reply) -> &str {
    reply.header("x-request-id").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_of_the_clients_own_makes_nothing_free() {
    let _alone = alone().unwrap();
    let world = world().await;
    let node = world.stand_in("node").await.unwrap();
    let account = world.account("hasty@example.org", RICH).await.unwrap();
    let hurry = Duration::from_millis(700);
    let said = "one two three four five";
    for path in [Path::ChatStream, Path::ChatWhole, Path::CompletionStream, Path::CompletionWhole] {
        for (name, steps, text) in [
            ("spoken", vec![Step::Raw(path.piece(said)), Step::Hold], said),
            ("silent", vec![Step::Hold], ""),
        ] {
            let name = format!("{name}-{path:?}");
            node.learn(&name, Script::of(steps));
            let body = path.body(&format!("play {name}"), 5_000);
            let reply = account.client.post_within(path.url(), &body, hurry).await.unwrap();
            let told = String::from_utf8_lossy(&reply.body).into_owned();
            // A stream is delivered as it comes; of a whole answer, nothing was.
            let text = if path.streamed() { text } else { "" };
            assert_eq!(reply.status, if text.is_empty() { 504 } else { 200 }, "{name}: {told}");
            assert!(told.contains("deadline_exceeded") && !told.contains("[DONE]"), "{name}: {told}");
            let row = settled(&account.client, request_id(&reply), Duration::from_secs(10)).await.unwrap();
            let prompt = match path.is_chat() {
                true => world.money.prompt_tokens(&body).unwrap(),
                false => world.money.completion_prompt_tokens(body["prompt"].as_str().unwrap()).unwrap(),
            };
            let cost = world.cost_of(&row).unwrap();
            let spoken = if text.is_empty() { 0 } else { world.money.count(text).unwrap() };
            let price = world.price(prompt, spoken).unwrap();
            assert_eq!((cost, &row["outcome"]), (price, &json!("client_gone")), "{name}: {row}");
            let reward = world.money.reward_of(request_id(&reply)).await.unwrap();
            assert_eq!(reward, world.share(cost).unwrap(), "{name}");
        }
    }
    // Vectors pay only what is delivered.
    node.learn("silent-vectors", Script::of(vec![Step::Hold]));
    let body = Path::Embeddings.body("play silent-vectors", 1);
    let reply = account.client.post_within(Path::Embeddings.url(), &body, hurry).await.unwrap();
    assert_eq!(reply.error_code(), "deadline_exceeded");
    let row = settled(&account.client, request_id(&reply), Duration::from_secs(10)).await.unwrap();
    assert_eq!(world.cost_of(&row).unwrap(), 0, "{row}");
    finish(world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_again_and_again_is_asked_no_more() {
    let _alone = alone().unwrap();
    let world = world().await;
    let nodes = [world.stand_in("endless").await.unwrap(), world.stand_in("good").await.unwrap()];
    let path = Path::ChatWhole;
    nodes[0].learn("long", Script::of(vec![Step::Repeat(path.piece(" the"), 10_000)]));
    let steps = vec![Step::Raw(path.piece("Done.")), Step::Raw(path.finish("stop")), Step::Raw(DONE)];
    nodes[1].learn("long", Script::of(steps));
    let account = world.account("asker@example.org", RICH).await.unwrap();
    let mut body = path.body("play long", 8);
    body["provider"] = json!({"order": [nodes[0].slug()]});
    for n in 0..12 {
        let got = path.ask(&account.client, &body).await.unwrap();
        assert!(got.complete, "{n}: {} {}", got.reply.status, got.code);
    }
    assert_eq!(nodes[0].notes().len(), 5, "its breaker opens after five faults");
    drop(nodes);
    finish(world).await;
}
