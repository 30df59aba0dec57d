//! The control stream of one node: desired state down, heartbeats up, for as long as the tunnel lives.

use std::sync::Arc;
use std::time::Duration;

use cxmpute_tunnel::{ControlError, ControlReceiver, ControlSender};
use cxmpute_wire::control::{FromNode, Heartbeat, NodeStatus, OwnerState, ServiceState, ToNode};
use cxmpute_wire::{Code, Generation};
use tokio::time::Instant;

use super::lessons::{Lessons, learn};
use super::node::{Check, Node};
use super::record::{Remembered, record_observed};
use super::registry::Fleet;

/// A node must take the control stream in this time.
const OPENING: Duration = Duration::from_secs(10);
/// Time for a node to take a message: one that shuts its window must not keep the others of this loop waiting.
const SAYING: Duration = Duration::from_secs(5);
/// Time for the last words of a tunnel that is being closed.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time for a node to hear the last words.
const HEARING: Duration = Duration::from_millis(250);
/// A plan that could not be read is tried again after this.
const PLAN_AGAIN: Duration = Duration::from_secs(5);

type Sender = ControlSender<ToNode>;
type Receiver = ControlReceiver<FromNode>;

/// Tends a node until its tunnel ends, then takes it off the list.
pub(super) async fn tend(fleet: Fleet, node: Arc<Node>) {
    let reason = tokio::select! {
        reason = node.link.closed() => reason.to_string(),
        reason = converse(&fleet, &node) => reason,
        () = drained(&fleet) => close(&node, Code::Draining, "draining"),
    };
    fleet.detach(&node, &reason).await;
}

/// Resolves when this process stops and no request needs a tunnel any more, or at the hard stop.
async fn drained(fleet: &Fleet) {
    const LOOK: Duration = Duration::from_millis(50);
    let tasks = &fleet.parts().tasks;
    tasks.soft().cancelled().await;
    let hard = tasks.hard();
    loop {
        tokio::select! {
            () = hard.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
        if fleet.running() == 0 {
            return;
        }
    }
}

/// Tells a tunnel that came too late that a newer one is there.
pub(super) fn refuse_stale(fleet: &Fleet, node: Arc<Node>) {
    fleet.parts().tasks.spawn("node-stale", async move {
        if let Ok(Ok((mut sender, _receiver))) = tokio::time::timeout(LAST_WORDS, node.link.control()).await {
            say_stale(&mut sender, &node).await;
        }
        node.link.close(Code::EpochStale);
    });
}

/// Says it, and leaves the node a moment to hear it and to close by itself: what is still on its way when a
/// connection is closed may never be read.
async fn say_stale(sender: &mut Sender, node: &Node) {
    let closing = ToNode::Closing {
        code: Code::EpochStale,
        message: "A newer tunnel of this provision is active; this one ends.".to_owned(),
    };
    let said = tokio::time::timeout(LAST_WORDS, sender.send(&closing)).await;
    if matches!(said, Ok(Ok(()))) {
        let _ = tokio::time::timeout(HEARING, node.link.closed()).await;
    }
}

async fn converse(fleet: &Fleet, node: &Arc<Node>) -> String {
    let (mut sender, mut receiver) = match tokio::time::timeout(OPENING, node.link.control()).await {
        Ok(Ok(pair)) => pair,
        Ok(Err(error)) => return close(node, Code::ProviderProtocolError, &error.to_string()),
        Err(_) => return close(node, Code::ProviderProtocolError, "no control stream in time"),
    };
    let soft = fleet.parts().tasks.soft();
    let mut told_draining = false;
    let mut stored = Remembered::default();
    let mut lessons = Lessons::default();
    let mut sent = None;
    let mut plan_due = true;
    let mut last_heartbeat: Option<Heartbeat> = None;
    loop {
        if std::mem::take(&mut plan_due) {
            plan_due = !send_plan(fleet, node, &mut sender, &mut sent).await;
        }
        let now = Instant::now();
        let due = stored.due(now);
        tokio::select! {
            biased;
            () = node.superseded.cancelled() => {
                say_stale(&mut sender, node).await;
                return close(node, Code::EpochStale, "a newer tunnel took over");
            }
            () = soft.cancelled(), if !told_draining => {
                told_draining = true;
                let message = "This gateway is shutting down; dial again.".to_owned();
                let closing = ToNode::Closing { code: Code::Draining, message };
                let _ = tokio::time::timeout(LAST_WORDS, sender.send(&closing)).await;
            }
            () = node.replan.notified() => plan_due = true,
            () = node.news.notified(), if last_heartbeat.is_some() => {
                if let Some(heartbeat) = &last_heartbeat {
                    let status = ToNode::Status(status(fleet, node, heartbeat));
                    if !say(&mut sender, &status).await {
                        return close(node, Code::ProviderLost, "the control stream broke");
                    }
                }
            }
            () = tokio::time::sleep_until(due.unwrap_or(now)), if due.is_some() => {
                if let Some(heartbeat) = &last_heartbeat {
                    let parts = fleet.parts();
                    let id = &node.session.provision_id;
                    let now = parts.clock.now();
                    if let Err(error) = record_observed(&parts.db, id, heartbeat, &mut stored, now).await {
                        tracing::warn!(%error, provision = %id, "observed services were not stored");
                    }
                }
            }
            () = tokio::time::sleep(PLAN_AGAIN), if plan_due => {}
            message = next(&mut receiver) => match message {
                Ok(FromNode::Heartbeat(heartbeat)) => {
                    fleet.observe(node, &heartbeat);
                    let status = ToNode::Status(status(fleet, node, &heartbeat));
                    if !say(&mut sender, &status).await {
                        return close(node, Code::ProviderLost, "the control stream broke");
                    }
                    stored.owe();
                    if lessons.due(&heartbeat, Instant::now()) {
                        let (parts, id) = (fleet.parts(), &node.session.provision_id);
                        match learn(&parts.db, id, &heartbeat, parts.clock.now()).await {
                            Ok(more) => plan_due |= more,
                            Err(error) => {
                                tracing::warn!(%error, provision = %id, "what ran out of memory was not noted");
                            }
                        }
                    }
                    last_heartbeat = Some(heartbeat);
                }
                Ok(FromNode::Draining { reason }) => {
                    tracing::info!(provision = %node.session.provision_id, reason, "a node drains");
                    node.hear(fleet.now(), None);
                    node.live.lock().owner = OwnerState::Draining;
                }
                Err(reason) => return close(node, Code::ProviderProtocolError, &reason),
            },
        }
    }
}

/// Says something; false when the node does not take it in time or the stream is broken.
async fn say(sender: &mut Sender, message: &ToNode) -> bool {
    matches!(tokio::time::timeout(SAYING, sender.send(message)).await, Ok(Ok(())))
}

fn close(node: &Node, code: Code, reason: &str) -> String {
    node.link.close(code);
    reason.to_owned()
}

async fn next(receiver: &mut Receiver) -> Result<FromNode, String> {
    match receiver.next().await {
        Some(Ok(message)) => Ok(message),
        Some(Err(error)) => Err(error.to_string()),
        None => Err(ControlError::Closed.to_string()),
    }
}

/// Publishes and sends what the node should run; false when the plan could not be made now.
async fn send_plan(
    fleet: &Fleet,
    node: &Arc<Node>,
    sender: &mut Sender,
    sent: &mut Option<Generation>,
) -> bool {
    let desired = match fleet.assign(&node.session.provision_id).await {
        Ok(Some(desired)) => desired,
        Ok(None) => {
            close(node, Code::NodeUnknown, "the provision is unknown");
            return true;
        }
        Err(error) => {
            tracing::warn!(%error, provision = %node.session.provision_id, "no plan for a node");
            return false;
        }
    };
    if *sent == Some(desired.generation) {
        return true;
    }
    let generation = desired.generation;
    if say(sender, &ToNode::Desired(desired)).await {
        *sent = Some(generation);
        node.live.lock().generation = generation;
    } else {
        close(node, Code::ProviderLost, "the control stream broke");
    }
    true
}

/// What the node may show its owner (NR11).
fn status(fleet: &Fleet, node: &Node, heartbeat: &Heartbeat) -> NodeStatus {
    let members = node.members();
    let routable = members.iter().filter(|member| member.routable()).map(|member| member.service.clone());
    let mut status = NodeStatus {
        seq: heartbeat.seq,
        server_time: fleet.parts().clock.now(),
        state: "online".to_owned(),
        routable: routable.collect(),
        reason: None,
    };
    match heartbeat.owner {
        OwnerState::Available => {}
        OwnerState::Paused => status.state = "paused".to_owned(),
        OwnerState::Draining => status.state = "draining".to_owned(),
    }
    if status.routable.is_empty() {
        let reason = match members.iter().map(|member| member.state.lock().clone()).max_by_key(progress) {
            _ if heartbeat.owner != OwnerState::Available => "The node was paused or is draining.",
            None => "No service is planned for this machine, or none has been reported yet.",
            Some(state) if state.state != ServiceState::Ready => "No service is ready yet.",
            Some(state) => match state.check {
                Check::Due { tries, .. } if tries > 0 => {
                    "The check completion through the tunnel failed; it is tried again."
                }
                _ => "The check completion through the tunnel is under way.",
            },
        };
        status.reason = Some(reason.to_owned());
    }
    status
}

fn progress(state: &super::node::MemberState) -> u8 {
    u8::from(state.state == ServiceState::Ready)
}
