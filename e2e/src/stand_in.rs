//! A stand-in node: the tunnel crate's node end, enrolled and signed, that plays the script named in the prompt.
//!
//! The last user message is the script, so one node can play every part and a test reads like what it does:
//! `say N` (N tokens and a clean end), `hold N` (N tokens, then silence until cancelled), `endless`, and `play
//! NAME` (the headers and bytes of a [`Script`] it has learnt). Work without a message (speech, recordings, pictures,
//! pages) gets a good answer, or the script that was learnt under the name of its path. A mood overrides both: the node
//! then refuses, fails, loses its tunnel, or answers in another request's name.

mod errand;
mod play;
mod script;
mod voice;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use cxmpute_runtime::{Clock, Tasks, random};
use cxmpute_tunnel::http_client::Answer;
use cxmpute_tunnel::{
    ControlPair, DialConfig, DialError, HttpClient, Incoming, NodeEnd, NodeHandle, Roots, Signer, dial,
    provision_id,
};
use cxmpute_wire::control::{
    Desired, DesiredService, Diagnostics, DiskInfo, EnrolRequest, FromNode, Heartbeat, Location, MemoryInfo,
    ObservedService, OwnerState, ServiceState, Software, ToNode,
};
use cxmpute_wire::{Bytes as Size, Code, Epoch, Generation, ProvisionId};
use ed25519_dalek::SigningKey;
use http::Method;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

pub use errand::{SAID, SEEN, drawing, drawn, heard, pages, read_text, seen, speech};
pub use script::{Script, Step};
pub use voice::DIMENSIONS;

use crate::ground::until;

/// How often it speaks; the product's nodes do so every 5 s.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How soon it dials again after a loss. A test of a killed gateway should wait for the gateway, not for this.
const REDIAL: Duration = Duration::from_millis(20);

/// The key of a provision.
#[derive(Clone, Debug)]
pub struct Identity {
    key: SigningKey,
}

impl Identity {
    /// A key that nobody has.
    #[must_use]
    pub fn fresh() -> Self {
        Self { key: SigningKey::from_bytes(&random::bytes::<32>()) }
    }

    /// The provision it stands for.
    #[must_use]
    pub fn provision_id(&self) -> ProvisionId {
        provision_id(&self.key.verifying_key())
    }

    /// Its public half, as an enrolment names it.
    #[must_use]
    pub fn public_key(&self) -> String {
        data_encoding::BASE64.encode(self.key.verifying_key().as_bytes())
    }

    /// Signs in its name.
    #[must_use]
    pub fn signer(&self) -> Signer {
        Signer::new(self.key.clone(), Clock::system())
    }

    /// Sends a signed enrolment for `id`, which need not be its own.
    ///
    /// # Errors
    /// The gateway cannot be reached.
    pub async fn enrol(
        &self,
        gateway: SocketAddr,
        id: &ProvisionId,
        name: &str,
        grant: Option<&str>,
    ) -> Result<Answer> {
        let request = EnrolRequest {
            public_key: self.public_key(),
            grant: grant.map(str::to_owned),
            run_id: "stand-in".to_owned(),
            name: name.to_owned(),
            location: Location { country: "DE".to_owned(), ..Location::default() },
            diagnostics: Diagnostics {
                memory: MemoryInfo { total: Size(1 << 40), available: Size(1 << 40) },
                disk: DiskInfo { mount: "/".to_owned(), total: Size(1 << 42), free: Size(1 << 42) },
                ..Diagnostics::default()
            },
            software: Software {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                os: "linux".to_owned(),
                arch: "x86_64".to_owned(),
            },
            alias: None,
        };
        let body = serde_json::to_vec(&request)?;
        let client = HttpClient::new(Roots::new(None)?);
        let path = format!("/api/v1/provisions/{id}");
        Ok(client
            .signed(&self.signer(), &format!("http://{gateway}"), Method::PUT, &path, body.into())
            .await?)
    }
}

/// What a stand-in does with work, whatever the prompt says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// Plays the script of the prompt.
    #[default]
    Willing,
    /// Refuses before ACCEPT.
    Refusing,
    /// Accepts, then drops the whole tunnel after so many tokens; with tokens, only when told to ([`StandIn::lose_now`]).
    Losing {
        /// Tokens sent before the loss.
        after: u64,
    },
    /// Accepts, then reports an engine error before any token.
    Failing,
    /// Accepts in the name of a request that is not this one.
    Impersonating,
    /// Accepts with the epoch of an older tunnel.
    Outdated,
    /// Refuses before ACCEPT, and not for lack of room.
    Rejecting,
    /// Takes work and says nothing at all.
    Blackhole,
    /// Accepts, then breaks the answer off after so many tokens; the tunnel stays.
    Resetting {
        /// Tokens sent before.
        after: u64,
    },
    /// Accepts and sends nothing for so long.
    Late {
        /// Until its first token.
        by: Duration,
    },
    /// Accepts, then gives the work up for its owner after so many tokens.
    Withdrawing {
        /// Tokens sent before.
        after: u64,
    },
    /// Does its work, but fails the checks of the gateway.
    Shy,
}

/// What happened to one piece of work.
#[derive(Clone, Debug)]
pub struct Note {
    /// The gateway's request id.
    pub request_id: String,
    /// Attempt number.
    pub attempt: u32,
    /// The body that reached it.
    pub asked: Arc<serde_json::Value>,
    /// Tokens handed to the tunnel; bytes, when it played a [`Script`].
    pub sent: u64,
    /// When the last of them was.
    pub last_sent: Option<Instant>,
    /// When it was accepted.
    pub accepted: Option<Instant>,
    /// When the gateway cancelled it.
    pub cancelled: Option<Instant>,
    /// When the script ended by itself.
    pub finished: Option<Instant>,
}

/// A running stand-in. Dropping it ends its tunnel.
#[derive(Debug)]
pub struct StandIn {
    /// Its provision.
    pub provision: ProvisionId,
    stage: Arc<Stage>,
    tasks: Tasks,
}

/// What the tasks of one stand-in share.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    pub(crate) state: Mutex<State>,
    pub(crate) lose: Notify,
    pub(crate) go_on: Notify,
    speak: Notify,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) mood: Mood,
    pub(crate) scripts: BTreeMap<String, Script>,
    /// Models whose work it refuses, and models that it does not have.
    pub(crate) refused: BTreeSet<String>,
    lacking: BTreeSet<String>,
    /// Models that end for lack of memory, unless they are given more than this.
    hungry: BTreeMap<String, Size>,
    pub(crate) notes: Vec<Note>,
    epoch: Epoch,
    desired: Option<Desired>,
    routable: usize,
    handle: Option<NodeHandle>,
    closed_with: Option<String>,
    /// How many engines it claims to have had before this one.
    engines: u32,
    pub(crate) checks_failed: u64,
}

impl StandIn {
    /// Enrols a provision and opens its tunnel.
    ///
    /// # Errors
    /// The enrolment was refused.
    pub async fn enrol_and_start(
        gateway: SocketAddr,
        identity: &Identity,
        name: &str,
        grant: &str,
    ) -> Result<Self> {
        let answer = identity.enrol(gateway, &identity.provision_id(), name, Some(grant)).await?;
        ensure!(answer.status.is_success(), "enrolment of {name}: {} {}", answer.status, answer.message());
        Self::start(gateway, identity).await
    }

    /// Opens the tunnel of an enrolled provision and keeps it open, until it is told that a newer one exists.
    ///
    /// # Errors
    /// No tunnel came up.
    pub async fn start(gateway: SocketAddr, identity: &Identity) -> Result<Self> {
        let (stage, tasks) = (Arc::new(Stage::default()), Tasks::new());
        let config = DialConfig::new(format!("http://{gateway}"), identity.signer(), Roots::new(None)?);
        tasks.spawn("stand-in", keep_open(config, Arc::clone(&stage), tasks.clone()));
        let stand_in = Self { provision: identity.provision_id(), stage, tasks };
        until("the stand-in's tunnel", Duration::from_secs(120), async || {
            if let Some(code) = stand_in.closed_with() {
                bail!("the tunnel was refused with {code}");
            }
            Ok((stand_in.epoch().0 > 0).then_some(()))
        })
        .await?;
        Ok(stand_in)
    }

    /// From now on.
    pub fn set_mood(&self, mood: Mood) {
        self.stage.state.lock().mood = mood;
    }

    /// Learns the script that the prompt `play NAME` asks for, or that is played for all work of the path NAME.
    pub fn learn(&self, name: &str, script: Script) {
        self.stage.state.lock().scripts.insert(name.to_owned(), script);
    }

    /// Forgets a script.
    pub fn forget(&self, name: &str) {
        self.stage.state.lock().scripts.remove(name);
    }

    /// Refuses work for a model from now on, and not for lack of room; it still claims to serve it.
    pub fn refuse_model(&self, model: &str) {
        self.stage.state.lock().refused.insert(model.to_owned());
    }

    /// Does not have a model from now on, and says so.
    pub fn lack_model(&self, model: &str) {
        self.stage.state.lock().lacking.insert(model.to_owned());
        self.stage.speak.notify_one();
    }

    /// From now on a model of it ends for lack of memory, unless the plan gives it more than `memory`.
    pub fn need_more_than(&self, model: &str, memory: Size) {
        self.stage.state.lock().hungry.insert(model.to_owned(), memory);
        self.stage.speak.notify_one();
    }

    /// The memory that the plan gives to a model; `None` where the plan does not name it.
    #[must_use]
    pub fn claim_of(&self, model: &str) -> Option<Size> {
        let state = self.stage.state.lock();
        let service = state.desired.as_ref()?.services.iter().find(|service| service.model == model)?;
        Some(service.memory_claim)
    }

    /// Lets a node that is losing its tunnel lose it.
    pub fn lose_now(&self) {
        self.stage.lose.notify_one();
    }

    /// Lets a script go on that waits at [`Step::Await`].
    pub fn go_on(&self) {
        self.stage.go_on.notify_one();
    }

    /// Claims that its engine is another process now, which the gateway checks anew.
    pub fn change_engine(&self) {
        self.stage.state.lock().engines += 1;
        self.stage.speak.notify_one();
    }

    /// Checks of the gateway that it failed on purpose.
    #[must_use]
    pub fn checks_failed(&self) -> u64 {
        self.stage.state.lock().checks_failed
    }

    /// Ends its tunnel; it dials again at once.
    pub fn flap(&self) {
        if let Some(handle) = self.stage.state.lock().handle.take() {
            handle.close(cxmpute_wire::Code::Draining);
        }
    }

    /// What happened to its work so far; checks of the gateway itself are left out.
    #[must_use]
    pub fn notes(&self) -> Vec<Note> {
        self.stage.state.lock().notes.clone()
    }

    /// Its name for clients, as answers tell it and `provider.order` takes it.
    #[must_use]
    pub fn slug(&self) -> String {
        self.provision.as_str().chars().take(13).collect()
    }

    /// The number of its newest tunnel.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.stage.state.lock().epoch
    }

    /// How many of its services get work, by the gateway's own word.
    #[must_use]
    pub fn routable(&self) -> usize {
        self.stage.state.lock().routable
    }

    /// The code with which the gateway ended it for good.
    #[must_use]
    pub fn closed_with(&self) -> Option<String> {
        self.stage.state.lock().closed_with.clone()
    }

    /// Ends it and waits until its tasks are gone.
    pub async fn stop(&self) {
        if let Some(handle) = self.stage.state.lock().handle.take() {
            handle.close(cxmpute_wire::Code::Draining);
        }
        self.tasks.stop(Duration::ZERO).await;
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.tasks.soft().cancel();
        self.tasks.hard().cancel();
        if let Some(handle) = self.stage.state.lock().handle.take() {
            handle.close(cxmpute_wire::Code::Draining);
        }
    }
}

async fn keep_open(config: DialConfig, stage: Arc<Stage>, tasks: Tasks) {
    let stop = tasks.soft();
    let mut redial = tokio::time::interval(REDIAL);
    while !stop.is_cancelled() && stage.state.lock().closed_with.is_none() {
        redial.tick().await;
        match dial(&config, &tasks).await {
            Ok(end) => serve(end, &stage, &tasks).await,
            Err(DialError::Refused { code: Some(code), status, .. }) if status != 503 => {
                stage.state.lock().closed_with = Some(code.to_string());
            }
            Err(_) => {}
        }
    }
}

async fn serve(mut end: NodeEnd, stage: &Arc<Stage>, tasks: &Tasks) {
    let stop = tasks.soft();
    {
        let mut state = stage.state.lock();
        state.epoch = end.epoch;
        state.handle = Some(end.handle());
        state.routable = 0;
    }
    loop {
        let incoming = tokio::select! { incoming = end.next() => incoming, () = stop.cancelled() => return };
        match incoming {
            Some(Incoming::Control(pair)) => {
                tasks.spawn("stand-in-control", control(pair, end.epoch, Arc::clone(stage)));
            }
            Some(Incoming::Work(request)) => {
                tasks.spawn("stand-in-work", play::perform(request, end.handle(), Arc::clone(stage)));
            }
            None => return,
        }
    }
}

async fn control(mut pair: ControlPair, epoch: Epoch, stage: Arc<Stage>) {
    let mut beat = tokio::time::interval(HEARTBEAT);
    let mut seq = 0;
    loop {
        tokio::select! {
            message = pair.receiver.next() => match message {
                Some(Ok(message)) => hear(message, &stage),
                Some(Err(_)) | None => return,
            },
            _ = beat.tick() => {
                seq += 1;
                if pair.sender.send(&FromNode::Heartbeat(heartbeat(seq, epoch, &stage))).await.is_err() { return }
            }
            () = stage.speak.notified() => beat.reset_immediately(),
        }
    }
}

fn hear(message: ToNode, stage: &Stage) {
    let mut state = stage.state.lock();
    match message {
        ToNode::Desired(desired) => {
            state.desired = Some(desired);
            stage.speak.notify_one();
        }
        ToNode::Status(status) => state.routable = status.routable.len(),
        // A gateway that restarts ends the tunnel when its work is done; it is dialled again then.
        ToNode::Closing { code: Code::Draining, .. } => {}
        ToNode::Closing { code, .. } => state.closed_with = Some(code.to_string()),
    }
}

fn heartbeat(seq: u64, epoch: Epoch, stage: &Stage) -> Heartbeat {
    let state = stage.state.lock();
    let killed = |service: &DesiredService| {
        state.hungry.get(&service.model).is_some_and(|least| service.memory_claim <= *least)
    };
    let services = state.desired.iter().flat_map(|desired| &desired.services);
    let services = services.map(|service| (service, killed(service)));
    let services = services.map(|(service, killed)| ObservedService {
        service_id: service.service_id.clone(),
        state: if state.lacking.contains(&service.model) {
            ServiceState::Absent
        } else if killed {
            ServiceState::Failed
        } else {
            ServiceState::Ready
        },
        slots: 64,
        in_flight: 0,
        engine: "stand-in".to_owned(),
        pid: Some(1 + state.engines),
        digest: None,
        code: killed.then_some(Code::OutOfMemory),
        detail: None,
        progress: None,
    });
    Heartbeat {
        seq,
        boot: 1,
        epoch,
        observed_generation: state.desired.as_ref().map_or(Generation(0), |desired| desired.generation),
        services: services.collect(),
        in_flight: 0,
        queued: 0,
        gpus: Vec::new(),
        disk_free: Size(1 << 42),
        owner: OwnerState::Available,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// The text of `count` tokens.
#[must_use]
pub fn text(count: u64) -> String {
    (0..count).map(voice::word).collect()
}
