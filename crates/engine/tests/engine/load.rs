//! What happens when there is more to do than slots, and when callers go away.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::joined;
use crate::program::{Program, TINY};

const CHAT: &str = "/v1/chat/completions";

fn story() -> Value {
    json!({"model": TINY, "temperature": 0, "messages": [{"role": "user", "content": "Tell me a story."}]})
}

#[tokio::test]
async fn a_caller_that_goes_away_frees_its_slot() {
    let engine = Program::start(&["--slots", "1", "--pace", "20"]).await;
    let mut events = engine.connect().await.stream(CHAT, &story()).await;
    while !events.next().await.unwrap().contains("content") {}
    engine.wait_for_load(1, 0).await;
    drop(events);
    let gone = Instant::now();
    engine.wait_for_load(0, 0).await;
    // One token takes 50 ms; the whole story would take 5 s and more.
    assert!(gone.elapsed() < Duration::from_secs(1), "{:?}", gone.elapsed());

    let whole = tokio::time::timeout(Duration::from_millis(200), async {
        engine.connect().await.post(CHAT, &story()).await
    });
    assert!(whole.await.is_err(), "the story is told at the owner's pace");
    let gone = Instant::now();
    engine.wait_for_load(0, 0).await;
    assert!(gone.elapsed() < Duration::from_secs(1), "{:?}", gone.elapsed());
}

#[tokio::test]
async fn a_full_queue_refuses_and_a_waiting_caller_that_leaves_makes_room() {
    let engine = Program::start(&["--slots", "1", "--queue", "1", "--pace", "5"]).await;
    let running = engine.connect().await.stream(CHAT, &story()).await;
    engine.wait_for_load(1, 0).await;
    let waiting = engine.connect().await.stream(CHAT, &story()).await;
    engine.wait_for_load(1, 1).await;
    let refused = engine.connect().await.post(CHAT, &story()).await;
    assert_eq!(refused.error(), (429, "queue_full".into()));
    drop(waiting);
    engine.wait_for_load(1, 0).await;
    let mut next = engine.connect().await.stream(CHAT, &story()).await;
    engine.wait_for_load(1, 1).await;
    drop(running);
    assert!(next.next().await.unwrap().contains("assistant"), "the waiting request begins");
}

#[tokio::test]
async fn eight_streams_at_once_are_all_whole() {
    let engine = Program::start(&["--slots", "8"]).await;
    let alone = engine.connect().await.post(CHAT, &story()).await;
    let tokens = alone.json()["usage"]["completion_tokens"].as_u64().unwrap();
    let begun = Instant::now();
    let mut streams = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let client = engine.connect().await;
        streams.spawn(async move { client.stream(CHAT, &story()).await.rest().await });
    }
    while let Some(events) = streams.join_next().await {
        assert_eq!(joined(&events.unwrap()), alone.content());
    }
    let spent = begun.elapsed();
    eprintln!("8 streams: {} tokens in {spent:?}", tokens * 8);
    engine.wait_for_load(0, 0).await;
}

#[tokio::test]
async fn the_pace_is_the_owners() {
    let engine = Program::start(&["--pace", "100"]).await;
    let begun = Instant::now();
    let answer = engine.connect().await.post(CHAT, &story()).await.json();
    let tokens = u32::try_from(answer["usage"]["completion_tokens"].as_u64().unwrap()).unwrap();
    let least = Duration::from_millis(10) * (tokens - 1);
    assert!(begun.elapsed() >= least, "{tokens} tokens in {:?}", begun.elapsed());
}
