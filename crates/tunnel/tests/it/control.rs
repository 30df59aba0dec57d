use cxmpute_tunnel::Incoming;
use cxmpute_wire::Code;
use cxmpute_wire::control::{FromNode, ToNode};

use crate::world::{World, soon};

#[tokio::test]
async fn control_messages_pass_both_ways_in_order() {
    let mut world = World::start().await;
    let opening = tokio::spawn({
        let link = world.link.clone();
        async move { link.control().await.unwrap() }
    });
    let Some(Incoming::Control(mut node)) = soon(world.node.next()).await else {
        panic!("no control stream")
    };
    let (mut sender, mut receiver) = soon(opening).await.unwrap();
    for number in 0..200 {
        let message =
            ToNode::Closing { code: Code::Draining, message: format!("{number} {}", "x".repeat(2000)) };
        soon(sender.send(&message)).await.unwrap();
        assert_eq!(soon(node.receiver.next()).await.unwrap().unwrap(), message);
        let message = FromNode::Draining { reason: number.to_string() };
        soon(node.sender.send(&message)).await.unwrap();
        assert_eq!(soon(receiver.next()).await.unwrap().unwrap(), message);
    }
    drop(node);
    assert!(soon(receiver.next()).await.is_none());
    drop((sender, receiver));
    world.close().await;
}

#[tokio::test]
async fn the_last_words_before_a_close_arrive() {
    let mut world = World::start().await;
    let link = world.link.clone();
    let opening = tokio::spawn(async move { link.control().await.unwrap() });
    let Some(Incoming::Control(mut node)) = soon(world.node.next()).await else {
        panic!("no control stream")
    };
    let (mut sender, _receiver) = soon(opening).await.unwrap();
    let message = ToNode::Closing { code: Code::EpochStale, message: "a newer tunnel".into() };
    soon(sender.send(&message)).await.unwrap();
    world.link.close(Code::EpochStale);
    assert_eq!(soon(node.receiver.next()).await.unwrap().unwrap(), message);
    assert!(soon(node.receiver.next()).await.is_none());
}
