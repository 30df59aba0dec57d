//! One supervised service: start, ready, probe, restart with back-off, stop with grace. The rules are in [`state`], the
//! process is in [`process`]; this is the task that carries them out and publishes what it sees.

pub mod process;
pub mod state;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::{CancellationToken, Clock, Tasks};
use cxmpute_wire::control::{DesiredService, ObservedService, ServiceState};
use cxmpute_wire::{Code, ServiceKind};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::config::NodeConfig;
use crate::engines::{Adapter, AdapterError, Endpoint, EngineError};
use process::Process;
use state::{Next, Restarts};

/// Time an engine gets to become ready, plus a share for the size of its weights.
const START_BUDGET: Duration = Duration::from_secs(300);
/// Additional start time per GiB of weights.
const START_BUDGET_PER_GIB: Duration = Duration::from_secs(20);
/// How often a starting engine is asked whether it is ready.
const READY_EVERY: Duration = Duration::from_millis(50);
/// Time between real probes of a ready engine; skipped when real work succeeded meanwhile.
const PROBE_EVERY: Duration = Duration::from_secs(300);
/// How often a server of the owner is looked at.
const EXTERNAL_EVERY: Duration = Duration::from_secs(3);
/// Time for one answer of a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);
/// Failed probes in a row that make an engine restart.
const PROBE_FAILURES: u32 = 3;
/// A missing file or engine is looked for again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// Most of a probe's answer that is read.
const PROBE_ANSWER_BYTES: usize = 256 * 1024;

/// What a service is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// How far it is.
    pub state: ServiceState,
    /// Process id of its engine, where we started it.
    pub pid: Option<u32>,
    /// Engine's name.
    pub engine: &'static str,
    /// SHA-256 of the model file, as the engine reports it.
    pub digest: Option<String>,
    /// Why it is not ready.
    pub code: Option<Code>,
    /// The same for people.
    pub detail: Option<String>,
}

/// A service that is being kept running. Dropping it ends its engine at once; [`Service::stop`] asks politely.
#[derive(Debug)]
pub struct Service {
    /// What the plan says.
    pub desired: DesiredService,
    shared: Arc<Shared>,
    stop: CancellationToken,
    task: cxmpute_runtime::lifecycle::OwnedTask,
}

/// What serving and supervising share.
#[derive(Debug)]
pub struct Shared {
    status: watch::Sender<Status>,
    adapter: parking_lot::RwLock<Option<Adapter>>,
    in_flight: AtomicU32,
    /// Pieces of work that succeeded so far; the probe looks whether it moved.
    done: AtomicU64,
}

/// A place in a service, held while one request is worked on.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    /// Where its engine listens.
    pub endpoint: Endpoint,
    /// The engine's name of the model.
    pub model: String,
}

impl Place {
    /// The work was done: the engine works.
    pub fn succeeded(&self) {
        self.shared.done.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Service {
    /// Begins to keep a service running. `changed` is told of every change.
    #[must_use]
    pub fn start(
        config: Arc<NodeConfig>,
        desired: DesiredService,
        changed: Arc<tokio::sync::Notify>,
        clock: Clock,
        tasks: &Tasks,
    ) -> Self {
        let first = Status {
            state: ServiceState::Queued,
            pid: None,
            engine: "",
            digest: None,
            code: None,
            detail: None,
        };
        let shared = Arc::new(Shared {
            status: watch::Sender::new(first),
            adapter: parking_lot::RwLock::new(None),
            in_flight: AtomicU32::new(0),
            done: AtomicU64::new(0),
        });
        let stop = CancellationToken::new();
        let keeper = Keeper {
            config,
            desired: desired.clone(),
            shared: shared.clone(),
            changed,
            clock,
            tasks: tasks.clone(),
            stop: stop.clone(),
        };
        let task = tasks.spawn_owned("service", keeper.run());
        Self { desired, shared, stop, task }
    }

    /// A place for one request, if the service is ready and has room.
    ///
    /// # Errors
    /// `not_ready` or `capacity_full`.
    pub fn enter(&self) -> Result<Place, Code> {
        if self.shared.status.borrow().state != ServiceState::Ready {
            return Err(Code::NotReady);
        }
        let adapter = self.shared.adapter.read();
        let Some(adapter) = adapter.as_ref() else { return Err(Code::NotReady) };
        let (slots, queue) = adapter.capacity();
        let enter = |taken: u32| (taken < slots.saturating_add(queue)).then_some(taken + 1);
        if self.shared.in_flight.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_err() {
            return Err(Code::CapacityFull);
        }
        Ok(Place {
            shared: self.shared.clone(),
            endpoint: adapter.endpoint().clone(),
            model: adapter.model().to_owned(),
        })
    }

    /// What it is doing, as the gateway is told.
    #[must_use]
    pub fn observed(&self) -> ObservedService {
        let status = self.shared.status.borrow().clone();
        let slots = self.shared.adapter.read().as_ref().map_or(0, |adapter| adapter.capacity().0);
        ObservedService {
            service_id: self.desired.service_id.clone(),
            state: status.state,
            slots,
            in_flight: self.in_flight(),
            engine: status.engine.to_owned(),
            pid: status.pid,
            digest: status.digest,
            code: status.code,
            detail: status.detail,
        }
    }

    /// Requests being worked on.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.shared.in_flight.load(Ordering::Relaxed)
    }

    /// Stops it politely and waits for its engine's end.
    pub async fn stop(self) {
        self.stop.cancel();
        let mut status = self.shared.status.subscribe();
        // The sender lives in `self`; the only end of this wait is the state.
        let _ = status.wait_for(|status| status.state == ServiceState::Absent).await;
        drop(self.task);
    }
}

/// The task of one service.
struct Keeper {
    config: Arc<NodeConfig>,
    desired: DesiredService,
    shared: Arc<Shared>,
    changed: Arc<tokio::sync::Notify>,
    clock: Clock,
    tasks: Tasks,
    stop: CancellationToken,
}

impl Keeper {
    async fn run(self) {
        let stop = self.stop.clone();
        let mut restarts = Restarts::default();
        while !stop.is_cancelled() {
            let wait = match Adapter::choose(&self.config, &self.desired) {
                Ok(Adapter::Builtin(engine)) => {
                    let ready_for = self.keep_process(engine).await;
                    if stop.is_cancelled() {
                        break;
                    }
                    match restarts.after_end(self.clock.mono(), ready_for) {
                        Next::Now => Duration::ZERO,
                        Next::After(wait) => wait,
                        Next::Degraded(wait) => {
                            let detail = "The engine ends too often; see its log.".to_owned();
                            self.publish(ServiceState::Degraded, |s| {
                                s.code = Some(Code::EngineFailed);
                                s.detail = Some(detail);
                            });
                            wait
                        }
                    }
                }
                Ok(adapter @ Adapter::External(_)) => {
                    self.watch_external(adapter).await;
                    Duration::ZERO
                }
                Err(error) => {
                    let code = match error {
                        AdapterError::ModelMissing(_) => Code::ModelNotFound,
                        AdapterError::NoEngine(_) | AdapterError::UnsafePath(_) => Code::NotReady,
                    };
                    self.publish(ServiceState::Failed, |s| {
                        s.code = Some(code);
                        s.detail = Some(error.to_string());
                    });
                    LOOK_AGAIN
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stop.cancelled() => {}
            }
        }
        self.publish(ServiceState::Absent, |_| {});
    }

    /// Starts the engine, keeps it until it ends or we stop; gives how long it had been ready.
    async fn keep_process(&self, engine: crate::engines::builtin::Builtin) -> Option<Duration> {
        let log = self
            .config
            .data_dir
            .join("logs")
            .join(format!("{}.log", plain(self.desired.service_id.as_str())));
        if let Err(error) = make_dirs(&[log.parent(), engine.socket.parent()]) {
            self.fail(format!("a directory cannot be made: {error}"));
            return None;
        }
        let _ = std::fs::remove_file(&engine.socket);
        let mut process = match Process::start(&engine.program, &engine.arguments, log.clone(), &self.tasks) {
            Ok(process) => process,
            Err(error) => {
                self.fail(format!("{error:#}"));
                return None;
            }
        };
        let pid = process.pid();
        let adapter = Adapter::Builtin(engine.clone());
        self.publish(ServiceState::Loading, |s| {
            s.pid = Some(pid);
            s.engine = "builtin";
        });
        let gib = u32::try_from(engine.weight_bytes >> 30).unwrap_or(u32::MAX);
        let budget = START_BUDGET.saturating_add(START_BUDGET_PER_GIB.saturating_mul(gib));
        let digest = tokio::select! {
            digest = self.until_ready(&adapter) => digest,
            end = process.ended() => {
                self.fail(format!("the engine ended while it was starting ({end}); see {}", log.display()));
                return None;
            }
            () = tokio::time::sleep(budget) => {
                self.fail(format!("the engine was not ready within {} s", budget.as_secs()));
                process.stop().await;
                return None;
            }
            () = self.stop.cancelled() => {
                process.stop().await;
                return None;
            }
        };
        if let (Some(pinned), Some(found)) = (&engine.digest, &digest)
            && pinned != found
        {
            self.fail(format!(
                "the model file has the hash {found}, the catalogue pins {pinned}; fetch it again"
            ));
            process.stop().await;
            return None;
        }
        let ready_at = self.clock.mono();
        *self.shared.adapter.write() = Some(adapter.clone());
        self.publish(ServiceState::Ready, |s| {
            s.pid = Some(pid);
            s.engine = "builtin";
            s.digest = digest;
        });
        tracing::info!(service = %self.desired.service_id, pid, "engine ready");
        let ended = tokio::select! {
            end = process.ended() => Some(end),
            () = self.until_probes_fail(&adapter) => Some("its probes failed".to_owned()),
            () = self.stop.cancelled() => None,
        };
        *self.shared.adapter.write() = None;
        let ready_for = self.clock.mono().saturating_sub(ready_at);
        match ended {
            Some(end) => {
                tracing::warn!(service = %self.desired.service_id, pid, %end, "engine ended");
                self.publish(ServiceState::Loading, |s| {
                    s.engine = "builtin";
                    s.code = Some(Code::EngineFailed);
                    s.detail = Some(format!("the engine ended ({end}) and is started again"));
                });
                drop(process);
            }
            None => {
                self.publish(ServiceState::Stopping, |s| s.pid = Some(pid));
                process.stop().await;
            }
        }
        let _ = std::fs::remove_file(&engine.socket);
        Some(ready_for)
    }

    /// Asks until the engine says that it is ready; gives the model's digest.
    async fn until_ready(&self, adapter: &Adapter) -> Option<String> {
        let mut looks = tokio::time::interval(READY_EVERY);
        loop {
            looks.tick().await;
            let health = async {
                let reply = adapter.endpoint().connect(&self.tasks).await?.get("/health").await?;
                Ok::<_, EngineError>(reply.status.is_success())
            };
            if let Ok(Ok(true)) = tokio::time::timeout(Duration::from_secs(1), health).await {
                return self.digest(adapter).await;
            }
        }
    }

    async fn digest(&self, adapter: &Adapter) -> Option<String> {
        let link = adapter.endpoint().connect(&self.tasks).await.ok()?;
        let body = link.get_below("/models").await.ok()?.whole(PROBE_ANSWER_BYTES).await.ok()?;
        let models: serde_json::Value = serde_json::from_slice(&body).ok()?;
        let entry = models["data"].as_array()?.iter().find(|model| model["id"] == adapter.model())?;
        entry["digest"].as_str().map(str::to_owned)
    }

    /// Ends when three probes in a row failed.
    async fn until_probes_fail(&self, adapter: &Adapter) {
        let mut failures = 0;
        let mut seen = self.shared.done.load(Ordering::Relaxed);
        loop {
            tokio::time::sleep(if failures == 0 { PROBE_EVERY } else { LOOK_AGAIN }).await;
            let done = self.shared.done.load(Ordering::Relaxed);
            if done != seen || self.probe(adapter).await {
                failures = 0;
            } else {
                failures += 1;
                tracing::warn!(service = %self.desired.service_id, failures, "engine probe failed");
                if failures >= PROBE_FAILURES {
                    return;
                }
            }
            seen = done;
        }
    }

    /// One real token, or one real vector.
    async fn probe(&self, adapter: &Adapter) -> bool {
        let (path, body) = match self.desired.kind {
            ServiceKind::Embeddings => {
                ("/embeddings", serde_json::json!({"model": adapter.model(), "input": "ping"}))
            }
            _ => (
                "/chat/completions",
                serde_json::json!({"model": adapter.model(), "max_tokens": 1,
                    "messages": [{"role": "user", "content": "Hello"}]}),
            ),
        };
        let ask = async {
            let link = adapter.endpoint().connect(&self.tasks).await?;
            let reply = link.post(path, Bytes::from(body.to_string())).await?;
            let good = reply.status.is_success();
            let body = reply.whole(PROBE_ANSWER_BYTES).await?;
            let field = if path == "/embeddings" { "data" } else { "choices" };
            let answer: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            Ok::<_, EngineError>(good && answer[field].as_array().is_some_and(|items| !items.is_empty()))
        };
        matches!(tokio::time::timeout(PROBE_TIMEOUT, ask).await, Ok(Ok(true)))
    }

    /// Watches a server of the owner until we stop: ready while it answers a real probe, failed while it does not.
    async fn watch_external(&self, adapter: Adapter) {
        let mut seen = self.shared.done.load(Ordering::Relaxed);
        let mut ready = false;
        let mut quiet = Duration::ZERO;
        loop {
            let reachable = adapter.endpoint().connect(&self.tasks).await;
            let now_ready = match reachable {
                Err(error) => {
                    self.publish(ServiceState::Failed, |s| {
                        s.engine = "external";
                        s.code = Some(Code::EngineFailed);
                        s.detail = Some(format!("the owner's server: {error}"));
                    });
                    false
                }
                Ok(_) if ready && quiet < PROBE_EVERY => true,
                Ok(_) => {
                    quiet = Duration::ZERO;
                    let good = self.probe(&adapter).await;
                    if !good {
                        self.publish(ServiceState::Failed, |s| {
                            s.engine = "external";
                            s.code = Some(Code::EngineFailed);
                            s.detail = Some("the owner's server did not answer a one-token request".into());
                        });
                    }
                    good
                }
            };
            if now_ready && !ready {
                *self.shared.adapter.write() = Some(adapter.clone());
                self.publish(ServiceState::Ready, |s| s.engine = "external");
            } else if !now_ready {
                *self.shared.adapter.write() = None;
            }
            ready = now_ready;
            tokio::select! {
                () = tokio::time::sleep(EXTERNAL_EVERY) => {}
                () = self.stop.cancelled() => break,
            }
            let done = self.shared.done.load(Ordering::Relaxed);
            quiet = if done == seen { quiet + EXTERNAL_EVERY } else { Duration::ZERO };
            seen = done;
        }
        *self.shared.adapter.write() = None;
    }

    fn fail(&self, detail: String) {
        tracing::warn!(service = %self.desired.service_id, %detail, "service failed");
        self.publish(ServiceState::Failed, |s| {
            s.code = Some(Code::EngineFailed);
            s.detail = Some(detail);
        });
    }

    /// Publishes a state with what `fill` says of it; whatever was said of the state before is gone.
    fn publish(&self, state: ServiceState, fill: impl FnOnce(&mut Status)) {
        let mut next = Status { state, pid: None, engine: "", digest: None, code: None, detail: None };
        fill(&mut next);
        let changed = self.shared.status.send_if_modified(|status| {
            let differs = *status != next;
            *status = next;
            differs
        });
        if changed {
            self.changed.notify_one();
        }
    }
}

/// A name that is safe as a file name.
#[must_use]
pub fn plain(name: &str) -> String {
    name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

/// Eight characters that stand for a path.
#[must_use]
pub fn short_tag(path: &Path) -> String {
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    data_encoding::HEXLOWER.encode(&digest[..4])
}

fn make_dirs(dirs: &[Option<&Path>]) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    dirs.iter()
        .flatten()
        .try_for_each(|dir| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir))
}
