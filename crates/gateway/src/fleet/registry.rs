//! Who is attached. The newest tunnel of a provision is the only one; an older one is told so and closed.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cxmpute_market::assign::{Board, Demand, Need};
use cxmpute_market::catalogue::Catalogue;
use cxmpute_market::queue::Class;
use cxmpute_market::route::Nobody;
use cxmpute_market::speed::percentile;
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_store::Db;
use cxmpute_tunnel::Link;
use cxmpute_wire::control::{Heartbeat, ObservedService};
use cxmpute_wire::{Epoch, ProvisionId, ServiceId, UserId};
use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use super::line::{Ticket, Waiting};
use super::memory::Memory;
use super::node::{Member, Node, ProvisionSession};
use super::overload::Lag;
use super::pool::{Pool, Wanted};
use super::seat::Seat;
use super::{canary, control};
use crate::config::RelayConfig;
use crate::counters::Counters;
use crate::larder::Larder;
use crate::seals::SealBook;

/// How often silence is looked for; a fraction of the shortest span that matters.
const WATCH: Duration = Duration::from_millis(500);
/// A service whose last node left longer ago than this is not waited for.
const HOPE: Duration = Duration::from_secs(60);

/// One request that waits for a node.
const QUEUED: Demand = Demand { requests: 0, queued: 1, refused: 0, units: 0 };
/// One request that got none.
const REFUSED: Demand = Demand { requests: 0, queued: 0, refused: 1, units: 0 };

/// What the fleet works with.
#[derive(Clone)]
pub struct FleetParts {
    /// Store.
    pub db: Db,
    /// Models.
    pub catalogue: Arc<Catalogue>,
    /// Tokenizers, for checking what a canary claims.
    pub counters: Counters,
    /// Time.
    pub clock: Clock,
    /// Owner of the tasks.
    pub tasks: Tasks,
    /// Deadlines.
    pub relay: RelayConfig,
    /// Name of this process among those that share the store.
    pub replica: String,
    /// Whether engines may fetch models that nobody pins.
    pub downloads: bool,
    /// Model files, and where else nodes may look for them.
    pub larder: Arc<Larder>,
    /// The operator's signatures over the catalogue, where it is sealed.
    pub seals: Option<SealBook>,
    /// The known-bad variant under test.
    #[cfg(feature = "sabotage")]
    pub sabotage: Option<crate::sabotage::Sabotage>,
}

/// The nodes that are here. Clones share them.
#[derive(Clone)]
pub struct Fleet {
    inner: Arc<Inner>,
}

struct Inner {
    parts: FleetParts,
    nodes: RwLock<HashMap<ProvisionId, Arc<Node>>>,
    pools: RwLock<HashMap<ServiceId, Arc<Pool>>>,
    memory: Memory,
    /// Provisions whose tunnel ended, and when; until they come back or are planned around.
    away: Mutex<HashMap<ProvisionId, Duration>>,
    lag: Lag,
    running: AtomicUsize,
    /// The catalogue as the plan sees it.
    needs: Arc<[Need]>,
    /// Who serves what, for planning one provision at a time.
    board: Mutex<Board>,
    plan_wanted: Notify,
}

/// How a service stands, for the model list. What was not measured is absent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct FleetState {
    /// Nodes that get work.
    pub routable: u64,
    /// Whether some node is on the way to being ready.
    pub loading: bool,
    /// Countries of the nodes that get work.
    pub regions: Vec<String>,
    /// Quantisations of what they serve.
    pub quantizations: Vec<String>,
    /// Milliseconds to the first token that half of the last requests kept.
    pub ttft_ms_p50: Option<f64>,
    /// The same of 95 in 100.
    pub ttft_ms_p95: Option<f64>,
    /// Tokens per second that half of the last requests had.
    pub tokens_per_s_p50: Option<f64>,
    /// Share of the last 30 min in which some node got work.
    pub uptime_30m: Option<f64>,
}

impl Fleet {
    /// An empty fleet, with the task that watches for silence.
    #[must_use]
    pub fn start(parts: FleetParts) -> Self {
        let needs: Arc<[Need]> = parts.catalogue.entries().iter().map(|entry| Need::from(&**entry)).collect();
        let inner = Inner {
            board: Mutex::new(Board::new(&needs, parts.downloads)),
            needs,
            plan_wanted: Notify::new(),
            parts,
            nodes: RwLock::default(),
            pools: RwLock::default(),
            memory: Memory::default(),
            away: Mutex::default(),
            lag: Lag::default(),
            running: AtomicUsize::new(0),
        };
        let fleet = Self { inner: Arc::new(inner) };
        fleet.parts().tasks.spawn("fleet-watch", fleet.clone().watch());
        fleet.parts().tasks.spawn("fleet-plan", fleet.clone().keep_planned());
        fleet.parts().tasks.spawn("lag-watch", Lag::measure(fleet.clone(), fleet.parts().tasks.soft()));
        fleet
    }

    pub(super) fn lag(&self) -> &Lag {
        &self.inner.lag
    }

    pub(super) fn parts(&self) -> &FleetParts {
        &self.inner.parts
    }

    pub(super) fn needs(&self) -> Arc<[Need]> {
        self.inner.needs.clone()
    }

    pub(super) fn board(&self) -> &Mutex<Board> {
        &self.inner.board
    }

    /// Lets the fleet be planned without waiting for the minute.
    pub fn plan_soon(&self) {
        self.inner.plan_wanted.notify_one();
    }

    pub(super) async fn planning_wanted(&self) {
        self.inner.plan_wanted.notified().await;
    }

    pub(super) fn attached(&self, provision: &ProvisionId) -> Option<Arc<Node>> {
        self.inner.nodes.read().get(provision).cloned()
    }

    /// What a provision has or allows may have changed: its services are planned again, if it is here.
    pub fn replan(&self, provision: &ProvisionId) {
        if let Some(node) = self.attached(provision) {
            node.replan.notify_one();
        }
    }

    /// What was asked of each service within the last minutes, as far as anything was.
    pub(super) fn asked(&self) -> HashMap<ServiceId, Demand> {
        let now = self.now();
        let pools = self.inner.pools.read();
        let asked = pools.iter().map(|(service, pool)| (service.clone(), pool.demand.lock().sum(now)));
        asked.filter(|(_, demand)| !demand.is_none()).collect()
    }

    /// Takes a tunnel in. An older tunnel of the same provision is told `epoch_stale` and closed; if a newer one is
    /// here already, this one is.
    pub fn attach(&self, link: Link, session: ProvisionSession) {
        let now = self.now();
        let node = Arc::new(Node::new(session, link, now));
        let id = node.session.provision_id.clone();
        let old = {
            let mut nodes = self.inner.nodes.write();
            match nodes.get(&id) {
                Some(other) if other.session.epoch >= node.session.epoch => Some(node.clone()),
                _ => nodes.insert(id.clone(), node.clone()),
            }
        };
        if let Some(old) = old {
            tracing::warn!(provision = %id, epoch = %old.session.epoch, "a second tunnel of a provision: the older one is closed");
            metrics::counter!("cxmpute_stale_tunnels_total").increment(1);
            old.superseded.cancel();
            self.forget(&old);
            if Arc::ptr_eq(&old, &node) {
                control::refuse_stale(self, node);
                return;
            }
        }
        self.inner.away.lock().remove(&id);
        tracing::info!(provision = %id, epoch = %node.session.epoch, "a node is here");
        let tending = control::tend(self.clone(), node);
        self.parts().tasks.spawn("node-control", tending);
    }

    /// Whether a tunnel is the newest of its provision.
    #[must_use]
    pub fn is_current(&self, provision: &ProvisionId, epoch: Epoch) -> bool {
        self.inner.nodes.read().get(provision).is_some_and(|node| node.session.epoch == epoch)
    }

    /// Closes the tunnel of a provision that may not work any more (revoked, suspended, retired).
    pub fn expel(&self, provision: &ProvisionId, code: cxmpute_wire::Code) {
        let node = self.inner.nodes.write().remove(provision);
        if let Some(node) = node {
            node.superseded.cancel();
            self.forget(&node);
            node.link.close(code);
        }
    }

    /// Attached nodes.
    #[must_use]
    pub fn nodes(&self) -> Vec<Arc<Node>> {
        self.inner.nodes.read().values().cloned().collect()
    }

    /// Chooses a node for one attempt and books it, unless others wait for one already.
    ///
    /// # Errors
    /// The filter that left nobody.
    pub fn take_seat(&self, service: &ServiceId, wanted: &Wanted<'_>) -> Result<Seat, Nobody> {
        self.pool(service).take_first(wanted)
    }

    /// The wish of a request that leaves none of the nodes that are here, if one does: nothing needs to be bound to
    /// say so.
    #[must_use]
    pub fn unfulfilled(&self, service: &ServiceId, wanted: &Wanted<'_>) -> Option<Nobody> {
        self.pool(service).unfulfilled(wanted)
    }

    /// Why there is no seat for this request, whoever else waits, now that its time in the line is over: it counts as
    /// refused.
    #[must_use]
    pub fn why_not(&self, service: &ServiceId, wanted: &Wanted<'_>) -> Nobody {
        let pool = self.pool(service);
        pool.count(&REFUSED);
        pool.why_not(wanted)
    }

    /// Whether a request that has to wait would get into the line.
    #[must_use]
    pub fn admits(&self, service: &ServiceId, payer: &UserId, class: Class) -> bool {
        let pool = self.pool(service);
        let admits = pool.admits(payer, class);
        if !admits {
            pool.count(&REFUSED);
        }
        admits
    }

    /// Joins the line of a service; `None` when it is full. The place is held until it is dropped.
    #[must_use]
    pub fn join(&self, service: &ServiceId, waiting: Waiting, class: Class) -> Option<Ticket> {
        let pool = self.pool(service);
        let ticket = pool.join(waiting, class);
        pool.count(if ticket.is_some() { &QUEUED } else { &REFUSED });
        ticket
    }

    /// Whether waiting for a node of this service can make sense: one is here, one was here lately, or the gateway
    /// itself started lately. A request without hope is refused, and counts as demand that nobody met.
    #[must_use]
    pub fn is_hopeful(&self, service: &ServiceId) -> bool {
        let now = self.now();
        let pool = self.pool(service);
        let last = if pool.members().is_empty() { *pool.last_seen.lock() } else { Some(now) };
        let hopeful = now < HOPE || last.is_some_and(|last| now.saturating_sub(last) < HOPE);
        if !hopeful {
            pool.count(&REFUSED);
        }
        hopeful
    }

    /// The state nearest to ready of the nodes that do not take work of this service yet.
    #[must_use]
    pub fn loading(&self, service: &ServiceId) -> Option<String> {
        self.pool(service).loading().map(super::record::state_name)
    }

    /// How a service stands, for the model list.
    #[must_use]
    pub fn state(&self, service: &ServiceId) -> FleetState {
        let pool = self.pool(service);
        let mut state = FleetState { loading: pool.loading().is_some(), ..FleetState::default() };
        let (mut latencies, mut rates) = (Vec::new(), Vec::new());
        for member in pool.members() {
            {
                let health = member.health.lock();
                latencies.extend(health.latencies.iter());
                rates.extend(health.rates.iter());
            }
            if member.routable() {
                state.routable += 1;
                state.regions.extend(member.traits.region.clone());
                state.quantizations.extend(member.traits.quantization.clone());
            }
        }
        for list in [&mut state.regions, &mut state.quantizations] {
            list.sort_unstable();
            list.dedup();
        }
        state.ttft_ms_p50 = percentile(latencies.clone(), 50.0);
        state.ttft_ms_p95 = percentile(latencies, 95.0);
        state.tokens_per_s_p50 = percentile(rates, 50.0);
        state.uptime_30m = pool.uptime.lock().share();
        state
    }

    /// Whether a provision's service gets work now.
    #[must_use]
    pub fn is_routable(&self, provision: &ProvisionId, service: &ServiceId) -> bool {
        let node = self.inner.nodes.read().get(provision).cloned();
        node.is_some_and(|node| node.members().iter().any(|m| m.service == *service && m.routable()))
    }

    /// Counts a request towards the retry budget of a service.
    pub fn count_request(&self, service: &ServiceId) {
        self.pool(service).count_request();
    }

    /// Takes one retry out of the budget of a service (GR31).
    #[must_use]
    pub fn take_retry(&self, service: &ServiceId) -> bool {
        self.pool(service).take_retry()
    }

    pub(super) fn now(&self) -> Duration {
        self.parts().clock.mono()
    }

    pub(super) fn pool(&self, service: &ServiceId) -> Arc<Pool> {
        if let Some(pool) = self.inner.pools.read().get(service) {
            return pool.clone();
        }
        let mut pools = self.inner.pools.write();
        pools.entry(service.clone()).or_insert_with(|| Arc::new(Pool::new(self.parts()))).clone()
    }

    /// Takes a heartbeat in: load, states, new services, and which checks are due.
    pub(super) fn observe(&self, node: &Arc<Node>, heartbeat: &Heartbeat) {
        let now = self.now();
        if node.hear(now, Some(heartbeat)) {
            tracing::info!(provision = %node.session.provision_id, "a silent node speaks again");
            node.replan.notify_one();
        }
        for observed in &heartbeat.services {
            // A service that no catalogue entry names cannot be priced, so it cannot be routed.
            if self.entry(&observed.service_id).is_none() {
                continue;
            }
            let member = self.member(node, observed, now);
            member.observe(observed, heartbeat.queued, self.parts().relay.slots_cap, now);
            canary::start_if_due(self, &member);
            let pool = self.pool(&observed.service_id);
            *pool.last_seen.lock() = Some(now);
            if member.routable() {
                pool.pump();
            }
        }
        // What a complete heartbeat does not name is not there.
        for member in node.members() {
            if !heartbeat.services.iter().any(|observed| observed.service_id == member.service) {
                member.state.lock().state = cxmpute_wire::control::ServiceState::Absent;
            }
        }
    }

    pub(super) fn entry(&self, service: &ServiceId) -> Option<Arc<cxmpute_market::catalogue::ModelEntry>> {
        self.parts().catalogue.by_service(service).cloned()
    }

    fn member(&self, node: &Arc<Node>, observed: &ObservedService, now: Duration) -> Arc<Member> {
        let service = &observed.service_id;
        if let Some(member) = node.live.lock().members.get(service) {
            return member.clone();
        }
        let policy = self.parts().relay.breaker();
        let health = self.inner.memory.of(&node.session.provision_id, service, policy, now);
        // What somebody else's engine loaded for the model is not known.
        let quantization = self
            .entry(service)
            .filter(|_| observed.engine != "external")
            .and_then(|entry| entry.quantization.clone());
        let member = Arc::new(Member::new(node.clone(), service.clone(), quantization, health, now));
        node.live.lock().members.insert(service.clone(), member.clone());
        // A tunnel that was replaced meanwhile adds nobody.
        if !node.superseded.is_cancelled() {
            self.pool(service).add(member.clone());
        }
        member
    }

    /// Takes a node's services out of the choice.
    fn forget(&self, node: &Node) {
        let members = std::mem::take(&mut node.live.lock().members);
        let session = &node.session;
        for service in members.keys() {
            let pool = self.pool(service);
            pool.remove(&session.provision_id, session.epoch);
            *pool.last_seen.lock() = Some(self.now());
        }
    }

    /// The tunnel ended.
    pub(super) async fn detach(&self, node: &Arc<Node>, reason: &str) {
        let id = &node.session.provision_id;
        let newest = {
            let mut nodes = self.inner.nodes.write();
            let mine = nodes.get(id).is_some_and(|other| Arc::ptr_eq(other, node));
            if mine {
                nodes.remove(id);
            }
            mine
        };
        self.forget(node);
        if newest {
            node.superseded.cancel();
            self.inner.away.lock().insert(id.clone(), self.now());
            tracing::info!(provision = %id, epoch = %node.session.epoch, reason, "a node is gone");
        }
        let parts = self.parts();
        if let Err(error) = parts.db.close_epoch(id, node.session.epoch, reason, parts.clock.now()).await {
            tracing::warn!(%error, "the end of a tunnel was not stored");
        }
    }

    fn note_uptime(&self, now: Duration) {
        let pools: Vec<Arc<Pool>> = self.inner.pools.read().values().cloned().collect();
        for pool in pools {
            let up = pool.members().iter().any(|member| member.routable());
            pool.uptime.lock().note(up, now);
        }
    }

    /// Looks for silence: 15 s make a node offline, 60 s let its services be planned anew.
    async fn watch(self) {
        let soft = self.parts().tasks.soft();
        loop {
            tokio::select! {
                () = soft.cancelled() => return,
                () = tokio::time::sleep(WATCH) => {}
            }
            let now = self.now();
            let relay = &self.parts().relay;
            self.note_uptime(now);
            self.inner.memory.forget_old(now);
            for node in self.nodes() {
                let mut live = node.live.lock();
                let silent = now.saturating_sub(live.heard);
                if !live.offline && silent >= relay.offline() {
                    live.offline = true;
                    drop(live);
                    tracing::warn!(provision = %node.session.provision_id, "a node is silent and counts as offline");
                    self.inner
                        .away
                        .lock()
                        .insert(node.session.provision_id.clone(), now.saturating_sub(silent));
                } else if !live.offline {
                    drop(live);
                    self.inner.away.lock().remove(&node.session.provision_id);
                }
            }
            let late: Vec<(ProvisionId, Duration)> = {
                let mut away = self.inner.away.lock();
                let late = away
                    .iter()
                    .map(|(id, since)| (id.clone(), now.saturating_sub(*since)))
                    .filter(|(_, span)| *span >= relay.replan())
                    .collect::<Vec<_>>();
                for (id, _) in &late {
                    away.remove(id);
                }
                late
            };
            for (id, span) in late {
                self.replan_without(&id, span).await;
            }
            metrics::gauge!("cxmpute_nodes_attached").set(self.inner.nodes.read().len() as f64);
        }
    }
}

/// A request that runs; tunnels stay open for it while the process stops.
pub struct RunningRequest {
    fleet: Fleet,
}

impl Drop for RunningRequest {
    fn drop(&mut self) {
        self.fleet.inner.running.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Fleet {
    /// Counts a request as running until the guard is dropped.
    #[must_use]
    pub fn begin_request(&self) -> RunningRequest {
        self.inner.running.fetch_add(1, Ordering::AcqRel);
        RunningRequest { fleet: self.clone() }
    }

    /// Requests that run now.
    #[must_use]
    pub fn running(&self) -> usize {
        self.inner.running.load(Ordering::Acquire)
    }
}
