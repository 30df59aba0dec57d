//! GR13: the head of a stream is held back for the first token, so that early failures keep their status; then silence is
//! filled with comments in a rhythm. The product's span is 10 s; these worlds have a shorter one.

use std::time::Duration;

use cxmpute_e2e::client::Client;
use cxmpute_e2e::paths::Path;
use cxmpute_e2e::settings::Setting;
use cxmpute_e2e::stand_in::{Mood, StandIn, text};
use cxmpute_e2e::verdict::Verdict;
use cxmpute_e2e::world::World;
use cxmpute_wire::MicroCredits;
use tokio::time::Instant;

/// The span of these worlds.
const HELD: Duration = Duration::from_millis(200);

/// A silence that is longer, by a few rounds.
const SILENCE: Duration = Duration::from_millis(1_100);

/// A span that nothing here reaches.
const NEVER: Duration = Duration::from_secs(60);

const COMMENT: &str = ": waiting\n\n";

async fn world(held: Duration, first_token: Duration) -> (World, StandIn, Client) {
    let plan = World::plan(Setting::clean()).headers_held(held);
    let world = plan.relay_deadlines(NEVER, first_token, NEVER).queue(HELD).start().await.unwrap();
    let node = world.stand_in("node").await.unwrap();
    let account = world.account("waiter@example.org", MicroCredits(1_000_000_000)).await.unwrap();
    (world, node, account.client)
}

/// When the head came, its status, and the whole body.
async fn ask(client: &Client, prompt: &str) -> (Duration, u16, String) {
    let start = Instant::now();
    let body = Path::ChatStream.body(prompt, 64);
    let mut conversation = client.open("POST", Path::ChatStream.url(), Some(&body)).await.unwrap();
    let head = start.elapsed();
    let rest = conversation.rest().await.unwrap();
    (head, conversation.status, String::from_utf8(rest).unwrap())
}

async fn finish(world: World) {
    let mut verdict = Verdict::new("GR13");
    world.finish(&mut verdict).await.unwrap();
    assert_eq!(verdict.broken().len(), 0, "{:?}", verdict.broken());
}

#[tokio::test]
async fn a_late_first_token_is_waited_for_with_comments() {
    let (world, node, client) = world(HELD, NEVER).await;
    node.set_mood(Mood::Late { by: SILENCE });
    let start = Instant::now();
    let (head, status, body) = ask(&client, "say 1").await;
    assert_eq!(status, 200);
    assert!((HELD..SILENCE).contains(&head), "the head came after {head:?}");
    let rounds = usize::try_from(start.elapsed().as_millis() / HELD.as_millis()).unwrap();
    let first = body.find("data: ").unwrap();
    let before = body[..first].matches(COMMENT).count();
    // The first comment follows the head at once or a span later; a loaded machine may skip some.
    assert!((2..=rounds + 1).contains(&before), "{before} in {rounds} rounds: {body}");
    assert_eq!(body[..first].len(), before * COMMENT.len(), "only comments before the first event: {body}");
    assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
    finish(world).await;
}

#[tokio::test]
async fn silence_between_tokens_is_filled_with_comments_that_are_not_billed() {
    let (world, _node, client) = world(HELD, NEVER).await;
    let (_, status, body) = ask(&client, "pace 3 700").await;
    assert_eq!(status, 200);
    let places: Vec<usize> = body.match_indices("data: {").map(|(at, _)| at).collect();
    let between = body[places[1]..*places.last().unwrap()].matches(COMMENT).count();
    assert!(between >= 2, "{body}");
    assert!(body.ends_with("data: [DONE]\n\n"), "{body}");
    let said: String = body
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(said, text(3));
    finish(world).await;
}

#[tokio::test]
async fn a_failure_after_the_head_is_an_event_and_before_it_a_status() {
    let (late, node, client) = world(HELD, SILENCE).await;
    node.set_mood(Mood::Late { by: NEVER });
    let (head, status, body) = ask(&client, "say 1").await;
    assert!(head < SILENCE, "{head:?}");
    assert_eq!(status, 200);
    assert!(body.contains(COMMENT) && body.contains("first_token_timeout"), "{body}");
    assert!(!body.contains("[DONE]"), "{body}");
    finish(late).await;

    let (held, node, client) = world(NEVER, SILENCE).await;
    node.set_mood(Mood::Late { by: NEVER });
    let (head, status, body) = ask(&client, "say 1").await;
    assert!(head >= SILENCE, "{head:?}");
    assert_eq!(status, 504);
    assert!(!body.contains(COMMENT) && body.contains("first_token_timeout"), "{body}");
    finish(held).await;
}

#[tokio::test]
async fn a_quick_answer_has_no_comments() {
    let (world, _node, client) = world(HELD, NEVER).await;
    let (_, status, body) = ask(&client, "say 8").await;
    assert_eq!((status, body.matches(':').count() > 0, body.contains(COMMENT)), (200, true, false));
    finish(world).await;
}
