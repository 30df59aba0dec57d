//! One supervised service, as serving and reporting see it. Its task is `keeper`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use cxmpute_runtime::lifecycle::OwnedTask;
use cxmpute_runtime::{CancellationToken, Clock};
use cxmpute_wire::control::{DesiredService, ObservedService, Progress, ServiceState};
use cxmpute_wire::{Code, Generation};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Surroundings;
use super::keeper::Keeper;
use crate::engines::Adapter;

/// A service that is being kept running. Dropping it ends its engine at once; [`Service::stop`] asks politely.
#[derive(Debug)]
pub struct Service {
    /// What the plan says.
    pub desired: DesiredService,
    /// The plan that first said it so; work of older plans is not for this engine.
    pub since: Generation,
    shared: Arc<Shared>,
    stop: CancellationToken,
    ended: CancellationToken,
    _task: OwnedTask,
}

/// What serving and supervising share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) view: Mutex<View>,
    pub(super) in_flight: AtomicU32,
    /// Moment of the last piece of work that succeeded, in milliseconds of the clock's monotonic time.
    pub(super) last_work_ms: AtomicU64,
    /// Probes that are being asked.
    probes: AtomicU32,
    /// Moment at which the last work or probe ended, however it did, in the same milliseconds.
    last_end_ms: AtomicU64,
    clock: Clock,
    /// Somebody could not reach the engine.
    pub(super) doubt: Notify,
    /// The owner wants the machine back at once, or the time for running work to end is over.
    pub(super) withdrawn: CancellationToken,
}

#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) state: ServiceState,
    pub(super) adapter: Option<Arc<Adapter>>,
    pub(super) pid: Option<u32>,
    pub(super) digest: Option<String>,
    pub(super) trouble: Option<(Code, String)>,
    /// How far what has to be fetched is, in words.
    pub(super) progress: Option<String>,
    /// How far files are that are fetched or checked.
    pub(super) files: Option<Progress>,
}

impl Shared {
    fn note_end(&self) {
        self.last_end_ms.fetch_max(millis(&self.clock), Ordering::Relaxed);
    }
}

fn millis(clock: &Clock) -> u64 {
    u64::try_from(clock.mono().as_millis()).unwrap_or(u64::MAX)
}

/// Held while an engine is probed.
#[derive(Debug)]
pub(super) struct Probing(Arc<Shared>);

impl Probing {
    pub(super) fn begin(shared: &Arc<Shared>) -> Self {
        shared.probes.fetch_add(1, Ordering::Relaxed);
        Self(shared.clone())
    }
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.0.note_end();
        self.0.probes.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A place in a service, held while one request is worked on.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    /// The engine.
    pub adapter: Arc<Adapter>,
}

impl Place {
    /// The work was done: the engine works.
    pub fn succeeded(&self, clock: &Clock) {
        self.shared.last_work_ms.fetch_max(millis(clock), Ordering::Relaxed);
    }

    /// Ends when the owner wants the machine back: the work is given up.
    pub async fn withdrawn(&self) {
        self.shared.withdrawn.cancelled().await;
    }

    /// Nothing listens where the engine should.
    pub fn unreachable(&self) {
        self.shared.doubt.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.note_end();
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service {
    /// Begins to keep a service running, once `before` (an older engine of the same service) has ended.
    #[must_use]
    pub fn start(
        around: &Surroundings,
        desired: DesiredService,
        since: Generation,
        before: Option<CancellationToken>,
    ) -> Self {
        let view = View {
            state: ServiceState::Queued,
            adapter: None,
            pid: None,
            digest: None,
            trouble: None,
            progress: None,
            files: None,
        };
        let shared = Arc::new(Shared {
            view: Mutex::new(view),
            in_flight: AtomicU32::new(0),
            last_work_ms: AtomicU64::new(0),
            probes: AtomicU32::new(0),
            last_end_ms: AtomicU64::new(0),
            clock: around.clock.clone(),
            doubt: Notify::new(),
            withdrawn: CancellationToken::new(),
        });
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let keeper = Keeper {
            around: around.clone(),
            desired: desired.clone(),
            shared: shared.clone(),
            stop: stop.clone(),
            process: None,
            image_id: String::new(),
            hashed: None,
            placed: None,
            trouble: None,
        };
        let end = ended.clone().drop_guard();
        let task = around.tasks.spawn_owned("service", async move {
            let _end = end;
            if let Some(before) = before {
                before.cancelled().await;
            }
            keeper.run().await;
        });
        Self { desired, since, shared, stop, ended, _task: task }
    }

    /// A place for one request, if the service is ready and has room.
    ///
    /// # Errors
    /// `not_ready` or `capacity_full`.
    pub fn enter(&self) -> Result<Place, Code> {
        let view = self.shared.view.lock();
        let adapter = match (&view.adapter, view.state) {
            (Some(adapter), ServiceState::Ready) if !self.stop.is_cancelled() => adapter.clone(),
            _ => return Err(Code::NotReady),
        };
        let (slots, queue) = adapter.capacity();
        let enter = |taken: u32| (taken < slots.saturating_add(queue)).then_some(taken + 1);
        match self.shared.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter) {
            Ok(_) => Ok(Place { shared: self.shared.clone(), adapter }),
            Err(_) => Err(Code::CapacityFull),
        }
    }

    /// What it is doing, as the gateway is told.
    #[must_use]
    pub fn observed(&self) -> ObservedService {
        let view = self.shared.view.lock().clone();
        let (code, detail) = view.trouble.map_or((None, None), |(code, detail)| (Some(code), Some(detail)));
        let (code, detail) = view.progress.map_or((code, detail), |progress| (None, Some(progress)));
        ObservedService {
            service_id: self.desired.service_id.clone(),
            state: if self.stop.is_cancelled() { ServiceState::Stopping } else { view.state },
            slots: view.adapter.as_ref().map_or(0, |adapter| adapter.capacity().0),
            in_flight: self.in_flight(),
            engine: view.adapter.as_ref().map_or("", |adapter| adapter.name()).to_owned(),
            pid: view.pid,
            digest: view.digest,
            code,
            detail,
            progress: view.files,
        }
    }

    /// Whether its files are here, so that it does not matter any more where they could be had.
    #[must_use]
    pub fn has_files(&self) -> bool {
        matches!(self.shared.view.lock().state, ServiceState::Loading | ServiceState::Ready)
    }

    /// Requests being worked on.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// The process of its engine, where this node started one that still runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.shared.view.lock().pid.filter(|_| !self.has_ended())
    }

    /// Whether a server of the owner works for it, or did in the time before: what that takes of an accelerator belongs to
    /// processes that this node does not know.
    #[must_use]
    pub fn works_outside(&self, before: Duration) -> bool {
        let outside = matches!(self.shared.view.lock().adapter.as_deref(), Some(Adapter::External(_)));
        let ended = Duration::from_millis(self.shared.last_end_ms.load(Ordering::Relaxed));
        let lately = !ended.is_zero() && self.shared.clock.mono() < ended + before;
        outside && (self.in_flight() > 0 || self.shared.probes.load(Ordering::Relaxed) > 0 || lately)
    }

    /// Asks it to end, once its running requests have ended; the token is cancelled when its engine is gone.
    pub fn stop(&self) -> CancellationToken {
        self.stop.cancel();
        self.ended.clone()
    }
}

impl Service {
    /// Gives its running requests up at once. Its engine goes on.
    pub fn give_up(&self) {
        self.shared.withdrawn.cancel();
    }

    /// As [`Service::stop`], but its running requests are given up at once.
    pub fn withdraw(&self) -> CancellationToken {
        self.give_up();
        self.stop()
    }

    /// Whether its engine is gone for ever.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.is_cancelled()
    }
}
