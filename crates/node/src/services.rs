//! The services of a node: what the plan says, made real.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cxmpute_runtime::CancellationToken;
use cxmpute_wire::control::{Desired, ObservedService, ServiceState};
use cxmpute_wire::{Code, Generation, ServiceId};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::models::Gate;
use crate::owner::Rest;
use crate::reconcile::{self, Action};
use crate::supervise::{Place, Service, Surroundings};

/// All services of one node. Cloning shares them.
#[derive(Clone, Debug)]
pub struct Services {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    around: Surroundings,
    draining: AtomicBool,
    rest: Mutex<Option<Rest>>,
    /// The owner uses the accelerators.
    yielding: AtomicBool,
    /// Bytes of requests and answers that nobody has counted yet.
    transferred: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    generation: Generation,
    /// The newest plan of this tunnel; a gateway whose books were restored counts on from an older one.
    newest: Generation,
    /// The last plan, to go on with after a rest that stopped its engines.
    plan: Option<Desired>,
    running: BTreeMap<ServiceId, Service>,
    /// Services that the plan no longer names and whose engines still run, the oldest of an id first: each waits for the
    /// one before, so that the last one ends last.
    ending: BTreeMap<ServiceId, Vec<Service>>,
}

impl State {
    /// Every service whose engine may run.
    fn all(&self) -> impl Iterator<Item = &Service> {
        self.running.values().chain(self.ending.values().flatten())
    }
}

impl Services {
    /// None yet.
    #[must_use]
    pub fn new(around: Surroundings) -> Self {
        Self {
            inner: Arc::new(Inner {
                around,
                draining: AtomicBool::new(false),
                rest: Mutex::new(None),
                yielding: AtomicBool::new(false),
                transferred: AtomicU64::new(0),
                state: Mutex::default(),
            }),
        }
    }

    /// A tunnel stands: whatever its gateway plans first is newer than all plans before.
    pub fn begin_session(&self) {
        self.inner.state.lock().newest = Generation::default();
    }

    /// Begins to make the plan real. Plans that are older than the last one of this tunnel are ignored; the same plan
    /// changes nothing.
    pub fn apply(&self, desired: &Desired) {
        let mut state = self.inner.state.lock();
        if desired.generation >= state.newest {
            state.newest = desired.generation;
            self.follow(&mut state, desired);
        }
        drop(state);
        self.inner.around.changes.send_modify(|count| *count += 1);
    }

    fn follow(&self, state: &mut State, desired: &Desired) {
        if self.is_draining() {
            return;
        }
        let around = &self.inner.around;
        state.generation = desired.generation;
        state.plan = Some(desired.clone());
        let images =
            desired.services.iter().filter_map(|service| Some(service.container.as_ref()?.image.clone()));
        *around.images.lock() = images.collect();
        let nothing = self.resting().is_some_and(|rest| rest.free_memory);
        state.ending.retain(|_, services| {
            services.retain(|service| !service.has_ended());
            !services.is_empty()
        });
        for want in &desired.services {
            if let Some(service) = state.running.get_mut(&want.service_id)
                && service.has_files()
                && reconcile::same_but_sources(&service.desired, want)
            {
                service.desired = want.clone();
            }
        }
        let have = state.running.iter().map(|(id, service)| (id.clone(), service.desired.clone())).collect();
        let yielding = self.is_yielding();
        let on_gpu = |service: &ServiceId| {
            desired.services.iter().any(|want| want.service_id == *service && !want.gpus.is_empty())
        };
        let allowed = |service: &ServiceId| {
            let stays = !nothing && (!yielding || !on_gpu(service));
            stays && around.config.services.allows(service)
        };
        for action in reconcile::plan(&desired.services, &have, allowed) {
            match action {
                Action::Stop(id) => {
                    if let Some(service) = state.running.remove(&id) {
                        if yielding && !service.desired.gpus.is_empty() {
                            tracing::info!(service = %id, "stopping at once: the owner uses the accelerators");
                            service.withdraw();
                        } else {
                            tracing::info!(service = %id, "stopping: the plan does not name it like this any more");
                            service.stop();
                        }
                        state.ending.entry(id).or_default().push(service);
                    }
                }
                Action::Start(want) => {
                    let id = want.service_id.clone();
                    tracing::info!(service = %id, generation = %desired.generation, "starting");
                    let before =
                        state.ending.get(&id).and_then(|services| services.last()).map(Service::stop);
                    let service = Service::start(around, want, desired.generation, before);
                    state.running.insert(id, service);
                }
            }
        }
        for service in state.running.values_mut() {
            // What runs as this plan wants it takes its work, however the plans were counted before.
            service.since = service.since.min(desired.generation);
        }
    }

    /// Follows the last plan anew: what is allowed has changed.
    fn follow_again(&self, state: &mut State) {
        if let Some(plan) = state.plan.clone() {
            self.follow(state, &plan);
        }
    }

    /// A place for one request that was routed by the plan of `generation`.
    ///
    /// # Errors
    /// `draining`, `generation_stale`, `not_ready` or `capacity_full`.
    pub fn enter(&self, service: &ServiceId, generation: Generation) -> Result<Place, Code> {
        if self.is_draining() || self.resting().is_some() {
            return Err(Code::Draining);
        }
        let state = self.inner.state.lock();
        match state.running.get(service) {
            Some(service) if generation < service.since => Err(Code::GenerationStale),
            Some(service) => service.enter(),
            None if generation < state.generation => Err(Code::GenerationStale),
            None => Err(Code::NotReady),
        }
    }

    /// What each service is doing, and the plan it belongs to.
    #[must_use]
    pub fn observed(&self) -> (Generation, Vec<ObservedService>) {
        let state = self.inner.state.lock();
        // Of an id one is told: the one that is wanted, or the one that ends last.
        let ending = state.ending.iter().filter(|(id, _)| !state.running.contains_key(*id));
        let ending =
            ending.filter_map(|(_, services)| services.last()).filter(|service| !service.has_ended());
        let mut services: Vec<ObservedService> =
            state.running.values().chain(ending).map(Service::observed).collect();
        if let Some(wait) = self.gate().waits() {
            let held = services.iter_mut().filter(|service| service.state == ServiceState::Downloading);
            held.for_each(|service| service.detail = Some(wait.sentence().to_owned()));
        }
        (state.generation, services)
    }

    /// Requests being worked on.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        let state = self.inner.state.lock();
        state.all().map(Service::in_flight).sum()
    }

    /// The processes of all engines, also of those that end.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.inner.state.lock().all().filter_map(Service::pid).collect()
    }

    /// Whether servers of the owner work for this node, or did in the time before.
    #[must_use]
    pub fn work_outside(&self, before: Duration) -> bool {
        self.inner.state.lock().all().any(|service| service.works_outside(before))
    }

    /// Whether no new work is taken.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.inner.draining.load(Ordering::Relaxed)
    }

    /// Takes no new work and no new plans from now on.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Relaxed);
        self.inner.around.changes.send_modify(|count| *count += 1);
    }

    /// Gives all running work up; only before the end of the node, because no service takes work again.
    pub fn give_up(&self) {
        let state = self.inner.state.lock();
        state.running.values().chain(state.ending.values().flatten()).for_each(Service::give_up);
    }

    /// The rest that is kept now.
    #[must_use]
    pub fn resting(&self) -> Option<Rest> {
        *self.inner.rest.lock()
    }

    /// Begins, changes or ends a rest. Work that runs goes on; a rest that frees memory stops engines once their work is
    /// done, and its end starts them again by the last plan.
    pub fn rest(&self, rest: Option<Rest>) {
        let before = std::mem::replace(&mut *self.inner.rest.lock(), rest);
        if before == rest {
            return;
        }
        match rest {
            Some(rest) => tracing::info!(cause = ?rest.cause, rest.free_memory, "no new work is taken"),
            None => tracing::info!("work is taken again"),
        }
        self.follow_again(&mut self.inner.state.lock());
        self.inner.around.changes.send_modify(|count| *count += 1);
    }

    /// Whether the accelerators are left to the owner.
    #[must_use]
    pub fn is_yielding(&self) -> bool {
        self.inner.yielding.load(Ordering::Relaxed)
    }

    /// Leaves the accelerators to the owner, or takes them again. Services on them end at once, with their work: before its
    /// first token it goes to another node. All others go on.
    pub fn yield_gpus(&self, yielding: bool) {
        if self.inner.yielding.swap(yielding, Ordering::Relaxed) == yielding {
            return;
        }
        match yielding {
            true => tracing::info!("the owner uses the accelerators; services leave them"),
            false => tracing::info!("the accelerators are quiet; services come back"),
        }
        {
            let mut state = self.inner.state.lock();
            if yielding {
                // Those that end already and those of a node that drains, too; the plan leaves the others out.
                for service in state.all().filter(|service| !service.desired.gpus.is_empty()) {
                    service.withdraw();
                }
            }
            self.follow_again(&mut state);
        }
        self.inner.around.changes.send_modify(|count| *count += 1);
    }

    /// Counts bytes of a request or an answer.
    pub fn count_transfer(&self, bytes: usize) {
        self.inner.transferred.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// What lets files of models come, or makes them wait.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        self.inner.around.models.gate()
    }

    /// Bytes of requests and answers that were not taken from here yet.
    #[must_use]
    pub fn transferred(&self) -> &AtomicU64 {
        &self.inner.transferred
    }

    /// Moves with every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.around.changes.subscribe()
    }

    /// Stops everything; returns when the last engine is gone.
    pub async fn stop(&self) {
        self.drain();
        let ends: Vec<CancellationToken> = {
            let state = self.inner.state.lock();
            state.all().map(Service::stop).collect()
        };
        for end in ends {
            end.cancelled().await;
        }
        let gone = std::mem::take(&mut *self.inner.state.lock());
        drop(gone);
    }
}
