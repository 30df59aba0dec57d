//! One attached node: its tunnel and what it said last.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cxmpute_market::health::{Breaker, BreakerPolicy, Gate, PeakEwma};
use cxmpute_market::speed::{Rate, Samples};
use cxmpute_market::wish::{Evidence, Traits};
use cxmpute_runtime::CancellationToken;
use cxmpute_tunnel::Link;
use cxmpute_wire::control::{Heartbeat, ObservedService, OwnerState, ServiceState};
use cxmpute_wire::{Bytes, Epoch, Generation, ProvisionId, ServiceId, UserId};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Who stands behind a tunnel, as the handshake established it.
#[derive(Debug, Clone)]
pub struct ProvisionSession {
    /// The provision.
    pub provision_id: ProvisionId,
    /// Its owner.
    pub owner: UserId,
    /// Country, two letters in capitals, where its owner said so.
    pub region: Option<String>,
    /// The tunnel's number; only the newest is valid.
    pub epoch: Epoch,
    /// The desired state that the store holds.
    pub generation: Generation,
}

/// One attached node.
#[derive(Debug)]
pub struct Node {
    /// Who it is.
    pub session: ProvisionSession,
    /// The tunnel.
    pub link: Link,
    /// Cancelled when a newer tunnel of the same provision took over.
    pub(super) superseded: CancellationToken,
    /// Woken when the desired state may have changed.
    pub(super) replan: Notify,
    /// Whether the next plan may end a service that runs for a better one.
    pub(super) may_switch: AtomicBool,
    /// Woken when what the node may show its owner has changed.
    pub(super) news: Notify,
    pub(super) live: Mutex<Live>,
}

/// What changes while a node is attached.
#[derive(Debug)]
pub(super) struct Live {
    /// Last word of the node, in time since the process started.
    pub heard: Duration,
    /// It was silent for too long.
    pub offline: bool,
    pub owner: OwnerState,
    /// Free disk of the models, as it said last.
    pub disk_free: Option<Bytes>,
    pub generation: Generation,
    pub members: HashMap<ServiceId, Arc<Member>>,
}

impl Node {
    pub(super) fn new(session: ProvisionSession, link: Link, now: Duration) -> Self {
        let live = Live {
            heard: now,
            offline: false,
            owner: OwnerState::Available,
            disk_free: None,
            generation: session.generation,
            members: HashMap::new(),
        };
        Self {
            session,
            link,
            superseded: CancellationToken::new(),
            replan: Notify::new(),
            may_switch: AtomicBool::new(false),
            news: Notify::new(),
            live: Mutex::new(live),
        }
    }

    /// Whether it may get work at all: its tunnel is the newest, it speaks, and its owner lets it.
    pub(super) fn takes_work(&self) -> bool {
        let live = self.live.lock();
        !live.offline && live.owner == OwnerState::Available && !self.superseded.is_cancelled()
    }

    /// The desired state it was given last.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.live.lock().generation
    }

    /// Free disk of the models, once it has said so.
    pub(super) fn disk_free(&self) -> Option<Bytes> {
        self.live.lock().disk_free
    }

    /// Its services.
    pub(super) fn members(&self) -> Vec<Arc<Member>> {
        self.live.lock().members.values().cloned().collect()
    }

    /// Notes that it spoke; true when it had been offline.
    pub(super) fn hear(&self, now: Duration, heartbeat: Option<&Heartbeat>) -> bool {
        let mut live = self.live.lock();
        live.heard = now;
        if let Some(heartbeat) = heartbeat {
            live.owner = heartbeat.owner;
            live.disk_free = Some(heartbeat.disk_free).filter(|free| free.0 > 0);
        }
        std::mem::take(&mut live.offline)
    }
}

/// How a node does at a service; outlives its tunnels.
#[derive(Debug)]
pub(super) struct Health {
    pub latency: PeakEwma,
    /// Tokens per second of one request.
    pub rate: Rate,
    /// The last times to the first token in milliseconds, and the last rates.
    pub latencies: Samples,
    pub rates: Samples,
    pub breaker: Breaker,
    /// When real work succeeded last.
    pub last_good: Option<Duration>,
    /// The tunnel whose loss was counted: one lost tunnel is one fault, however many streams it carried.
    pub lost_epoch: Option<Epoch>,
}

impl Health {
    pub(super) fn new(policy: BreakerPolicy, now: Duration) -> Self {
        Self {
            last_good: None,
            latency: PeakEwma::unknown(now),
            rate: Rate::default(),
            latencies: Samples::default(),
            rates: Samples::default(),
            breaker: Breaker::new(policy),
            lost_epoch: None,
        }
    }
}

impl Health {
    /// Whether real work went well lately.
    pub(super) fn works(&self, now: Duration) -> bool {
        const LATELY: Duration = Duration::from_secs(60);
        let lately = self.last_good.is_some_and(|at| now.saturating_sub(at) <= LATELY);
        lately && self.breaker.gate(now) == Gate::Closed
    }
}

/// How far the check of a service through this tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// It is due from this moment on.
    Due { at: Duration, tries: u32 },
    /// It runs.
    Running { tries: u32 },
    /// It passed.
    Passed,
}

/// One service on one attached node.
#[derive(Debug)]
pub(super) struct Member {
    pub node: Arc<Node>,
    pub service: ServiceId,
    pub traits: Traits,
    pub health: Arc<Mutex<Health>>,
    /// Requests of this gateway on it, booked when routed (GR23).
    pub in_flight: AtomicU32,
    pub state: Mutex<MemberState>,
    breaker_open: OnceLock<metrics::Gauge>,
}

#[derive(Debug, Clone)]
pub(super) struct MemberState {
    pub state: ServiceState,
    pub slots: u32,
    pub foreign: u32,
    pub pid: Option<u32>,
    pub check: Check,
    /// It said that it has no room, whatever slots it claims; believed until this moment.
    pub full_until: Duration,
    /// A check through this tunnel passed, and the service never stopped being ready since.
    pub proven: bool,
    /// It gets work though a new check is due or failed: real work goes well, and that outranks probes (GR29).
    pub kept: bool,
}

impl Member {
    pub(super) fn new(
        node: Arc<Node>,
        service: ServiceId,
        quantization: Option<String>,
        health: Arc<Mutex<Health>>,
        now: Duration,
    ) -> Self {
        let session = &node.session;
        let traits = Traits {
            owner: session.owner.clone(),
            slug: slug(&session.provision_id),
            region: session.region.clone(),
            quantization,
            // Nobody gets work before the check through its tunnel, and nothing attests more yet.
            evidence: Evidence::CanaryPassed,
            // No node can state yet what it keeps, so none is known to keep nothing.
            keeps_nothing: false,
        };
        let state = MemberState {
            state: ServiceState::Absent,
            slots: 0,
            foreign: 0,
            pid: None,
            check: Check::Due { at: now, tries: 0 },
            full_until: Duration::ZERO,
            proven: false,
            kept: false,
        };
        Self {
            node,
            service,
            traits,
            health,
            in_flight: AtomicU32::new(0),
            state: Mutex::new(state),
            breaker_open: OnceLock::new(),
        }
    }

    /// Shows operators where the breaker stands: 0 closed, 1 open, half for the time of trials.
    pub(super) fn show_breaker(&self, now: Duration) {
        let open = match self.health.lock().breaker.gate(now) {
            Gate::Closed => 0.0,
            Gate::Trial | Gate::Trying => 0.5,
            Gate::Open { .. } => 1.0,
        };
        let meter = || {
            metrics::gauge!("cxmpute_breaker_open",
                "provision" => self.node.session.provision_id.as_str().to_owned(),
                "service" => self.service.as_str().to_owned())
        };
        self.breaker_open.get_or_init(meter).set(open);
    }

    /// Takes the node's word in. A service that was away, or whose engine is another process now, is checked anew.
    pub(super) fn observe(&self, observed: &ObservedService, queued: u32, slots_cap: u32, now: Duration) {
        let mut state = self.state.lock();
        let other_engine = observed.pid.is_some() && state.pid.is_some() && observed.pid != state.pid;
        let checkable = !matches!(state.check, Check::Running { .. });
        let ready = observed.state == ServiceState::Ready;
        state.proven &= ready;
        state.kept = ready && (state.kept || (state.proven && other_engine));
        if checkable && (!ready || other_engine) {
            state.check = Check::Due { at: now, tries: 0 };
        }
        state.state = observed.state;
        state.pid = observed.pid;
        // The node's word is clamped wherever it comes in (GR23).
        state.slots = observed.slots.clamp(1, slots_cap.max(1));
        // Load that is not this gateway's own, which is booked already.
        let own = self.in_flight.load(Ordering::Relaxed);
        state.foreign = observed.in_flight.saturating_add(queued).saturating_sub(own).min(slots_cap);
    }

    /// Whether work may be sent.
    pub(super) fn routable(&self) -> bool {
        let state = self.state.lock();
        let fit = state.check == Check::Passed || state.kept;
        state.state == ServiceState::Ready && fit && self.node.takes_work()
    }
}

/// The name of a node for clients: enough to tell nodes apart, useless to reach one.
pub fn slug(provision: &ProvisionId) -> String {
    let id = provision.as_str();
    id.get(..13).unwrap_or(id).to_owned()
}
