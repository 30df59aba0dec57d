//! Work and the faults of engines, seen from the gateway's end of the tunnel.

use std::time::Duration;

use bytes::Bytes;
use cxmpute_node::engines::fake::{Fault, Script};
use cxmpute_tunnel::{WorkError, WorkPath};
use cxmpute_wire::control::ServiceState;
use cxmpute_wire::{Code, Epoch, Generation, Millis};

use crate::gateway::{World, read, service, soon};

/// The question is the fault.
fn director(_: &str, request: &serde_json::Value) -> Script {
    let script = Script::saying(&["one ", "two ", "three"]);
    match request["messages"][0]["content"].as_str().unwrap_or_default() {
        "refuse" => script.with(Fault::Refuse(429)),
        "too long" => script.with(Fault::Refuse(400)),
        "fail" => script.with(Fault::FailFirst),
        "break" => script.with(Fault::BreakAfter(2)),
        "hang" => script.with(Fault::HangAfter(1)),
        "no done" => script.with(Fault::NoDone),
        "slow" => Script { delay: Duration::from_millis(50), ..script },
        _ => script,
    }
}

fn refused(error: WorkError) -> Option<Code> {
    match error {
        WorkError::Refused { code, .. } => code,
        other => panic!("not refused: {other}"),
    }
}

#[tokio::test]
async fn an_answer_comes_through_whole() {
    let world = World::start(4, director).await;
    let mut stream = world.tunnel.chat("hello");
    let accepted = soon(stream.accepted()).await.unwrap();
    assert_eq!((accepted.request_id.as_str(), accepted.epoch), ("req_1", Epoch(1)));
    let (text, error) = read(&mut stream).await;
    assert_eq!(error, None);
    let events: Vec<&str> = text.split_terminator("\n\n").collect();
    assert_eq!(events.len(), 6, "{text}");
    assert!(events.iter().all(|event| event.starts_with("data: ")) && events[5] == "data: [DONE]");
    assert!(events[4].contains("\"completion_tokens\":3"));
    let head = world.tunnel.head("embeddings:e", WorkPath::Embeddings);
    let mut stream = world.tunnel.link.open(&head, Bytes::from_static(b"{\"input\":\"x\"}")).unwrap();
    soon(stream.accepted()).await.unwrap();
    let (text, error) = read(&mut stream).await;
    assert!(error.is_none() && text.contains("0.8"), "{text}");
    world.close().await;
}

#[tokio::test]
async fn what_an_engine_refuses_was_never_accepted() {
    let world = World::start(4, director).await;
    for (question, code) in [("refuse", Code::QueueFull), ("too long", Code::InvalidParameter)] {
        let error = soon(world.tunnel.chat(question).accepted()).await.unwrap_err();
        assert_eq!(refused(error), Some(code), "{question}");
    }
    world.close().await;
}

#[tokio::test]
async fn an_engine_that_fails_ends_in_one_error_event() {
    let world = World::start(4, director).await;
    for (question, tokens) in [("fail", 0), ("break", 2), ("no done", 3)] {
        let mut stream = world.tunnel.chat(question);
        soon(stream.accepted()).await.unwrap();
        let (text, error) = read(&mut stream).await;
        assert_eq!(error, None, "{question}");
        let events: Vec<&str> = text.split_terminator("\n\n").collect();
        let said =
            events.iter().filter(|event| event.contains("\"content\":\"") && !event.contains("\"\"")).count();
        assert_eq!(said, tokens, "{question}: {text}");
        let errors: Vec<_> = events.iter().filter(|event| event.contains("\"error\"")).collect();
        assert!(!errors.is_empty() && errors.iter().all(|event| event.contains("engine_failed")), "{text}");
        assert!(!text.contains("[DONE]"));
    }
    world.close().await;
}

#[tokio::test]
async fn hanging_up_stops_the_engine_at_once() {
    let world = World::start(4, director).await;
    for question in ["hang", "slow"] {
        let mut stream = world.tunnel.chat(question);
        soon(stream.accepted()).await.unwrap();
        soon(stream.chunk()).await.unwrap().unwrap();
        assert_eq!(world.fake.running(), 1);
        let hung_up = tokio::time::Instant::now();
        drop(stream);
        soon(async {
            while world.fake.running() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        // 250 ms by NR17, asserted at four times the value.
        assert!(hung_up.elapsed() < Duration::from_secs(1), "{question}: {:?}", hung_up.elapsed());
    }
    world.close().await;
}

#[tokio::test]
async fn an_engine_that_hangs_is_left_at_the_deadline() {
    let world = World::start(4, director).await;
    let mut head = world.tunnel.head("llm:a", WorkPath::ChatCompletions);
    head.deadline = Millis(300);
    let body = serde_json::json!({"stream": true, "messages": [{"role": "user", "content": "hang"}]});
    let mut stream = world.tunnel.link.open(&head, Bytes::from(body.to_string())).unwrap();
    soon(stream.accepted()).await.unwrap();
    let (text, error) = read(&mut stream).await;
    assert!(error.is_none() && text.contains("deadline_exceeded"), "{text}");
    world.close().await;
}

#[tokio::test]
async fn an_answer_that_is_too_long_is_cut() {
    let world = World::start(4, director).await;
    let mut head = world.tunnel.head("llm:a", WorkPath::ChatCompletions);
    head.max_bytes = 300;
    let body = serde_json::json!({"stream": true, "messages": [{"role": "user", "content": "slow"}]});
    let mut stream = world.tunnel.link.open(&head, Bytes::from(body.to_string())).unwrap();
    soon(stream.accepted()).await.unwrap();
    let (text, error) = read(&mut stream).await;
    assert!(error.is_none() && text.contains("too long") && !text.contains("[DONE]"), "{text}");
    world.close().await;
}

#[tokio::test]
async fn work_that_is_not_for_this_node_is_refused() {
    let mut world = World::start(1, director).await;
    let body = || Bytes::from_static(b"{\"stream\":true,\"messages\":[{\"content\":\"hang\"}]}");
    let refusal = async |world: &World, change: fn(&mut cxmpute_tunnel::WorkHead)| {
        let mut head = world.tunnel.head("llm:a", WorkPath::ChatCompletions);
        change(&mut head);
        let mut stream = world.tunnel.link.open(&head, body()).unwrap();
        refused(soon(stream.accepted()).await.unwrap_err())
    };
    assert_eq!(refusal(&world, |head| head.epoch = Epoch(7)).await, Some(Code::EpochStale));
    assert_eq!(refusal(&world, |head| head.generation = Generation(0)).await, Some(Code::GenerationStale));
    assert_eq!(refusal(&world, |head| head.service = "llm:b".parse().unwrap()).await, Some(Code::NotReady));
    let mut busy = world.tunnel.chat("hang");
    soon(busy.accepted()).await.unwrap();
    assert_eq!(refusal(&world, |_| {}).await, Some(Code::CapacityFull));
    drop(busy);
    // A plan that changes nothing keeps the service, and work of the plan before is still its own.
    world.tunnel.publish(vec![service("llm:a"), service("embeddings:e")]).await;
    world.tunnel.heartbeat().await;
    let mut head = world.tunnel.head("llm:a", WorkPath::ChatCompletions);
    head.generation = Generation(1);
    let stream = soon(async {
        loop {
            let question = Bytes::from_static(b"{\"stream\":true,\"messages\":[]}");
            let mut stream = world.tunnel.link.open(&head, question).unwrap();
            match stream.accepted().await {
                Ok(_) => return stream,
                Err(error) => assert_eq!(refused(error), Some(Code::CapacityFull)),
            }
        }
    });
    drop(stream.await);
    // A service that left the plan takes no work.
    world.tunnel.publish(vec![service("embeddings:e")]).await;
    soon(async {
        while world.tunnel.heartbeat().await.services.iter().any(|s| s.service_id.as_str() == "llm:a") {}
    })
    .await;
    assert_eq!(refusal(&world, |_| {}).await, Some(Code::NotReady));
    world.tunnel.publish(vec![service("llm:a")]).await;
    world.tunnel.until("llm:a", ServiceState::Ready).await;
    world.close().await;
}

#[tokio::test]
async fn a_drain_finishes_what_runs_and_takes_nothing_new() {
    let mut world = World::start(4, director).await;
    let mut running = world.tunnel.chat("slow");
    soon(running.accepted()).await.unwrap();
    world.node.tasks.soft().cancel();
    soon(async {
        while world.tunnel.heartbeat().await.owner != cxmpute_wire::control::OwnerState::Draining {}
    })
    .await;
    let error = soon(world.tunnel.chat("hello").accepted()).await.unwrap_err();
    assert_eq!(refused(error), Some(Code::Draining));
    let (text, error) = read(&mut running).await;
    assert!(error.is_none() && text.ends_with("data: [DONE]\n\n"), "{text} {error:?}");
    world.close().await;
}
