use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_tunnel::ping::PingConfig;
use cxmpute_tunnel::{Incoming, LinkConfig, OpenError, WorkError, dial};
use cxmpute_wire::{Code, Epoch};

use crate::world::{Gateway, SLACK, World, config, counting, head, key, soon, until, work};

#[tokio::test]
async fn work_goes_out_and_its_answer_streams_back() {
    let mut world = World::start().await;
    for number in 0..50 {
        let mut stream = world.link.open(&head(number), Bytes::from(format!("question {number}"))).unwrap();
        let mut request = work(&mut world.node).await;
        assert_eq!(request.head, head(number));
        assert_eq!(soon(request.body(1000)).await.unwrap(), format!("question {number}"));
        let mut responder = request.accept().unwrap();
        let accepted = soon(stream.accepted()).await.unwrap();
        assert_eq!((accepted.request_id, accepted.epoch), (head(number).request_id, Epoch(1)));
        for part in 0..20 {
            let event = Bytes::from(format!("data: {part}\n\n"));
            soon(responder.send(event.clone())).await.unwrap();
            // One event is one chunk, as long as the reader keeps up.
            assert_eq!(soon(stream.chunk()).await.unwrap().unwrap(), event);
        }
        responder.finish();
        assert!(soon(stream.chunk()).await.is_none());
    }
    assert_eq!(world.link.open_streams(), 0);
    world.close().await;
}

#[tokio::test]
async fn an_empty_body_ends_the_request() {
    let mut world = World::start().await;
    let _stream = world.link.open(&head(1), Bytes::new()).unwrap();
    let mut request = work(&mut world.node).await;
    assert!(soon(request.body(10)).await.unwrap().is_empty());
}

#[tokio::test]
async fn large_bodies_pass_both_ways_and_too_large_ones_are_noticed() {
    let mut world = World::start().await;
    let body = Bytes::from((0..8 * 1024 * 1024_u32).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    let mut stream = world.link.open(&head(1), body.clone()).unwrap();
    let mut request = work(&mut world.node).await;
    let received = soon(request.body(16 * 1024 * 1024)).await.unwrap();
    assert!(received == body);
    let mut responder = request.accept().unwrap();
    let sending = tokio::spawn(async move {
        responder.send(received).await.unwrap();
        responder.finish();
    });
    soon(stream.accepted()).await.unwrap();
    let mut back = Vec::new();
    while let Some(chunk) = soon(stream.chunk()).await {
        back.extend_from_slice(&chunk.unwrap());
    }
    assert!(back == body);
    sending.await.unwrap();

    let mut stream = world.link.open(&head(2), body).unwrap();
    let mut request = work(&mut world.node).await;
    assert!(soon(request.body(1024)).await.is_err());
    request.refuse(Code::BodyTooLarge, "too large");
    let error = soon(stream.accepted()).await.unwrap_err();
    assert!(matches!(error, WorkError::Refused { code: Some(Code::BodyTooLarge), .. }), "{error:?}");
    drop(stream);
    world.close().await;
}

#[tokio::test]
async fn a_refusal_carries_status_code_and_sentence() {
    let mut world = World::start().await;
    let mut stream = world.link.open(&head(1), Bytes::from_static(b"x")).unwrap();
    work(&mut world.node).await.refuse(Code::CapacityFull, "all slots are taken");
    let refused = WorkError::Refused {
        status: 429,
        code: Some(Code::CapacityFull),
        message: "all slots are taken".into(),
    };
    assert_eq!(soon(stream.accepted()).await, Err(refused));
}

#[tokio::test]
async fn work_of_another_epoch_does_not_reach_the_node() {
    let mut world = World::start().await;
    let mut stale = head(1);
    stale.epoch = Epoch(7);
    let mut stream = world.link.open(&stale, Bytes::new()).unwrap();
    let error = tokio::select! {
        result = stream.accepted() => result.unwrap_err(),
        work = world.node.next() => panic!("{work:?}"),
    };
    assert!(matches!(error, WorkError::Refused { code: Some(Code::EpochStale), .. }), "{error:?}");
}

#[tokio::test]
async fn a_dropped_stream_is_a_cancel_that_the_node_sees_at_once() {
    let mut world = World::start().await;
    // Before acceptance, while idle, and while sending.
    for (number, phase) in ["waiting", "idle", "sending"].into_iter().enumerate() {
        let mut stream = world.link.open(&head(number as u64), Bytes::from_static(b"x")).unwrap();
        let mut request = work(&mut world.node).await;
        let dropped;
        if phase == "waiting" {
            dropped = Instant::now();
            drop(stream);
            soon(request.cancelled()).await;
        } else {
            let mut responder = request.accept().unwrap();
            soon(stream.accepted()).await.unwrap();
            dropped = Instant::now();
            drop(stream);
            if phase == "idle" {
                soon(responder.cancelled()).await;
            } else {
                soon(async { while responder.send(Bytes::from(vec![0; 1000])).await.is_ok() {} }).await;
            }
        }
        let took = dropped.elapsed();
        assert!(took <= Duration::from_millis(250) * SLACK, "{phase}: {took:?}");
    }
    assert_eq!(world.link.open_streams(), 0);
    world.close().await;
}

/// One piece of work and its answer.
async fn there_and_back(world: &mut World) {
    let mut stream = world.link.open(&head(9), Bytes::from_static(b"x")).unwrap();
    let mut responder = work(&mut world.node).await.accept().unwrap();
    soon(responder.send(Bytes::from_static(b"x"))).await.unwrap();
    responder.finish();
    soon(stream.accepted()).await.unwrap();
    while let Some(chunk) = soon(stream.chunk()).await {
        chunk.unwrap();
    }
}

#[tokio::test]
async fn a_slow_client_holds_back_only_its_own_stream() {
    let mut world = World::start().await;
    let mut slow = world.link.open(&head(1), Bytes::from_static(b"x")).unwrap();
    let mut responder = work(&mut world.node).await.accept().unwrap();
    soon(slow.accepted()).await.unwrap();
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    const TOTAL: usize = 64 * 1024 * 1024;
    let sending = tokio::spawn(async move {
        while counter.load(Ordering::Relaxed) < TOTAL {
            responder.send(Bytes::from(vec![1; 64 * 1024])).await.unwrap();
            counter.fetch_add(64 * 1024, Ordering::Relaxed);
        }
        responder.finish();
    });
    // Until the sender stands still: nothing more is sent while other work goes there and back again and again, which
    // both ends of the connection must be at work for.
    let (mut last, mut rounds) = (usize::MAX, 0);
    while rounds < 20 {
        let now = sent.load(Ordering::Relaxed);
        rounds = if now == last { rounds + 1 } else { 0 };
        last = now;
        there_and_back(&mut world).await;
    }
    assert!(last < 1024 * 1024, "{last} bytes were sent to a client that reads nothing");
    // Another stream flows.
    let mut quick = world.link.open(&head(2), Bytes::from_static(b"x")).unwrap();
    let mut other = work(&mut world.node).await.accept().unwrap();
    soon(quick.accepted()).await.unwrap();
    for _ in 0..100 {
        soon(other.send(Bytes::from(vec![2; 10_000]))).await.unwrap();
        let mut count = 0;
        while count < 10_000 {
            count += soon(quick.chunk()).await.unwrap().unwrap().len();
        }
    }
    other.finish();
    // And the slow one goes on when its client does.
    let mut received = 0;
    while let Some(chunk) = soon(slow.chunk()).await {
        received += chunk.unwrap().len();
    }
    assert_eq!(received, TOTAL);
    sending.await.unwrap();
    drop((slow, quick));
    world.close().await;
}

#[tokio::test]
async fn thousands_of_cancels_do_not_end_the_tunnel() {
    let mut world = World::with(LinkConfig::default(), 2000, PingConfig::default()).await;
    // A thousand before the node has looked at any.
    let waiting: Vec<_> =
        (0..1000).map(|n| world.link.open(&head(n), Bytes::from_static(b"x")).unwrap()).collect();
    // What belongs to another tunnel is refused on arrival, and it arrives after them.
    let mut stale = head(1);
    stale.epoch = Epoch(7);
    assert!(soon(world.link.open(&stale, Bytes::new()).unwrap().accepted()).await.is_err());
    drop(waiting);
    // And thousands in the middle of small events that are still on their way.
    for number in 0..3000 {
        let mut stream = world.link.open(&head(number), Bytes::from_static(b"y")).unwrap();
        let mut responder = loop {
            let mut request = work(&mut world.node).await;
            if request.body(10).await.is_ok_and(|body| body == "y") {
                break request.accept().unwrap();
            }
        };
        soon(stream.accepted()).await.unwrap();
        for _ in 0..10 {
            responder.send(Bytes::from_static(b"data: a\n\n")).await.unwrap();
        }
        drop(stream);
        soon(responder.cancelled()).await;
    }
    assert!(!world.link.is_closed(), "{:?}", world.link.close_reason());
    let mut stream = world.link.open(&head(9), Bytes::new()).unwrap();
    work(&mut world.node).await.accept().unwrap().finish();
    soon(stream.accepted()).await.unwrap();
    drop(stream);
    world.close().await;
}

/// A node whose only thread is busy must not take a burst of hang-ups for an attack.
#[tokio::test]
async fn cancels_that_pile_up_before_a_busy_node_do_not_end_the_tunnel() {
    let mut gateway = Gateway::start(Clock::system(), LinkConfig::default(), None).await;
    let (address, mut passed) = counting(gateway.address).await;
    let url = format!("http://{address}");
    let (go_on, standing) = std::sync::mpsc::channel::<()>();
    let (stand_still, is_known) = tokio::sync::oneshot::channel();
    let (stands, is_standing) = tokio::sync::oneshot::channel();
    let node = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let mut config = config(&url, key(1), Clock::system(), None);
            config.capacity = 2000;
            let mut node = soon(dial(&config, &Tasks::new())).await.unwrap();
            // The gateway knows the node's settings once it has got an answer.
            work(&mut node).await.accept().unwrap().finish();
            soon(is_known).await.unwrap();
            // From here on the node's only thread does nothing.
            stands.send(()).unwrap();
            standing.recv().unwrap();
            while let Some(Incoming::Work(work)) = node.next().await {
                if work.head.attempt == 2 {
                    work.accept().unwrap().finish();
                }
            }
        });
    });
    let link = gateway.link().await;
    let mut first = link.open(&head(0), Bytes::new()).unwrap();
    soon(first.accepted()).await.unwrap();
    stand_still.send(()).unwrap();
    soon(is_standing).await.unwrap();
    let piled: Vec<_> = (0..1000).map(|n| link.open(&head(n), Bytes::from_static(b"x")).unwrap()).collect();
    soon(passed.wait_for(|frames| frames.heads > 1000)).await.unwrap();
    drop(piled);
    soon(passed.wait_for(|frames| frames.resets >= 1000)).await.unwrap();
    go_on.send(()).unwrap();
    let mut second = head(1);
    second.attempt = 2;
    let mut stream = link.open(&second, Bytes::new()).unwrap();
    soon(stream.accepted()).await.unwrap();
    assert!(!link.is_closed());
    drop((first, stream, link));
    soon(tokio::task::spawn_blocking(move || node.join())).await.unwrap().unwrap();
}

#[tokio::test]
async fn more_streams_than_the_node_allows_are_refused_here() {
    let mut world = World::with(LinkConfig::default(), 2, PingConfig::default()).await;
    // The node's settings have arrived once it answered something.
    let mut first = world.link.open(&head(0), Bytes::new()).unwrap();
    work(&mut world.node).await.accept().unwrap().finish();
    soon(first.accepted()).await.unwrap();
    drop(first);
    let mut streams = Vec::new();
    let refused = loop {
        match world.link.open(&head(1), Bytes::new()) {
            Ok(stream) => streams.push(stream),
            Err(error) => break error,
        }
        assert!(streams.len() < 1000);
    };
    assert_eq!(refused, OpenError::Full);
    streams.pop();
    world.link.open(&head(1), Bytes::new()).unwrap();
}

#[tokio::test]
async fn an_answer_that_is_broken_off_is_an_error_not_an_end() {
    let mut world = World::start().await;
    let mut stream = world.link.open(&head(1), Bytes::new()).unwrap();
    let mut responder = work(&mut world.node).await.accept().unwrap();
    responder.send(Bytes::from_static(b"half")).await.unwrap();
    soon(stream.accepted()).await.unwrap();
    assert_eq!(soon(stream.chunk()).await.unwrap().unwrap(), "half");
    drop(responder);
    let error = soon(stream.chunk()).await.unwrap().unwrap_err();
    assert!(matches!(error, WorkError::Reset(_)), "{error:?}");
    assert!(soon(stream.chunk()).await.is_none());
}

#[tokio::test]
async fn a_draining_node_finishes_what_runs_and_takes_nothing_new() {
    let mut world = World::start().await;
    let mut stream = world.link.open(&head(1), Bytes::new()).unwrap();
    let mut responder = work(&mut world.node).await.accept().unwrap();
    soon(stream.accepted()).await.unwrap();
    world.node.drain();
    until(async || world.link.open(&head(2), Bytes::new()).is_err()).await;
    assert!(!world.link.is_closed());
    responder.send(Bytes::from_static(b"rest")).await.unwrap();
    responder.finish();
    assert_eq!(soon(stream.chunk()).await.unwrap().unwrap(), "rest");
    assert!(soon(stream.chunk()).await.is_none());
    drop(stream);
    soon(world.link.closed()).await;
    // Streams that arrived before the goodbye are handed out; then comes the end.
    while let Some(Incoming::Work(_)) = soon(world.node.next()).await {}
    world.close().await;
}
