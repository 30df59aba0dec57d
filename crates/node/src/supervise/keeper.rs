//! The task of one service: carries the rules of [`super::state`] out.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cxmpute_runtime::CancellationToken;
use cxmpute_wire::Code;
use cxmpute_wire::control::{DesiredService, ServiceState};
use futures_util::FutureExt as _;
use nix::sys::signal::Signal;

use super::Surroundings;
use super::container::Container;
use super::log;
use super::probe;
use super::process::Process;
use super::running::{Ending, Running};
use super::service::{Probing, Shared};
use super::state::{Act, Event, Machine};
use crate::engines::docker::{self, DockerEngine, DockerError};
use crate::engines::profile::GRACE;
use crate::engines::{Adapter, AdapterError};
use crate::models::{DeliveryError, Placed};

/// Time an engine gets to become ready, plus a share for the size of its weights.
const START_BUDGET: Duration = Duration::from_secs(300);
/// Additional start time per GiB of weights.
const START_BUDGET_PER_GIB: Duration = Duration::from_secs(20);
/// Longest start budget.
const START_BUDGET_CAP: Duration = Duration::from_secs(6 * 3600);
/// Time that running requests get when the plan no longer names their service.
const DRAIN: Duration = Duration::from_secs(30);

/// Time between two words on how far a pull is.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Time that a server with this many bytes of weights gets to become ready.
fn start_budget(weight_bytes: u64) -> Duration {
    let gib = u32::try_from(weight_bytes >> 30).unwrap_or(u32::MAX);
    START_BUDGET.saturating_add(START_BUDGET_PER_GIB.saturating_mul(gib)).min(START_BUDGET_CAP)
}

/// Returns when the server of the owner that serves a service has not its model any more.
async fn other_model(shared: &Shared, around: &Surroundings, desired: &DesiredService) {
    let mut changes = around.finds.changes();
    let adapter = shared.view.lock().adapter.clone();
    let Some(Adapter::External(engine)) = adapter.as_deref() else { return std::future::pending().await };
    while engine.is_among(&around.finds.list(), desired) {
        if changes.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// The task of one service.
pub(super) struct Keeper {
    pub(super) around: Surroundings,
    pub(super) desired: DesiredService,
    pub(super) shared: Arc<Shared>,
    pub(super) stop: CancellationToken,
    pub(super) process: Option<Running>,
    /// The image that a container is made from, by its own id.
    pub(super) image_id: String,
    /// The hash of the model's file, where this node read it.
    pub(super) hashed: Option<String>,
    /// The files that its engine reads; they stay on the disk as long as this is held.
    pub(super) placed: Option<Placed>,
    /// What went wrong last; said as long as the service is not ready.
    pub(super) trouble: Option<(Code, String)>,
}

impl Keeper {
    /// Runs until the service is stopped and its engine is gone.
    pub(super) async fn run(mut self) {
        let mut machine = Machine::default();
        let mut act = machine.begin();
        let mut stopping = false;
        while act != Act::Finish {
            // An order to end a process is always carried out first.
            let interruptible = !matches!(act, Act::Terminate | Act::Kill);
            let event = if interruptible && self.stop.is_cancelled() && !stopping {
                stopping = true;
                self.finish_requests().await;
                Event::Stop
            } else {
                self.perform(act, &mut machine, stopping).await
            };
            machine.worked(Duration::from_millis(self.shared.last_work_ms.load(Ordering::Relaxed)));
            if event == Event::Ended
                && let Some(process) = self.process.take()
            {
                tracing::info!(service = %self.desired.service_id, pid = process.pid(), "engine ended");
            }
            act = machine.step(event, self.around.clock.mono());
            self.publish(machine.state());
        }
        self.sweep_images().await;
    }

    /// Takes images away that this node pulled and that no plan names any more.
    async fn sweep_images(&self) {
        if self.desired.container.is_none() || !self.around.config.docker.enabled {
            return;
        }
        let wanted = self.around.images.lock().clone();
        match docker::daemon::connect(&self.around.config.docker.socket).await {
            Ok(docker) => docker::kept::sweep(&docker, &self.around.config.data_dir, &wanted).await,
            Err(error) => tracing::warn!(%error, "images that nobody needs were not looked for"),
        }
    }

    /// Does one thing; gives what came of it. A stop interrupts everything that waits.
    async fn perform(&mut self, act: Act, machine: &mut Machine, stopping: bool) -> Event {
        let stop = self.stop.clone();
        let stopped = async {
            match stopping {
                true => std::future::pending().await,
                false => stop.cancelled().await,
            }
        };
        match act {
            Act::Prepare => {
                let preparing = async {
                    match self.prepare(machine).await {
                        Event::Prepared => self.fetch().await,
                        event => event,
                    }
                };
                tokio::select! {
                    event = preparing => event,
                    // A pull that is dropped ends at the daemon, too; a download goes on from its pieces another time.
                    () = stopped => Event::Time,
                }
            }
            Act::Start => self.start().await,
            Act::Ask | Act::Probe => {
                let Some(adapter) = self.shared.view.lock().adapter.clone() else {
                    return Event::Ended;
                };
                let asking = async {
                    match act {
                        Act::Ask => self.ask(&adapter).await,
                        _ => {
                            let _probing = Probing::begin(&self.shared);
                            (probe::probe(&adapter, self.desired.kind, &self.around.tasks).await, None)
                        }
                    }
                };
                let (event, found) = tokio::select! {
                    answer = asking => answer,
                    () = stopped => return Event::Time,
                };
                if let Some(found) = found {
                    return self.judge(found);
                }
                if event == Event::ProbeBad {
                    tracing::warn!(service = %self.desired.service_id, "engine probe failed");
                    self.trouble = Some((Code::EngineFailed, "the engine did not answer its probes".into()));
                }
                event
            }
            Act::Terminate => match &self.process {
                Some(process) => {
                    process.terminate(self.polite_signal());
                    Event::Time
                }
                None => Event::Ended,
            },
            Act::Kill => {
                if let Some(process) = &self.process {
                    tracing::warn!(pid = process.pid(), "the engine did not end in time and is killed");
                    process.kill();
                }
                Event::Time
            }
            Act::Wait(until) => {
                let wait = until.saturating_sub(self.around.clock.mono());
                let ready = self.shared.view.lock().state == ServiceState::Ready;
                let ended = async {
                    match &mut self.process {
                        Some(process) => process.ended().await,
                        // A server of the owner has no process that we could watch; failed work tells, and what was
                        // found there.
                        None if ready => {
                            let why = tokio::select! {
                                () = self.shared.doubt.notified() => "it cannot be reached",
                                () = other_model(&self.shared, &self.around, &self.desired) => {
                                    "it is away, or has another model under that name now"
                                }
                            };
                            Ending { code: Code::EngineFailed, text: why.to_owned() }
                        }
                        None => std::future::pending().await,
                    }
                };
                let end = tokio::select! {
                    end = ended => end,
                    () = stopped => return Event::Time,
                    () = tokio::time::sleep(wait) => return Event::Time,
                };
                if !stopping {
                    let detail = match self.process {
                        Some(_) => {
                            format!(
                                "the engine ended ({}); its log is {}",
                                end.text,
                                self.log_path().display()
                            )
                        }
                        None => format!("the owner's server is away: {}", end.text),
                    };
                    tracing::warn!(service = %self.desired.service_id, detail, "engine ended");
                    self.trouble = Some((end.code, detail));
                }
                Event::Ended
            }
            Act::Finish => Event::Time,
        }
    }

    async fn prepare(&mut self, machine: &mut Machine) -> Event {
        if Adapter::wants_files(&self.around, &self.desired).await {
            if let Err(error) = self.deliver().await {
                self.fail(error.code(), error.to_string());
                return Event::Unprepared;
            }
        } else {
            self.placed = None;
        }
        let folder = self.placed.as_ref().map(|placed| placed.folder.as_path());
        let adapter = match Adapter::choose(&self.around, &self.desired, folder).await {
            Ok(adapter) => adapter,
            Err(error) => {
                let code = match error {
                    AdapterError::ModelMissing(_) => Code::ModelMissing,
                    AdapterError::OtherModel(_) => Code::DigestMismatch,
                    AdapterError::NoEngine(_) | AdapterError::UnsafePath(_) => Code::NotReady,
                };
                self.fail(code, error.to_string());
                return Event::Unprepared;
            }
        };
        // What a server does not tell of its model, its file does.
        self.hashed = None;
        if let Some(file) = adapter.model_file() {
            match self.around.models.sum(file).await.map(|sum| sum.to_string()) {
                Ok(sum) if !self.is_planned(&sum) => return Event::Unprepared,
                Ok(sum) => self.hashed = Some(sum),
                Err(error) => {
                    self.fail(Code::ModelMissing, format!("{}: {error}", file.display()));
                    return Event::Unprepared;
                }
            }
        }
        let server = adapter.server();
        machine.set_start_budget(server.map(|server| start_budget(server.weight_bytes)));
        machine.set_trial(server.is_some());
        machine.set_grace(server.map_or(GRACE, |server| server.profile.stop.grace));
        self.shared.view.lock().adapter = Some(Arc::new(adapter));
        Event::Prepared
    }

    /// Brings the files, and tells meanwhile how far they are.
    async fn deliver(&mut self) -> Result<(), DeliveryError> {
        let (shared, changes) = (self.shared.clone(), self.around.changes.clone());
        let tell = move |state, progress| {
            let mut view = shared.view.lock();
            let changed = view.state != state;
            (view.state, view.files) = (state, Some(progress));
            if state == ServiceState::Downloading {
                // What went wrong before is another try's affair.
                view.trouble = None;
            }
            drop(view);
            if changed {
                changes.send_modify(|count| *count += 1);
            }
        };
        let placed = self.around.models.place(&self.desired, Arc::new(tell)).await;
        self.shared.view.lock().files = None;
        self.placed = Some(placed?);
        Ok(())
    }

    fn polite_signal(&self) -> Signal {
        let adapter = self.shared.view.lock().adapter.clone();
        let stop = adapter.as_ref().and_then(|adapter| adapter.server()).map(|server| server.profile.stop);
        stop.unwrap_or_default().signal
    }

    /// Makes sure that the image of a container is there, and tells how far it is.
    async fn fetch(&mut self) -> Event {
        let adapter = self.shared.view.lock().adapter.clone();
        let Some(engine) = adapter.as_ref().and_then(|adapter| adapter.container()) else {
            return Event::Prepared;
        };
        let mut told = None;
        let fetched = async {
            // The daemon fetches by itself and stops for nobody, so only the beginning waits.
            if let Some(wait) = self.around.models.gate().waits() {
                self.show_progress(wait.sentence().to_owned());
                self.around.models.gate().opened().await;
            }
            let docker = docker::daemon::connect(&engine.daemon).await?;
            let tell = |progress: &docker::pull::Progress| {
                let now = self.around.clock.mono();
                if told.is_none_or(|last| now.saturating_sub(last) >= TELL_EVERY) {
                    told = Some(now);
                    self.show_progress(progress.sentence(&engine.image.image));
                }
            };
            let (logins, data_dir) = (engine.logins.as_deref(), &self.around.config.data_dir);
            docker::pull::fetch(&docker, &engine.image, logins, data_dir, tell).await
        };
        let fetched = fetched.await;
        self.shared.view.lock().progress = None;
        match fetched {
            Ok(id) => {
                self.image_id = id;
                Event::Prepared
            }
            Err(error) => {
                self.fail_in_docker(&error);
                Event::Unprepared
            }
        }
    }

    fn show_progress(&self, sentence: String) {
        let mut view = self.shared.view.lock();
        view.state = ServiceState::Downloading;
        view.progress = Some(sentence);
        drop(view);
        self.around.changes.send_modify(|count| *count += 1);
    }

    fn fail_in_docker(&mut self, error: &DockerError) {
        let code = match error {
            DockerError::WrongDigest { .. } => Code::DigestMismatch,
            _ => Code::EngineFailed,
        };
        self.fail(code, error.to_string());
    }

    async fn start(&mut self) -> Event {
        let adapter = self.shared.view.lock().adapter.clone();
        if let Some(engine) = adapter.as_ref().and_then(|adapter| adapter.container()) {
            return self.start_container(engine).await;
        }
        let Some(engine) = adapter.as_ref().and_then(|adapter| adapter.process()) else {
            return Event::Started;
        };
        let log = self.log_path();
        let made = crate::place::make_private(&self.around.config.logs_dir())
            .and_then(|()| crate::place::make_private(&crate::place::run_dir(&self.around.config.data_dir)));
        let started =
            made.map_err(anyhow::Error::from).and_then(|()| Process::start(engine, log, &self.around.tasks));
        match started {
            Ok(process) => {
                tracing::info!(service = %self.desired.service_id, pid = process.pid(), "engine starting");
                self.process = Some(Running::Process(Box::new(process)));
                Event::Started
            }
            Err(error) => {
                self.fail(Code::EngineFailed, format!("{error:#}"));
                Event::Ended
            }
        }
    }

    async fn start_container(&mut self, engine: &DockerEngine) -> Event {
        let (log, around) = (self.log_path(), &self.around);
        let started = match crate::place::make_private(&around.config.logs_dir()) {
            Ok(()) => Container::start(engine, &self.image_id, log, &around.clock, &around.tasks).await,
            Err(error) => Err(DockerError::Refused(error.to_string())),
        };
        match started {
            Ok(container) => {
                tracing::info!(service = %self.desired.service_id, image = %engine.image.image, "container starting");
                self.process = Some(Running::Container(container));
                Event::Started
            }
            Err(error) => {
                self.fail_in_docker(&error);
                Event::Ended
            }
        }
    }

    /// Whether the engine is ready; where it is, also the hash of its model, if it tells.
    async fn ask(&self, adapter: &Adapter) -> (Event, Option<Option<String>>) {
        let answer = tokio::time::timeout(adapter.ready_time(), adapter.ready(&self.around.tasks)).await;
        match answer {
            Ok(Ok(found)) => (Event::SaysReady, Some(found)),
            Ok(Err(_)) | Err(_) => (Event::SaysNothing, None),
        }
    }

    /// Compares the model that the engine has with the planned one.
    fn judge(&mut self, found: Option<String>) -> Event {
        let found = found.or_else(|| self.hashed.clone());
        if found.as_ref().is_some_and(|found| !self.is_planned(found)) {
            return Event::WrongModel;
        }
        // Who could not reach it before says nothing of it now.
        let _ = self.shared.doubt.notified().now_or_never();
        tracing::info!(service = %self.desired.service_id, pid = self.process.as_ref().map(Running::pid), "engine ready");
        self.shared.view.lock().digest = found;
        Event::SaysReady
    }

    /// Whether a model with this hash is the one of the plan; says so where it is not.
    fn is_planned(&mut self, found: &str) -> bool {
        let model = self.desired.files.iter().find(|file| file.role == "model");
        let Some(pinned) = model.and_then(|file| file.sha256.clone()) else { return true };
        let same = pinned.eq_ignore_ascii_case(found);
        if !same {
            let detail =
                format!("the model file has the hash {found}, the catalogue pins {pinned}; fetch it again");
            self.fail(Code::DigestMismatch, detail);
        }
        same
    }

    /// Lets running requests end; new ones are refused meanwhile.
    async fn finish_requests(&self) {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        let idle = async {
            while self.shared.in_flight.load(Ordering::Relaxed) > 0 {
                looks.tick().await;
            }
        };
        let hard = self.around.tasks.hard();
        tokio::select! {
            () = idle => {}
            () = hard.cancelled() => {}
            () = self.shared.withdrawn.cancelled() => {}
            () = tokio::time::sleep(DRAIN) => {}
        }
        // Whatever still runs is given up for a reason that blames nobody, before its engine is ended.
        self.shared.withdrawn.cancel();
    }

    fn log_path(&self) -> PathBuf {
        self.around.config.logs_dir().join(format!("{}.log", log::name(self.desired.service_id.as_str())))
    }

    fn fail(&mut self, code: Code, detail: String) {
        tracing::warn!(service = %self.desired.service_id, %code, detail, "service failed");
        self.trouble = Some((code, detail));
    }

    fn publish(&mut self, state: ServiceState) {
        if state == ServiceState::Ready {
            self.trouble = None;
        }
        let pid = self.process.as_ref().map(Running::pid);
        let mut view = self.shared.view.lock();
        let changed = view.state != state || view.pid != pid || view.trouble != self.trouble;
        view.state = state;
        view.pid = pid;
        // Whatever was fetched is here, or is given up.
        view.progress = None;
        view.trouble.clone_from(&self.trouble);
        drop(view);
        if changed {
            self.around.changes.send_modify(|count| *count += 1);
        }
    }
}
