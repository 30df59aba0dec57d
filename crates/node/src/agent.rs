//! The node's life: dial, take the plan, report, serve, dial again. Drains when asked to stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cxmpute_runtime::confine::Confiner;
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::{Backoff, CancellationToken, Clock, Secret, Tasks, random};
use cxmpute_tunnel::{DialConfig, DialError, Roots, Signer, dial};
use cxmpute_wire::control::NodeStatus;
use cxmpute_wire::{Code, Epoch, ProvisionId};
use tokio::sync::watch;

use crate::config::NodeConfig;
use crate::diagnose::gpu::Cards;
use crate::engines::discover::{self, Finds};
use crate::engines::fake::Fake;
use crate::identity::Identity;
use crate::models::{self, Models, Wait};
use crate::owner::{self, Pause};
use crate::services::Services;
use crate::session::{End, Session};
use crate::supervise::{Surroundings, container};
use crate::{enrol, identity, place};

/// The first new try after a loss comes within this time, later ones wait longer, up to the cap (NR16).
const FIRST_RECONNECT: Duration = Duration::from_secs(2);
/// Longest wait between tries.
const RECONNECT_CAP: Duration = Duration::from_secs(30);
/// A gateway that restarts is looked for more often than one that is lost, but only so many times: its nodes should be
/// back within 5 s.
const RESTART_TRIES: u32 = 120;
/// Time for the engines to end after the soft stop, their last work included.
const ENGINES_STOP: Duration = Duration::from_secs(75);
/// The same after the second signal.
const HURRIED_STOP: Duration = Duration::from_secs(10);
/// Time for the last engines to go after the hard stop.
const HARD_STOP: Duration = Duration::from_millis(500);

/// What a node needs from the process that runs it. Every node has tasks of its own: their soft stop drains it.
#[derive(Clone)]
pub struct Deps {
    /// The time.
    pub clock: Clock,
    /// Where its tasks run.
    pub tasks: Tasks,
    /// Takes the place of all engines, in tests.
    pub fake: Option<Fake>,
    /// The accelerators that engines run on.
    pub cards: Cards,
    /// The program `cxmpute-provider`, where this one is another and it does not lie beside it.
    pub program: Option<PathBuf>,
    /// For enrolling again when the gateway forgot this node.
    pub grant: Option<Secret<String>>,
    /// What tells when the owner needs the machine.
    pub sensors: owner::Sensors,
}

impl std::fmt::Debug for Deps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deps").field("clock", &self.clock).field("fake", &self.fake).finish_non_exhaustive()
    }
}

impl Deps {
    /// The system's clock and real engines.
    #[must_use]
    pub const fn new(clock: Clock, tasks: Tasks) -> Self {
        Self {
            clock,
            tasks,
            fake: None,
            cards: Cards::Machine,
            program: None,
            grant: None,
            sensors: owner::Sensors::Machine,
        }
    }
}

/// What the node knows of its place in the network.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Whether a tunnel is up.
    pub connected: bool,
    /// Epoch of the last tunnel.
    pub epoch: Epoch,
    /// The server's last word on us.
    pub status: Option<NodeStatus>,
    /// Why there is no tunnel.
    pub trouble: Option<String>,
}

/// A window into a node that runs. Clones look at the same node.
#[derive(Clone, Debug)]
pub struct NodeView {
    /// Who it is.
    pub provision_id: ProvisionId,
    /// What it runs.
    pub services: Services,
    /// What it knows of the network; the channel tells changes.
    pub seen: Arc<watch::Sender<Seen>>,
    /// The servers of the owner that were found.
    pub finds: Finds,
    /// Cancel it to shorten the drain to ten seconds.
    pub hurry: CancellationToken,
    /// What the owner said last.
    pause: Arc<watch::Sender<Option<Pause>>>,
    data_dir: PathBuf,
}

impl NodeView {
    /// Begins or ends the owner's pause, and remembers it for the next start.
    ///
    /// # Errors
    /// It cannot be remembered; nothing changed then.
    pub fn pause(&self, pause: Option<Pause>) -> Result<()> {
        let mut state = identity::read_state(&self.data_dir)?;
        state.pause = pause;
        identity::write_state(&self.data_dir, &state)?;
        self.pause.send_replace(pause);
        Ok(())
    }
}

/// A node, ready to run.
#[derive(Debug)]
pub struct Node {
    config: Arc<NodeConfig>,
    identity: Identity,
    /// One for all, so that a correction of the clock counts everywhere.
    signer: Signer,
    deps: Deps,
    view: NodeView,
    boot: u64,
}

impl Node {
    /// A node of this configuration. Counts the start (NR10).
    ///
    /// # Errors
    /// The data directory cannot be used.
    pub fn build(config: NodeConfig, deps: Deps) -> Result<Self> {
        let identity = identity::load_or_create(&config.data_dir)?;
        let mut state = identity::read_state(&config.data_dir)?;
        state.boot += 1;
        identity::write_state(&config.data_dir, &state)?;
        place::tidy(&config.data_dir)?;
        let signer = Signer::new(identity.key.clone(), deps.clock.clone());
        let models = Models::new(&config, Some(signer.clone()), deps.clock.clone());
        if let Err(error) = models.tidy() {
            tracing::warn!(%error, "the directory of the models cannot be tidied up");
        }
        let config = Arc::new(config);
        let program = deps.program.clone().unwrap_or_else(NodeConfig::own_program);
        let finds = Finds::default();
        let around = Surroundings {
            config: config.clone(),
            clock: deps.clock.clone(),
            tasks: deps.tasks.clone(),
            changes: Arc::new(watch::Sender::new(0)),
            images: Arc::default(),
            provision: identity.provision_id.clone(),
            confiner: Confiner::probe(program.clone(), &["engine", "confined"]),
            program,
            finds: finds.clone(),
            cards: deps.cards.clone(),
            models,
            fake: deps.fake.clone(),
        };
        let view = NodeView {
            provision_id: identity.provision_id.clone(),
            services: Services::new(around),
            seen: Arc::new(watch::Sender::new(Seen::default())),
            hurry: CancellationToken::new(),
            pause: Arc::new(watch::Sender::new(state.pause)),
            finds,
            data_dir: config.data_dir.clone(),
        };
        Ok(Self { config, identity, signer, deps, view, boot: state.boot })
    }

    /// A window into it, which stays open while it runs.
    #[must_use]
    pub fn view(&self) -> NodeView {
        self.view.clone()
    }

    /// Runs until the soft stop, or until the gateway says something that only a person can mend; drains then.
    ///
    /// # Errors
    /// The reason, with its exit code.
    pub async fn run(self) -> Result<()> {
        if self.config.docker.enabled {
            container::tidy(&self.config.docker.socket, self.view.provision_id.as_str()).await;
        }
        // Before any plan comes: what has begun would be cut when the keeper first looks.
        if self.config.owner.minds_metered() {
            self.view.services.gate().set(Some(Wait::Asking), None);
        }
        let resting = owner::keep(
            self.config.owner.clone(),
            self.view.services.clone(),
            self.deps.clock.clone(),
            self.view.pause.subscribe(),
            self.deps.sensors.clone(),
            owner::Transfer::open(&self.config.data_dir),
        );
        let keeper = self.deps.tasks.spawn_owned("owner", resting);
        if self.deps.fake.is_none() {
            self.view.finds.take(discover::look(&self.config.discover, &self.deps.tasks).await);
        }
        let looking = self.deps.tasks.spawn_owned("discover", self.look_around());
        let result = Box::pin(self.sessions()).await;
        drop((keeper, looking));
        let hard = self.deps.tasks.hard();
        let late = async {
            tokio::select! {
                () = tokio::time::sleep(ENGINES_STOP) => {}
                () = async { self.view.hurry.cancelled().await; tokio::time::sleep(HURRIED_STOP).await } => {}
            }
        };
        tokio::select! {
            () = self.view.services.stop() => {}
            // A daemon that hangs would keep the node for ever. What it still runs is removed with the next start.
            () = late => tracing::warn!("not every engine has ended in time; the node ends without them"),
            // Engines that are still there then are killed when their tasks are dropped.
            () = async { hard.cancelled().await; tokio::time::sleep(HARD_STOP).await } => {}
        }
        result
    }

    /// Looks for servers and model files of the owner every minute, and tells the gateway when there are others.
    fn look_around(&self) -> impl Future<Output = ()> + Send + 'static {
        let (config, identity, clock) = (self.config.clone(), self.identity.clone(), self.deps.clock.clone());
        let (finds, tasks, fake) =
            (self.view.finds.clone(), self.deps.tasks.clone(), self.deps.fake.is_some());
        async move {
            let mut untold = false;
            let look = || {
                let config = config.clone();
                async {
                    tokio::task::spawn_blocking(move || models::holdings(&config)).await.unwrap_or_default()
                }
            };
            let mut held = look().await;
            loop {
                tokio::time::sleep(config.discover.every()).await;
                if fake {
                    continue;
                }
                if config.discover.enabled {
                    untold |= finds.take(discover::look(&config.discover, &tasks).await);
                }
                let before = std::mem::replace(&mut held, look().await);
                untold |= before != held;
                if untold {
                    let (servers, files) = (finds.list().len(), held.len());
                    tracing::info!(servers, files, "the owner's servers or model files are others now");
                    untold = Box::pin(enrol::enrol(&config, &identity, None, None, &clock)).await.is_err();
                }
            }
        }
    }

    async fn sessions(&self) -> Result<()> {
        let tasks = &self.deps.tasks;
        let signer = self.signer.clone();
        let roots = Roots::new(self.config.api.ca_file.as_deref())?;
        let mut dialling = DialConfig::new(self.config.api.url.clone(), signer, roots);
        // The gateway clamps what a node claims; this only has to be large enough for all services together.
        dialling.capacity = 1024;
        let mut rng = random::rng();
        let mut backoff = Backoff::new(FIRST_RECONNECT, RECONNECT_CAP);
        let mut restart = Backoff::new(FIRST_RECONNECT, FIRST_RECONNECT);
        let mut restarting = false;
        let mut clock_corrected = false;
        let soft = tasks.soft();
        loop {
            let dialled = tokio::select! {
                dialled = dial(&dialling, tasks) => dialled,
                () = soft.cancelled() => return Ok(()),
            };
            let trouble = match dialled {
                Ok(end) => {
                    tracing::info!(epoch = %end.epoch, gateway = %self.config.api.url, "tunnel up");
                    clock_corrected = false;
                    restarting = false;
                    let session = Session {
                        config: self.config.clone(),
                        clock: self.deps.clock.clone(),
                        tasks: tasks.clone(),
                        view: self.view.clone(),
                        boot: self.boot,
                    };
                    let ended = Box::pin(session.run(end)).await;
                    // A tunnel that stood and was heard: begin again with short waits.
                    if self.view.seen.borrow().status.is_some() {
                        backoff.reset();
                    }
                    match ended {
                        End::Stopping => return Ok(()),
                        End::Told(code, message) => match final_word(code, &message) {
                            Some(error) => return Err(error.into()),
                            None => {
                                restarting = code == Code::Draining;
                                restart.reset();
                                message
                            }
                        },
                        End::Lost(reason) => reason,
                    }
                }
                Err(DialError::Refused { code: Some(Code::ClockSkew), .. }) if !clock_corrected => {
                    // The signer has taken the server's time over.
                    tracing::warn!(
                        offset_ms = dialling.signer.offset_ms(),
                        "this machine's clock is wrong; signing by the gateway's"
                    );
                    clock_corrected = true;
                    continue;
                }
                Err(DialError::Refused { code: Some(Code::NodeUnknown), .. }) => {
                    match self.enrol_again().await {
                        Ok(()) => "the gateway had forgotten this node; it is enrolled again".to_owned(),
                        Err(error) if error.downcast_ref::<ExitError>().is_some() => return Err(error),
                        Err(error) => format!("{error:#}"),
                    }
                }
                Err(DialError::Refused { code: Some(code), message, .. }) => match final_word(code, &message)
                {
                    Some(error) => return Err(error.into()),
                    None => message,
                },
                Err(error) => error.to_string(),
            };
            restarting &= restart.tries() < RESTART_TRIES;
            let wait = if restarting { restart.next(&mut rng) } else { backoff.next(&mut rng) };
            let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(reason = %trouble, wait_ms, "no tunnel; dialling again");
            self.view.seen.send_modify(|seen| {
                seen.connected = false;
                seen.status = None;
                seen.trouble = Some(trouble);
            });
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = soft.cancelled() => return Ok(()),
            }
        }
    }

    /// The gateway does not know us (any more).
    async fn enrol_again(&self) -> Result<()> {
        tracing::warn!(gateway = %self.config.api.url, "the gateway does not know this node; enrolling again");
        let grant = self.deps.grant.as_ref();
        match enrol::enrol(&self.config, &self.identity, grant, None, &self.deps.clock).await {
            Ok(_) => Ok(()),
            Err(error) => match error.downcast_ref::<ExitError>() {
                Some(exit) if exit.code() == exit::GRANT => {
                    let message = format!(
                        "The gateway at {} has forgotten this node, and without a new grant it cannot be enrolled \
                         again. Get one from the operator and run: cxmpute-provider enrol --grant-file FILE ({exit})",
                        self.config.api.url
                    );
                    Err(ExitError::new(exit::GRANT, message).into())
                }
                _ => Err(error),
            },
        }
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
        _ => return None,
    };
    Some(ExitError::new(exit_code, format!("The gateway closed the door ({code}): {message} {hint}")))
}

/// The grant of an unattended run.
#[must_use]
pub fn grant_from_environment() -> Option<Secret<String>> {
    let grant = cxmpute_runtime::config::env_var("CXMPUTE_GRANT")?;
    (!grant.trim().is_empty()).then(|| Secret::new(grant.trim().to_owned()))
}

/// Enrols when this directory is not enrolled with this control plane yet and a grant is at hand.
///
/// # Errors
/// It is not enrolled and no grant is there, or the enrolment was refused.
pub async fn ensure_enrolled(
    config: &NodeConfig,
    identity: &Identity,
    grant: Option<&Secret<String>>,
    clock: &Clock,
) -> Result<()> {
    let state = identity::read_state(&config.data_dir)?;
    if state.api_url.as_deref() == Some(config.api.url.as_str()) {
        // What the machine is made of may have changed since. A gateway that is away hears of it the next time.
        if let Err(error) = Box::pin(enrol::enrol(config, identity, None, None, clock)).await {
            tracing::info!(
                error = format!("{error:#}"),
                "the gateway was not told what this machine is made of"
            );
        }
        return Ok(());
    }
    if grant.is_none() {
        let message = match &state.api_url {
            Some(other) => format!(
                "This node belongs to {other}, not to {}. Use another --data-dir for a second control plane, or enrol \
                 it there with a grant.",
                config.api.url
            ),
            None => "This node is not enrolled yet. Get a grant from the operator and run: cxmpute-provider enrol \
                     --grant-file FILE"
                .to_owned(),
        };
        return Err(ExitError::new(exit::GRANT, message).into());
    }
    Box::pin(enrol::enrol(config, identity, grant, None, clock)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_person_must_mend_ends_the_node() {
        for (code, exit_code) in [
            (Code::EpochStale, Some(exit::CLONED)),
            (Code::NodeRevoked, Some(exit::REVOKED)),
            (Code::AccountSuspended, Some(exit::REVOKED)),
            (Code::VersionTooOld, Some(exit::VERSION_TOO_OLD)),
            (Code::Draining, None),
            (Code::StoreUnavailable, None),
            (Code::InvalidSignature, None),
        ] {
            assert_eq!(final_word(code, "x").map(|error| error.code()), exit_code, "{code}");
        }
    }
}
