//! Engines behind one contract: how they are started, where they listen, which model name they know, whether they are
//! ready, and how work is handed to them.

pub mod builtin;
pub mod child;
pub mod discover;
pub mod docker;
pub mod endpoint;
pub mod external;
pub mod fake;
pub mod files;
pub mod found;
pub mod llama_server;
pub mod profile;
pub mod scrape;
pub mod server;
mod start;
mod told;
pub mod tool;
pub mod vllm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::config::env_var;
use cxmpute_runtime::{Tasks, random};
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::control::{DesiredService, EnginePresent};
use cxmpute_wire::{RequestId, ServiceKind, form};
use futures_util::future::join_all;
use http::StatusCode;

pub use child::Child;
pub use endpoint::{Endpoint, EngineError};
use found::Found;
pub use profile::{Profile, Ready, Stop};
pub use server::Server;

use crate::config::NodeConfig;
use crate::supervise::Surroundings;

/// Time for the word of a server on this machine on whether it is ready.
const READY_TIME: Duration = Duration::from_secs(1);
/// The same of a server that the owner runs somewhere.
const EXTERNAL_READY_TIME: Duration = Duration::from_secs(5);

/// What runs a service on this machine.
#[derive(Clone, Debug)]
pub enum Adapter {
    /// A server that we start as a child process: our own engine program, this program as the one that fetches pages.
    Child(Box<Child>),
    /// A server in a container.
    Docker(Box<docker::DockerEngine>),
    /// A program that runs once for each request.
    Tool(tool::Tool),
    /// A server that the owner runs.
    External(external::ExternalEngine),
    /// A script in place of an engine, for tests; no configuration leads here.
    Fake(fake::Fake),
}

/// The engines of this machine that the plan may count on, beside the built-in one: programs that this node starts, and
/// servers that its owner runs. Programs are asked for their versions at the same time.
pub async fn present(config: &NodeConfig, found: &[Found], accelerated: bool) -> Vec<EnginePresent> {
    let named =
        |name: &str, version: String| EnginePresent { name: name.to_owned(), version, models: Vec::new() };
    let tools = tool::Program::ALL.into_iter().filter_map(|program| Some((program, program.find()?)));
    let tools = tools.map(async |(program, path)| named(program.name(), program.version_at(&path).await));
    let llama = async {
        let program = llama_server::find(config)?;
        Some(named(llama_server::NAME, llama_server::version_at(&program).await))
    };
    let (tools, llama) = futures_util::future::join(join_all(tools), llama).await;
    let scrape = config.scrape.enabled.then(|| named(scrape::NAME, env!("CARGO_PKG_VERSION").to_owned()));
    // It takes long to say its version, and is of no use without an accelerator.
    let vllm = vllm::find(&config.engines).filter(|_| accelerated);
    let vllm = vllm.map(|_| named(vllm::NAME, String::new()));
    let found = found.iter().map(Found::present);
    let tools = tools.into_iter();
    tools.chain(scrape).chain(llama).chain(vllm).chain(config.external_engine()).chain(found).collect()
}

/// The engines of a plan in its order, those that the owner prefers first.
fn order<'a>(planned: &'a [String], preferred: &[String]) -> Vec<&'a str> {
    let mut names: Vec<&str> = planned.iter().map(String::as_str).collect();
    names.sort_by_key(|name| {
        preferred.iter().position(|preferred| preferred == name).unwrap_or(preferred.len())
    });
    names
}

/// Where a program is: as configured, beside this one, or on the path.
pub(crate) fn find_program(configured: Option<&Path>, name: &str) -> Option<PathBuf> {
    if let Some(path) = configured {
        return path.is_file().then(|| path.to_owned());
    }
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
    let listed = env_var("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&listed).filter(|dir| dir.is_absolute()).map(|dir| dir.join(name));
    beside.into_iter().chain(on_path).find(|path| path.is_file()).and_then(|path| path.canonicalize().ok())
}

/// Requests at a time: what the plan says, but no more than the owner allows.
fn slots(desired: &DesiredService, most: u16) -> u16 {
    match u16::try_from(desired.slots) {
        Ok(0) | Err(_) => most,
        Ok(planned) => planned.min(most),
    }
    .max(1)
}

/// Directories in which an engine finds nothing: the node's own and its user's.
fn private_places(config: &NodeConfig) -> Vec<PathBuf> {
    std::iter::once(config.data_dir.clone()).chain(env_var("HOME").map(PathBuf::from)).collect()
}

/// The folder of a program, with the libraries beside it.
fn folder_of(program: &Path) -> PathBuf {
    program.parent().unwrap_or(program).to_owned()
}

/// What a program reads of where it stands: its folder, or itself alone where the folder holds private places, as a home does.
fn beside(program: &Path, config: &NodeConfig) -> PathBuf {
    let folder = folder_of(program);
    let holds = |place: PathBuf| place.canonicalize().unwrap_or(place).starts_with(&folder);
    if private_places(config).into_iter().any(holds) { program.to_owned() } else { folder }
}

/// What a program in a Python environment reads: the environment, and the Python that it was made with.
fn environment_of(program: &Path) -> Vec<PathBuf> {
    let folder = folder_of(program);
    let Some(root) = folder.parent().filter(|root| root.join("pyvenv.cfg").is_file()) else {
        return vec![folder];
    };
    let said = std::fs::read_to_string(root.join("pyvenv.cfg")).unwrap_or_default();
    let home = said.lines().find_map(|line| line.strip_prefix("home")?.trim_start().strip_prefix('='));
    let python = home.map(|home| PathBuf::from(home.trim())).and_then(|bin| Some(bin.parent()?.to_owned()));
    let python = python.filter(|path| path.is_dir() && path != Path::new("/usr") && path != Path::new("/"));
    [root.to_owned()].into_iter().chain(python).collect()
}

/// A port of the loopback and a key for a server that knows no unix sockets. Another program may have the port; then the
/// start fails, and the next one gets another.
fn loopback_door() -> (u16, String) {
    let [high, low] = random::bytes::<2>();
    let port = 20_000 + u16::from_be_bytes([high, low]) % 12_000;
    (port, data_encoding::HEXLOWER.encode(&random::bytes::<24>()))
}

/// One request for an engine.
#[derive(Clone, Debug)]
pub struct Question {
    /// What is asked.
    pub path: WorkPath,
    /// The user's request.
    pub request: RequestId,
    /// JSON, or for [`WorkPath::Transcription`] a form.
    pub body: Bytes,
}

impl Question {
    /// Type of the body.
    fn content_type(&self) -> String {
        match self.path {
            WorkPath::Transcription => form::content_type(&self.request),
            _ => "application/json".to_owned(),
        }
    }
}

/// Why no engine of this machine can run a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// A file of the model is not there.
    #[error("{0} is missing; put it there, or set models.dir to where the model files are")]
    ModelMissing(String),
    /// The owner's server has another model under the planned name, and nothing else here runs the planned one.
    #[error("{0}; fetch it again")]
    OtherModel(String),
    /// No engine of this machine knows this kind of service.
    #[error("no engine of this machine runs {0}")]
    NoEngine(String),
    /// The plan names a file outside the model directory.
    #[error("the plan names the file {0:?}, which is not below the model directory")]
    UnsafePath(String),
}

impl Adapter {
    /// Whether the engine that [`Self::choose`] takes reads files of the plan: not where a server of the owner does the work.
    pub async fn wants_files(around: &Surroundings, desired: &DesiredService) -> bool {
        let config = &around.config;
        let own = config.external.iter().any(|external| external.service == desired.service_id.as_str());
        if desired.files.is_empty() || around.fake.is_some() || own {
            return false;
        }
        if config.docker.enabled
            && desired.container.is_some()
            && desired.engines.iter().any(|engine| engine == docker::NAME)
        {
            return true;
        }
        let finds = around.finds.list();
        for name in order(&desired.engines, &config.engines.prefer) {
            if external::running(around, desired, name, &finds).await.is_ok_and(|found| found.is_some()) {
                return false;
            }
            match name {
                "builtin" if builtin::knows(desired.kind) => return true,
                llama_server::NAME
                    if llama_server::knows(desired) && llama_server::find(config).is_some() =>
                {
                    return true;
                }
                vllm::NAME if vllm::knows(desired) && vllm::find(&config.engines).is_some() => return true,
                _ => {}
            }
        }
        false
    }

    /// The adapter for a service: the owner's own server when one is configured for it, else the first engine of the
    /// plan that this machine has. `files` is the directory in which the files have the names of the plan.
    ///
    /// # Errors
    /// No engine fits, or a file is missing.
    pub async fn choose(
        around: &Surroundings,
        desired: &DesiredService,
        files: Option<&Path>,
    ) -> Result<Self, AdapterError> {
        if let Some(fake) = &around.fake {
            return Ok(Self::Fake(fake.clone()));
        }
        let config = &around.config;
        let own = config.external.iter().find(|external| external.service == desired.service_id.as_str());
        if let Some(own) = own {
            return Ok(Self::External(external::ExternalEngine::new(own, desired)));
        }
        // An image that the operator pinned is preferred where the owner runs containers.
        if config.docker.enabled
            && desired.container.is_some()
            && desired.engines.iter().any(|engine| engine == docker::NAME)
        {
            return docker::engine(config, files, &around.provision, desired).map(Box::new).map(Self::Docker);
        }
        let finds = around.finds.list();
        let mut other = None;
        for name in order(&desired.engines, &config.engines.prefer) {
            // What the owner runs already costs no memory more.
            match external::running(around, desired, name, &finds).await {
                Ok(Some((found, model))) => {
                    let engine =
                        external::ExternalEngine::found(found, model, desired, config.discover.slots);
                    return Ok(Self::External(engine));
                }
                Ok(None) => {}
                Err(why) => other = Some(why),
            }
            let child = match name {
                "builtin" if builtin::knows(desired.kind) => Some(builtin::engine(around, files, desired)?),
                scrape::NAME if desired.kind == ServiceKind::Scrape => Some(scrape::engine(around, desired)?),
                llama_server::NAME if llama_server::knows(desired) => match llama_server::find(config) {
                    Some(program) => Some(llama_server::engine(around, files, desired, program).await?),
                    None => None,
                },
                vllm::NAME if vllm::knows(desired) => match vllm::find(&config.engines) {
                    Some(program) => {
                        Some(vllm::engine(around, files, desired, program, &around.cards.list()).await?)
                    }
                    None => None,
                },
                _ => None,
            };
            if let Some(child) = child {
                return Ok(Self::Child(Box::new(child)));
            }
        }
        let parallel = std::thread::available_parallelism().map_or(1, usize::from);
        let slots = config.engine.slots.min(u16::try_from(parallel).unwrap_or(u16::MAX));
        tool::Tool::choose(desired, tool::Walls::of(around), slots).map(Self::Tool).ok_or_else(|| match other
        {
            Some(why) => AdapterError::OtherModel(why),
            None => AdapterError::NoEngine(desired.service_id.to_string()),
        })
    }

    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Child(child) => child.server.profile.name,
            Self::Docker(_) => docker::NAME,
            Self::Tool(tool) => tool.name(),
            Self::External(_) => "external",
            Self::Fake(_) => "fake",
        }
    }

    /// The container that we have to start for it.
    #[must_use]
    pub fn container(&self) -> Option<&docker::DockerEngine> {
        match self {
            Self::Docker(engine) => Some(engine),
            Self::Child(_) | Self::Tool(_) | Self::External(_) | Self::Fake(_) => None,
        }
    }

    /// The process that we have to start for it.
    #[must_use]
    pub fn process(&self) -> Option<&Child> {
        match self {
            Self::Child(child) => Some(child),
            Self::Docker(_) | Self::Tool(_) | Self::External(_) | Self::Fake(_) => None,
        }
    }

    /// The server that we keep running for it, whatever it runs in.
    #[must_use]
    pub fn server(&self) -> Option<&Server> {
        match self {
            Self::Child(child) => Some(&child.server),
            Self::Docker(engine) => Some(&engine.server),
            Self::Tool(_) | Self::External(_) | Self::Fake(_) => None,
        }
    }

    /// The model's file, for this node to hash where the server's word on it does not count.
    #[must_use]
    pub fn model_file(&self) -> Option<&Path> {
        match self {
            Self::External(engine) => engine.model_file.as_deref(),
            Self::Child(_) | Self::Docker(_) | Self::Tool(_) | Self::Fake(_) => {
                self.server()?.model_file.as_deref()
            }
        }
    }

    /// The model's name in requests to it; empty when any name is right.
    #[must_use]
    pub fn model(&self) -> &str {
        match self {
            Self::Child(child) => &child.server.model,
            Self::Docker(engine) => &engine.server.model,
            Self::Tool(tool) => tool.model(),
            Self::External(engine) => &engine.model,
            Self::Fake(_) => "",
        }
    }

    /// The name that requests must carry instead of the plan's.
    #[must_use]
    pub fn renames(&self, planned: &str) -> Option<&str> {
        Some(self.model()).filter(|model| !model.is_empty() && *model != planned)
    }

    /// Requests it works on at a time, and how many more may wait.
    #[must_use]
    pub fn capacity(&self) -> (u32, u32) {
        match self {
            Self::Child(child) => (child.server.slots.into(), child.server.queue.into()),
            Self::Docker(engine) => (engine.server.slots.into(), engine.server.queue.into()),
            // What waits here waits for a processor.
            Self::Tool(tool) => (tool.slots.into(), u32::from(tool.slots) * 4),
            Self::External(engine) => (engine.slots.into(), 0),
            Self::Fake(engine) => (engine.slots, 0),
        }
    }

    /// Longest that its word on whether it is ready may take.
    #[must_use]
    pub const fn ready_time(&self) -> Duration {
        match self {
            Self::Child(_) | Self::Docker(_) | Self::Fake(_) => READY_TIME,
            // It may be behind a network, and a handshake.
            Self::External(_) => EXTERNAL_READY_TIME,
            // It gives up by itself.
            Self::Tool(_) => told::VERSION_TIME.saturating_add(READY_TIME),
        }
    }

    /// Succeeds when it takes work; with the SHA-256 of its model where it tells.
    ///
    /// # Errors
    /// It is not there, or not ready.
    pub async fn ready(&self, tasks: &Tasks) -> Result<Option<String>, EngineError> {
        match self {
            Self::Child(child) => child.server.ready(tasks).await,
            Self::Docker(engine) => engine.ready(tasks).await.map(|()| None),
            Self::External(engine) => engine.ready(tasks).await.map(|()| None),
            Self::Tool(tool) => tool.ready().await.map(|()| None),
            Self::Fake(_) => Ok(None),
        }
    }

    /// Hands one request over; gives the head of the answer. Dropping the answer, or this future, cancels the work.
    ///
    /// # Errors
    /// It cannot be reached or hung up.
    pub async fn ask(&self, question: Question, tasks: &Tasks) -> Result<Reply, EngineError> {
        match self {
            Self::Child(child) => child.server.ask(question, tasks).await,
            Self::Docker(engine) => engine.ask(question, tasks).await,
            Self::External(engine) => engine.ask(question, tasks).await,
            Self::Tool(tool) => {
                tool.ask(question.path, &question.request, &question.body).await.map(Reply::Made)
            }
            Self::Fake(engine) => engine.ask(question.path.as_str(), &question.body).map(Reply::Fake),
        }
    }
}

/// An engine's answer. Dropping it cancels the work.
#[derive(Debug)]
pub enum Reply {
    /// Over HTTP.
    Http(endpoint::HttpReply),
    /// From a program that ran once.
    Made(tool::Made),
    /// From a script.
    Fake(fake::Play),
}

impl Reply {
    /// HTTP status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Http(reply) => reply.status(),
            Self::Made(made) => made.status,
            Self::Fake(play) => play.status(),
        }
    }

    /// The next bytes; `None` at the end.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, EngineError>> {
        match self {
            Self::Http(reply) => reply.chunk().await,
            Self::Made(made) => made.chunk().await,
            Self::Fake(play) => play.chunk().await,
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// It is longer than `limit_bytes`, or the engine hung up.
    pub async fn whole(mut self, limit_bytes: usize) -> Result<Bytes, EngineError> {
        let mut whole = bytes::BytesMut::new();
        while let Some(chunk) = self.chunk().await {
            let chunk = chunk?;
            if whole.len() + chunk.len() > limit_bytes {
                return Err(EngineError::TooLong);
            }
            whole.extend_from_slice(&chunk);
        }
        Ok(whole.freeze())
    }
}
