use std::time::{Duration, Instant};

use bytes::Bytes;
use cxmpute_runtime::Tasks;
use cxmpute_tunnel::{CloseReason, LinkConfig, OpenError, WorkError, dial};
use cxmpute_wire::Code;

use crate::world::{SLACK, Wire, World, head, quick_ping, soon, until, work};

async fn quick() -> World {
    let link = LinkConfig { ping: quick_ping(), ..LinkConfig::default() };
    World::with(link, 64, quick_ping()).await
}

#[tokio::test]
async fn a_cut_connection_fails_running_work_at_once() {
    let mut world = World::start().await;
    let mut waiting = world.link.open(&head(1), Bytes::new()).unwrap();
    let _unanswered = work(&mut world.node).await;
    let mut running = world.link.open(&head(2), Bytes::new()).unwrap();
    let mut responder = work(&mut world.node).await.accept().unwrap();
    soon(running.accepted()).await.unwrap();
    responder.send(Bytes::from_static(b"first")).await.unwrap();
    assert_eq!(soon(running.chunk()).await.unwrap().unwrap(), "first");
    let cut = Instant::now();
    world.proxy.set(Wire::Cut);
    assert_eq!(soon(waiting.accepted()).await, Err(WorkError::Lost));
    assert_eq!(soon(running.chunk()).await, Some(Err(WorkError::Lost)));
    soon(responder.cancelled()).await;
    assert!(soon(world.node.next()).await.is_none());
    soon(world.link.closed()).await;
    assert!(cut.elapsed() < Duration::from_millis(250) * SLACK, "{:?}", cut.elapsed());
    assert!(matches!(world.link.open(&head(3), Bytes::new()), Err(OpenError::Closed(_))));
}

#[tokio::test]
async fn a_silent_wire_counts_as_dead_at_both_ends() {
    let mut world = quick().await;
    let mut running = world.link.open(&head(1), Bytes::new()).unwrap();
    let mut responder = work(&mut world.node).await.accept().unwrap();
    soon(running.accepted()).await.unwrap();
    // So many answers, one per interval and each with a time of its own, take longer than a tunnel lives without them.
    let answers = 2 * quick_ping().timeout.as_millis() / quick_ping().interval.as_millis();
    let (mut seen, mut last) = (0, None);
    let answered = until(async || {
        let time = world.link.rtt();
        seen += u128::from(std::mem::replace(&mut last, time) != time);
        seen > answers || world.link.is_closed()
    });
    answered.await;
    assert!(!world.link.is_closed() && world.node.close_reason().is_none());
    let frozen = Instant::now();
    world.proxy.set(Wire::Frozen);
    assert_eq!(soon(running.chunk()).await, Some(Err(WorkError::Lost)));
    assert!(frozen.elapsed() < quick_ping().timeout * SLACK, "{:?}", frozen.elapsed());
    assert_eq!(world.link.close_reason(), Some(CloseReason::Silent));
    soon(responder.cancelled()).await;
    assert!(soon(world.node.next()).await.is_none());
    assert_eq!(world.node.close_reason(), Some(CloseReason::Silent));
}

#[tokio::test]
async fn a_frozen_wire_does_not_hang_a_handshake() {
    let world = quick().await;
    world.proxy.set(Wire::Frozen);
    let mut config = crate::world::config(
        &format!("http://{}", world.proxy.address),
        crate::world::key(1),
        cxmpute_runtime::Clock::system(),
        None,
    );
    config.handshake_timeout = Duration::from_millis(200);
    assert!(soon(dial(&config, &Tasks::new())).await.is_err());
}

#[tokio::test]
async fn closing_a_link_ends_the_node_end_and_the_other_way_round() {
    let mut world = World::start().await;
    world.link.close(Code::EpochStale);
    assert_eq!(soon(world.link.closed()).await, CloseReason::Local(Code::EpochStale));
    assert!(soon(world.node.next()).await.is_none());
    world.close().await;

    let world = World::start().await;
    let mut stream = world.link.open(&head(1), Bytes::new()).unwrap();
    drop(world.node);
    assert_eq!(soon(stream.accepted()).await, Err(WorkError::Lost));
    soon(world.link.closed()).await;
}

#[tokio::test]
async fn the_hard_stop_of_a_process_ends_its_tunnels() {
    let mut world = World::start().await;
    world.gateway.tasks.hard().cancel();
    assert_eq!(soon(world.link.closed()).await, CloseReason::Stopping);
    assert!(soon(world.node.next()).await.is_none());
    world.close().await;
}
