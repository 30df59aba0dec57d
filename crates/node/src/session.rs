//! One tunnel, from its handshake to its end: plans come in, heartbeats go out, work is served.

use std::sync::Arc;
use std::time::Duration;

use cxmpute_runtime::lifecycle::OwnedTask;
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_tunnel::{ControlPair, ControlReceiver, ControlSender, Incoming, NodeEnd};
use cxmpute_wire::control::{FromNode, GpuLoad, Heartbeat, OwnerState, ToNode};
use cxmpute_wire::{Bytes, Code, Epoch};
use tokio::sync::mpsc;

use crate::agent::NodeView;
use crate::config::NodeConfig;
use crate::{diagnose, serve};

/// Time between heartbeats (NR19).
const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);
/// Changes within this time go into one heartbeat.
const GATHER: Duration = Duration::from_millis(10);
/// Time running work gets after the stop is asked for (NR25).
const DRAIN: Duration = Duration::from_secs(30);
/// Time it gets after it is asked for a second time (NR26).
const HURRIED_DRAIN: Duration = Duration::from_secs(10);

/// Time for the last words of work that is given up.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// What a session needs.
pub struct Session {
    /// The owner's settings.
    pub config: Arc<NodeConfig>,
    /// The time.
    pub clock: Clock,
    /// Where tasks run.
    pub tasks: Tasks,
    /// The node.
    pub view: NodeView,
    /// Starts of the program so far.
    pub boot: u64,
}

/// Why a session with the gateway ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Dial again.
    Lost(String),
    /// The gateway told us to go, and why.
    Told(Code, String),
    /// We were asked to stop.
    Stopping,
}

/// The server's last word before it closes a tunnel.
type LastWord = (Code, String);

impl Session {
    /// Runs until the tunnel ends or the node stops.
    pub async fn run(&self, mut end: NodeEnd) -> End {
        let epoch = end.epoch;
        self.view.services.begin_session();
        self.view.seen.send_modify(|seen| {
            seen.connected = true;
            seen.epoch = epoch;
            seen.status = None;
            seen.trouble = None;
        });
        let soft = self.tasks.soft();
        let (teller, mut told) = mpsc::channel::<LastWord>(1);
        let mut control: Option<[OwnedTask; 2]> = None;
        loop {
            tokio::select! {
                incoming = end.next() => match incoming {
                    Some(Incoming::Work(work)) => {
                        let serving =
                            serve::serve(work, self.view.services.clone(), self.clock.clone(), self.tasks.clone());
                        self.tasks.spawn("work", serving);
                    }
                    Some(Incoming::Control(ControlPair { sender, receiver })) => {
                        let report = self.tasks.spawn_owned("control-out", self.report(sender, epoch));
                        let listen = self.tasks.spawn_owned("control-in", listen(self.view.clone(), receiver, teller.clone()));
                        control = Some([report, listen]);
                    }
                    None => {
                        if let Ok((code, message)) = told.try_recv() {
                            return End::Told(code, message);
                        }
                        let reason = end.close_reason().map_or_else(|| "the tunnel ended".into(), |r| r.to_string());
                        return End::Lost(reason);
                    }
                },
                Some((code, message)) = told.recv() => return self.go(code, message, end).await,
                () = soft.cancelled() => break,
            }
        }
        self.drain(end).await;
        drop(control);
        End::Stopping
    }

    /// The gateway said goodbye. When it only restarts, running work may finish while we dial anew.
    async fn go(&self, code: Code, message: String, mut end: NodeEnd) -> End {
        if code == Code::Draining {
            let rest = async {
                while let Some(incoming) = end.next().await {
                    if let Incoming::Work(work) = incoming {
                        work.refuse(Code::Draining, "the tunnel is closing");
                    }
                }
            };
            let soft = self.tasks.soft();
            tokio::select! {
                () = rest => {}
                () = self.idle() => {}
                () = tokio::time::sleep(DRAIN) => {}
                () = soft.cancelled() => {}
            }
        }
        End::Told(code, message)
    }

    async fn idle(&self) {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        // One look more than needed lets the heartbeat that announces the drain leave first.
        looks.tick().await;
        loop {
            looks.tick().await;
            if self.view.services.in_flight() == 0 {
                return;
            }
        }
    }

    /// Lets running work finish; new work is refused from now on.
    async fn drain(&self, mut end: NodeEnd) {
        self.view.services.drain();
        tracing::info!(in_flight = self.view.services.in_flight(), "draining");
        let handle = end.handle();
        let refuse_late = async {
            while let Some(incoming) = end.next().await {
                if let Incoming::Work(work) = incoming {
                    work.refuse(Code::Draining, "this node is leaving");
                }
            }
        };
        let over = async {
            tokio::select! {
                () = tokio::time::sleep(DRAIN) => {}
                () = async { self.view.hurry.cancelled().await; tokio::time::sleep(HURRIED_DRAIN).await } => {}
            }
        };
        let hard = self.tasks.hard();
        tokio::select! {
            () = self.idle() => {}
            () = refuse_late => {}
            () = over => {
                tracing::warn!("work was still running when the time to drain was over");
                self.view.services.give_up();
                // It is told why, so that it goes to other nodes and counts against nobody.
                let _ = tokio::time::timeout(LAST_WORDS, self.idle()).await;
            }
            () = hard.cancelled() => {}
        }
        handle.close(Code::Draining);
        self.view.seen.send_modify(|seen| seen.connected = false);
    }

    /// Sends heartbeats: every 5 s, and at once when something changed.
    fn report(
        &self,
        mut sender: ControlSender<FromNode>,
        epoch: Epoch,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (view, boot, models) = (self.view.clone(), self.boot, self.config.models_dir());
        let caps = self.config.owner.caps;
        let mut changes = view.services.changes();
        async move {
            let mut beat = tokio::time::interval(HEARTBEAT_EVERY);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut said_goodbye = false;
            let mut machine: (Vec<GpuLoad>, Bytes) = Default::default();
            for seq in 0.. {
                tokio::select! {
                    _ = beat.tick() => {
                        let models = models.clone();
                        let look = move || {
                            let used = caps.disk_mib.map_or(Bytes(0), |_| diagnose::size_of(&models));
                            (diagnose::gpu_load(), caps.disk_free(diagnose::disk(&models).free, used))
                        };
                        if let Ok(found) = tokio::task::spawn_blocking(look).await {
                            machine = found;
                        }
                    }
                    changed = changes.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        tokio::time::sleep(GATHER).await;
                    }
                }
                changes.mark_unchanged();
                let (observed_generation, services) = view.services.observed();
                let in_flight: u32 = services.iter().map(|service| service.in_flight).sum();
                let queued =
                    services.iter().map(|service| service.in_flight.saturating_sub(service.slots)).sum();
                let draining = view.services.is_draining();
                let heartbeat = Heartbeat {
                    seq,
                    boot,
                    epoch,
                    observed_generation,
                    services,
                    in_flight,
                    queued,
                    gpus: machine.0.clone(),
                    disk_free: machine.1,
                    owner: match (draining, view.services.resting()) {
                        (true, _) => OwnerState::Draining,
                        (false, Some(_)) => OwnerState::Paused,
                        (false, None) => OwnerState::Available,
                    },
                    version: env!("CARGO_PKG_VERSION").into(),
                };
                if sender.send(&FromNode::Heartbeat(heartbeat)).await.is_err() {
                    return;
                }
                if draining && !said_goodbye {
                    said_goodbye = true;
                    let reason = "the owner stopped the node".to_owned();
                    if sender.send(&FromNode::Draining { reason }).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Takes plans and the server's words.
async fn listen(view: NodeView, mut receiver: ControlReceiver<ToNode>, teller: mpsc::Sender<LastWord>) {
    while let Some(message) = receiver.next().await {
        match message {
            Ok(ToNode::Desired(desired)) => view.services.apply(&desired),
            Ok(ToNode::Status(status)) => view.seen.send_modify(|seen| seen.status = Some(status)),
            Ok(ToNode::Closing { code, message }) => {
                let _ = teller.send((code, message)).await;
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "the control stream broke");
                return;
            }
        }
    }
}
