//! The node's life: dial, take the plan, report, serve, dial again. Drains when asked to stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::{Backoff, Clock, Secret, Tasks, random};
use cxmpute_tunnel::{
    ControlPair, ControlReceiver, ControlSender, DialConfig, DialError, Incoming, NodeEnd, Roots, Signer,
    dial,
};
use cxmpute_wire::control::{Desired, FromNode, Heartbeat, NodeStatus, ObservedService, OwnerState, ToNode};
use cxmpute_wire::{Code, Epoch, Generation, ServiceId};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};

use crate::config::NodeConfig;
use crate::engines::Adapter;
use crate::identity::Identity;
use crate::reconcile::{self, Action};
use crate::supervise::{Place, Service};
use crate::{diagnose, enrol, identity, serve};

/// Time between heartbeats (NR19).
const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);
/// The first new try after a loss comes within this time, later ones wait longer, up to the cap (NR16).
const FIRST_RECONNECT: Duration = Duration::from_secs(2);
/// Longest wait between tries.
const RECONNECT_CAP: Duration = Duration::from_secs(30);
/// Time running work gets after the stop is asked for (NR25).
const DRAIN: Duration = Duration::from_secs(30);
/// A server that forgot us gets this many enrolments without a grant before a person is needed.
const RE_ENROL_TRIES: u32 = 3;

/// Everything that runs, shared by control, serving and the local socket.
#[derive(Debug)]
pub struct Running {
    services: Mutex<BTreeMap<ServiceId, Arc<Service>>>,
    draining: AtomicBool,
    seen: Mutex<Seen>,
    changed: Arc<Notify>,
    sequence: AtomicU64,
}

/// What the node knows of its place in the network.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Whether a tunnel is up.
    pub connected: bool,
    /// Epoch of the last tunnel.
    pub epoch: Epoch,
    /// Generation of the last plan.
    pub generation: Generation,
    /// The server's last word on us.
    pub status: Option<NodeStatus>,
    /// Why there is no tunnel.
    pub trouble: Option<String>,
}

impl Running {
    /// A place for one request of this service.
    ///
    /// # Errors
    /// `not_ready` or `capacity_full`.
    pub fn enter(&self, service: &ServiceId) -> Result<Place, Code> {
        let found = self.services.lock().get(service).cloned();
        found.ok_or(Code::NotReady)?.enter()
    }

    /// Whether no new work is taken.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// What each service is doing.
    #[must_use]
    pub fn observed(&self) -> Vec<ObservedService> {
        self.services.lock().values().map(|service| service.observed()).collect()
    }

    /// What is known of the network.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen.lock().clone()
    }

    fn in_flight(&self) -> u32 {
        self.services.lock().values().map(|service| service.in_flight()).sum()
    }

    fn see(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut self.seen.lock());
    }
}

/// A node, ready to run.
#[derive(Debug)]
pub struct Node {
    config: Arc<NodeConfig>,
    identity: Identity,
    clock: Clock,
    tasks: Tasks,
    running: Arc<Running>,
    boot: u64,
}

/// Why a session with the gateway ended.
enum End {
    /// Dial again.
    Lost(String),
    /// The gateway told us to go, and why.
    Told(Code, String),
    /// We were asked to stop.
    Stopping,
}

impl Node {
    /// A node of this configuration. Counts the start (NR10).
    ///
    /// # Errors
    /// The data directory cannot be used.
    pub fn build(config: NodeConfig, clock: Clock, tasks: Tasks) -> Result<Self> {
        let identity = identity::load_or_create(&config.data_dir)?;
        let mut state = identity::read_state(&config.data_dir)?;
        state.boot += 1;
        identity::write_state(&config.data_dir, &state)?;
        let running = Arc::new(Running {
            services: Mutex::default(),
            draining: AtomicBool::new(false),
            seen: Mutex::default(),
            changed: Arc::default(),
            sequence: AtomicU64::new(0),
        });
        Ok(Self { config: Arc::new(config), identity, clock, tasks, running, boot: state.boot })
    }

    /// What runs; for the local socket and for tests.
    #[must_use]
    pub fn running(&self) -> Arc<Running> {
        self.running.clone()
    }

    /// The node's identity.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Runs until the soft stop, or until the gateway says something that only a person can mend; drains then.
    ///
    /// # Errors
    /// The reason, with its exit code.
    pub async fn run(self) -> Result<()> {
        let result = self.sessions().await;
        self.running.draining.store(true, Ordering::Relaxed);
        let services = std::mem::take(&mut *self.running.services.lock());
        let stops = services.into_values().map(stop_service);
        futures_util::future::join_all(stops).await;
        result
    }

    async fn sessions(&self) -> Result<()> {
        let signer = Signer::new(self.identity.key.clone(), self.clock.clone());
        let roots = Roots::new(self.config.api.ca_file.as_deref())?;
        let mut dialling = DialConfig::new(self.config.api.url.clone(), signer, roots);
        // The gateway clamps what a node claims; this only has to be large enough for all services together.
        dialling.capacity = 1024;
        let mut rng = random::rng();
        let mut backoff = Backoff::new(FIRST_RECONNECT, RECONNECT_CAP);
        let mut forgotten = 0;
        let soft = self.tasks.soft();
        loop {
            let dialled = tokio::select! {
                dialled = dial(&dialling, &self.tasks) => dialled,
                () = soft.cancelled() => return Ok(()),
            };
            let trouble = match dialled {
                Ok(end) => {
                    forgotten = 0;
                    tracing::info!(epoch = %end.epoch, gateway = %self.config.api.url, "tunnel up");
                    match self.session(end).await {
                        End::Stopping => return Ok(()),
                        End::Told(code, message) => {
                            if let Some(error) = final_word(code, &message) {
                                return Err(error.into());
                            }
                            message
                        }
                        End::Lost(reason) => {
                            // The tunnel stood: begin again with short waits.
                            backoff.reset();
                            reason
                        }
                    }
                }
                Err(DialError::Refused { code: Some(Code::NodeUnknown), .. })
                    if forgotten < RE_ENROL_TRIES =>
                {
                    forgotten += 1;
                    tracing::warn!("the gateway does not know this node; enrolling again");
                    enrol::enrol(
                        &self.config,
                        &self.identity,
                        grant_from_environment().as_ref(),
                        None,
                        &self.clock,
                    )
                    .await?;
                    continue;
                }
                Err(DialError::Refused { code: Some(Code::ClockSkew), .. }) if backoff.tries() == 0 => {
                    // The signer has taken the server's time over.
                    backoff.next(&mut rng);
                    continue;
                }
                Err(DialError::Refused { code: Some(code), message, .. }) => match final_word(code, &message)
                {
                    Some(error) => return Err(error.into()),
                    None => message,
                },
                Err(error) => error.to_string(),
            };
            let wait = backoff.next(&mut rng);
            tracing::warn!(reason = %trouble, wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), "no tunnel; dialling again");
            self.running.see(|seen| {
                seen.connected = false;
                seen.trouble = Some(trouble);
            });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = soft.cancelled() => return Ok(()),
            }
        }
    }

    /// One tunnel, from its handshake to its end.
    async fn session(&self, mut end: NodeEnd) -> End {
        let epoch = end.epoch;
        self.running.see(|seen| {
            seen.connected = true;
            seen.epoch = epoch;
            seen.trouble = None;
        });
        let handle = end.handle();
        let soft = self.tasks.soft();
        let (told_sender, mut told) = mpsc::channel::<(Code, String)>(1);
        let mut control = Vec::new();
        loop {
            tokio::select! {
                incoming = end.next() => match incoming {
                    Some(Incoming::Work(work)) => {
                        self.tasks.spawn("work", serve::serve(work, self.running.clone(), self.tasks.clone()));
                    }
                    Some(Incoming::Control(ControlPair { sender, receiver })) => {
                        let report = self.report(sender, epoch);
                        control.push(self.tasks.spawn_owned("control-out", report));
                        let listen = self.listen(receiver, told_sender.clone());
                        control.push(self.tasks.spawn_owned("control-in", listen));
                    }
                    None => {
                        if let Ok((code, message)) = told.try_recv() {
                            return End::Told(code, message);
                        }
                        let reason = end.close_reason().map_or_else(|| "the tunnel ended".into(), |r| r.to_string());
                        return End::Lost(reason);
                    }
                },
                Some((code, message)) = told.recv() => return End::Told(code, message),
                () = soft.cancelled() => break,
            }
        }
        // The control task says "draining" because the flag is set; new work is refused from now on.
        self.running.draining.store(true, Ordering::Relaxed);
        self.running.changed.notify_one();
        tracing::info!(in_flight = self.running.in_flight(), "draining");
        let drained = async {
            let mut looks = tokio::time::interval(Duration::from_millis(20));
            // One look more than needed lets the heartbeat that announces the drain leave first.
            looks.tick().await;
            loop {
                looks.tick().await;
                if self.running.in_flight() == 0 {
                    return;
                }
            }
        };
        let refuse_late = async {
            while let Some(incoming) = end.next().await {
                if let Incoming::Work(work) = incoming {
                    work.refuse(Code::Draining, "this node is leaving");
                }
            }
        };
        let hard = self.tasks.hard();
        tokio::select! {
            () = drained => {}
            () = refuse_late => {}
            () = tokio::time::sleep(DRAIN) => tracing::warn!("work was still running when the time to drain was over"),
            () = hard.cancelled() => {}
        }
        handle.close(Code::Draining);
        End::Stopping
    }

    /// Sends heartbeats: every 5 s, and at once when something changed.
    fn report(
        &self,
        mut sender: ControlSender<FromNode>,
        epoch: Epoch,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (running, config, boot) = (self.running.clone(), self.config.clone(), self.boot);
        async move {
            let mut beat = tokio::time::interval(HEARTBEAT_EVERY);
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut said_goodbye = false;
            loop {
                tokio::select! {
                    _ = beat.tick() => {}
                    () = running.changed.notified() => {}
                }
                let services = running.observed();
                let in_flight: u32 = services.iter().map(|service| service.in_flight).sum();
                let slots: u32 = services.iter().map(|service| service.slots).sum();
                let draining = running.is_draining();
                let heartbeat = Heartbeat {
                    seq: running.sequence.fetch_add(1, Ordering::Relaxed),
                    boot,
                    epoch,
                    observed_generation: running.seen().generation,
                    services,
                    in_flight,
                    queued: in_flight.saturating_sub(slots),
                    gpus: diagnose::gpu_load(),
                    disk_free: diagnose::disk(&config.models_dir()).free,
                    owner: if draining { OwnerState::Draining } else { OwnerState::Available },
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

    /// Takes plans and the server's words.
    fn listen(
        &self,
        mut receiver: ControlReceiver<ToNode>,
        told: mpsc::Sender<(Code, String)>,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (running, config) = (self.running.clone(), self.config.clone());
        let (clock, tasks) = (self.clock.clone(), self.tasks.clone());
        async move {
            while let Some(message) = receiver.next().await {
                match message {
                    Ok(ToNode::Desired(desired)) => {
                        apply(desired, &running, &config, &clock, &tasks).await;
                        running.changed.notify_one();
                    }
                    Ok(ToNode::Status(status)) => running.see(|seen| seen.status = Some(status)),
                    Ok(ToNode::Closing { code, message }) => {
                        let _ = told.send((code, message)).await;
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the control stream broke");
                        return;
                    }
                }
            }
        }
    }
}

/// Makes what runs become what the plan says.
async fn apply(
    desired: Desired,
    running: &Arc<Running>,
    config: &Arc<NodeConfig>,
    clock: &Clock,
    tasks: &Tasks,
) {
    if desired.generation < running.seen().generation || running.is_draining() {
        return;
    }
    let have =
        running.services.lock().iter().map(|(id, service)| (id.clone(), service.desired.clone())).collect();
    for action in reconcile::plan(&desired.services, &have, |service| config.services.allows(service)) {
        match action {
            Action::Stop(id) => {
                let service = running.services.lock().remove(&id);
                if let Some(service) = service {
                    tracing::info!(service = %id, "stopping: the plan no longer names it");
                    stop_service(service).await;
                }
            }
            Action::Start(want) => {
                if let Err(error) = Adapter::choose(config, &want) {
                    tracing::warn!(service = %want.service_id, %error, "planned, but this machine cannot run it yet");
                }
                let id = want.service_id.clone();
                let service =
                    Service::start(config.clone(), want, running.changed.clone(), clock.clone(), tasks);
                running.services.lock().insert(id, Arc::new(service));
            }
        }
    }
    running.see(|seen| seen.generation = desired.generation);
}

/// Stops politely when nobody else holds the service; requests that still run hold only their place.
async fn stop_service(service: Arc<Service>) {
    if let Ok(service) = Arc::try_unwrap(service) {
        service.stop().await;
    }
}

/// Codes after which dialling again makes no sense, as the error to end with.
fn final_word(code: Code, message: &str) -> Option<ExitError> {
    let (exit_code, hint) = match code {
        Code::EpochStale => (
            exit::CLONED,
            "Another copy of this node is active. Stop it, or give this one a data directory of its own.",
        ),
        Code::NodeRevoked | Code::AccountSuspended => (exit::REVOKED, "Ask the operator why."),
        Code::VersionTooOld => (exit::VERSION_TOO_OLD, "Update this program."),
        Code::NodeUnknown => (exit::GRANT, "Enrol it: cxmpute-provider enrol --grant-file FILE."),
        _ => return None,
    };
    Some(ExitError::new(exit_code, format!("The gateway closed the tunnel ({code}): {message} {hint}")))
}

/// The grant of an unattended run.
#[must_use]
pub fn grant_from_environment() -> Option<Secret<String>> {
    cxmpute_runtime::config::env_var("CXMPUTE_GRANT").map(Secret::new)
}

/// Enrols when this directory is not enrolled with this control plane yet and a grant is at hand.
///
/// # Errors
/// It is not enrolled and no grant is there, or the enrolment was refused.
pub async fn ensure_enrolled(
    config: &NodeConfig,
    identity: &Identity,
    grant: Option<Secret<String>>,
    clock: &Clock,
) -> Result<()> {
    let state = identity::read_state(&config.data_dir)?;
    if state.api_url.as_deref() == Some(config.api.url.as_str()) {
        return Ok(());
    }
    let grant = grant.with_context(|| match &state.api_url {
        Some(other) => format!(
            "This node belongs to {other}, not to {}. Use another --data-dir for a second control plane, or enrol it \
             there with a grant.",
            config.api.url
        ),
        None => "This node is not enrolled yet. Get a grant from the operator and run: cxmpute-provider enrol \
                 --grant-file FILE"
            .to_owned(),
    });
    let grant = grant.map_err(|error| ExitError::new(exit::GRANT, error.to_string()))?;
    enrol::enrol(config, identity, Some(&grant), None, clock).await.map(drop)
}
