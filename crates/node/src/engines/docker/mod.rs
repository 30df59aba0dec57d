//! Engines in containers: the image that the catalogue pins by digest, on a Docker daemon that the owner lets us use. Here is
//! what a container becomes ([`body`]) and where its image comes from ([`pull`]); [`crate::supervise::container`] runs it.

pub mod body;
pub mod daemon;
pub mod kept;
pub mod login;
pub mod pull;

use std::path::{Path, PathBuf};

use cxmpute_runtime::Tasks;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::control::{ContainerImage, DesiredService, EnginePresent};
use cxmpute_wire::{Bytes, ProvisionId, ServiceKind};

use super::files::below;
use super::{AdapterError, Endpoint, EngineError, Profile, Question, Ready, Reply, Server, Stop, profile};
use crate::config::NodeConfig;

pub use daemon::DockerError;

/// Its name in plans.
pub const NAME: &str = "docker";
/// Most of an answer to "are you ready" that is read.
const READY_LIMIT_BYTES: usize = 64 * 1024;
/// The least that Docker takes for a limit of memory.
const LEAST_MEMORY: Bytes = Bytes(6 << 20);

/// What all containers have in common as servers; readiness and work are the image's own.
const PROFILE: Profile = Profile {
    name: NAME,
    ready: Ready { path: "/health", status: 200, body: None },
    work: &[],
    stop: Stop::POLITE,
    environment: &[],
    tells_digest: false,
};

/// How to start one container for one service, and how to talk to it.
#[derive(Clone, Debug)]
pub struct DockerEngine {
    /// The server that it becomes.
    pub server: Server,
    /// The image and what it may have.
    pub image: ContainerImage,
    /// Where the daemon listens.
    pub daemon: PathBuf,
    /// The file of the owner's logins at registries.
    pub logins: Option<PathBuf>,
    /// The directory with the only way in; the container makes its socket there.
    pub door: PathBuf,
    /// The model directory, where the model has files.
    pub models: Option<PathBuf>,
    /// The model's own file below it.
    pub model_file: Option<String>,
    /// Context in tokens.
    pub context: Option<u64>,
    /// Limit of memory: what the plan reserved.
    pub memory: Bytes,
    /// Accelerators that the plan reserved.
    pub gpus: Vec<u32>,
    /// Who runs it, so that leftovers are known.
    pub labels: Labels,
}

/// What marks a container as ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// This node.
    pub provision: ProvisionId,
    /// The service.
    pub service: String,
}

/// The engine for a planned service.
///
/// # Errors
/// The owner has not switched containers on, the image is not pinned, the plan reserved nothing, or a file is missing.
pub fn engine(
    config: &NodeConfig,
    files: Option<&Path>,
    provision: &ProvisionId,
    desired: &DesiredService,
) -> Result<DockerEngine, AdapterError> {
    let refuse = |why: String| AdapterError::NoEngine(format!("{}: {why}", desired.service_id));
    if !config.docker.enabled {
        return Err(refuse("its owner has not set docker.enabled".to_owned()));
    }
    let image = desired.container.as_deref().ok_or_else(|| refuse("the plan names no image".to_owned()))?;
    image.check().map_err(|fault| refuse(format!("the plan's image is refused: {fault}")))?;
    if desired.memory_claim < LEAST_MEMORY {
        return Err(refuse("the plan reserved no memory for the container".to_owned()));
    }
    if image.gpu && desired.gpus.is_empty() {
        return Err(refuse("the image wants an accelerator and the plan reserved none".to_owned()));
    }
    let models = files.map_or_else(|| config.models_dir(), Path::to_owned);
    let mut weight_bytes = 0;
    for file in &desired.files {
        let path = below(&models, file)?;
        let meta = std::fs::metadata(&path).ok().filter(std::fs::Metadata::is_file);
        weight_bytes += meta.ok_or_else(|| AdapterError::ModelMissing(path.display().to_string()))?.len();
    }
    let mounted = !desired.files.is_empty();
    if mounted && holds_the_key(config, &models) {
        return Err(refuse("models.dir holds the node's own data, which no container may see".to_owned()));
    }
    let door = crate::place::door(&config.data_dir);
    Ok(DockerEngine {
        server: Server {
            profile: Profile { work: work_of(desired.kind), ..PROFILE },
            endpoint: Endpoint::Unix(door.join(body::SOCKET)),
            model: desired.model.clone(),
            slots: super::slots(desired, config.engine.slots),
            queue: config.engine.queue,
            weight_bytes,
            model_file: desired
                .files
                .iter()
                .find(|file| file.role == "model")
                .and_then(|file| below(&models, file).ok()),
        },
        image: image.clone(),
        daemon: config.docker.socket.clone(),
        logins: login::file(config.docker.config.as_deref()),
        door,
        models: mounted.then_some(models),
        model_file: desired.files.iter().find(|file| file.role == "model").map(|file| file.name.clone()),
        context: desired.context_length,
        memory: desired.memory_claim,
        gpus: if image.gpu { desired.gpus.iter().map(|part| part.index).collect() } else { Vec::new() },
        labels: Labels { provision: provision.clone(), service: desired.service_id.to_string() },
    })
}

/// The work that a container does for a kind of service: it has no network to fetch anything from.
const fn work_of(kind: ServiceKind) -> &'static [WorkPath] {
    match kind {
        ServiceKind::Scrape => &[],
        other => profile::work_of(other),
    }
}

/// Whether the directory that a container would see is the data directory or has it inside.
fn holds_the_key(config: &NodeConfig, seen: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    real(&config.data_dir).starts_with(real(seen))
}

/// The daemon as an engine that the plan may count on, where the owner has switched it on and it answers.
pub async fn present(config: &NodeConfig) -> Option<EnginePresent> {
    if !config.docker.enabled {
        return None;
    }
    let version = async {
        let docker = daemon::connect(&config.docker.socket).await?;
        docker.version().await.map_err(|error| daemon::explain("", &error))
    };
    match version.await {
        Ok(version) => Some(EnginePresent {
            name: NAME.to_owned(),
            version: version.version.unwrap_or_default(),
            models: Vec::new(),
        }),
        Err(error) => {
            tracing::warn!(%error, "containers are switched on, and there is no Docker to run them");
            None
        }
    }
}

impl DockerEngine {
    /// Succeeds when it answers as the catalogue says of the image.
    ///
    /// # Errors
    /// It is not there, or answers otherwise.
    pub async fn ready(&self, tasks: &Tasks) -> Result<(), EngineError> {
        let wanted = &self.image.ready;
        let reply = Reply::Http(self.server.endpoint.connect(tasks).await?.get(&wanted.path).await?);
        let status = reply.status().as_u16();
        let body = reply.whole(READY_LIMIT_BYTES).await?;
        let holds = |part: &String| body.windows(part.len()).any(|window| window == part.as_bytes());
        if status == wanted.status && wanted.body.as_ref().is_none_or(holds) {
            Ok(())
        } else {
            Err(EngineError::NotReady(status))
        }
    }

    /// Hands one request over, if the image takes such work.
    ///
    /// # Errors
    /// It is other work, or the server cannot be reached or hung up.
    pub async fn ask(&self, question: Question, tasks: &Tasks) -> Result<Reply, EngineError> {
        let paths = &self.image.paths;
        if !paths.is_empty() && !paths.iter().any(|path| path == question.path.as_str()) {
            return Err(EngineError::OtherWork(question.path.as_str()));
        }
        self.server.ask(question, tasks).await
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn planned(change: impl FnOnce(&mut Value)) -> DesiredService {
        let mut service = json!({
            "service_id": "llm:m", "kind": "llm", "model": "m", "engines": ["docker"], "memory_claim": 64 << 20,
            "gpus": [{"index": 2, "memory": 5}],
            "container": {"image": format!("a.b/c@sha256:{}", "0".repeat(64)), "command": ["/e", "{socket}"],
                "pids": 9, "tmp": 0, "shared_memory": 0},
        });
        change(&mut service);
        serde_json::from_value(service).unwrap()
    }

    fn config(dir: &std::path::Path) -> NodeConfig {
        let mut config = NodeConfig { data_dir: dir.join("data"), ..NodeConfig::default() };
        config.docker.enabled = true;
        config.models.dir = Some(dir.join("models"));
        config
    }

    #[test]
    fn what_a_plan_may_not_ask_for_is_refused_with_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let good = config(dir.path());
        let provision = ProvisionId::from_tail("a");
        let why = |config: &NodeConfig, change: fn(&mut Value)| {
            engine(config, None, &provision, &planned(change)).map(drop).unwrap_err().to_string()
        };
        assert!(why(&NodeConfig::default(), |_| {}).contains("docker.enabled"));
        assert!(why(&good, |plan| plan["container"] = Value::Null).contains("names no image"));
        assert!(why(&good, |plan| plan["container"]["image"] = json!("a.b/c:latest")).contains("sha256"));
        assert!(why(&good, |plan| plan["container"]["command"] = json!(["/e"])).contains("{socket}"));
        assert!(why(&good, |plan| plan["memory_claim"] = json!(0)).contains("no memory"));
        let without_gpu = |plan: &mut Value| {
            plan["gpus"] = json!([]);
            plan["container"]["gpu"] = json!(true);
        };
        assert!(why(&good, without_gpu).contains("accelerator"));
        let outside = |plan: &mut Value| plan["files"] = json!([{"role": "model", "name": "../key"}]);
        assert!(why(&good, outside).contains("../key"));
        let missing = |plan: &mut Value| plan["files"] = json!([{"role": "model", "name": "m.gguf"}]);
        assert!(why(&good, missing).contains("m.gguf is missing"));
        for models in ["", "data"] {
            let mut open = config(dir.path());
            open.models.dir = Some(dir.path().join(models));
            std::fs::create_dir_all(&open.data_dir).unwrap();
            std::fs::write(open.models_dir().join("m.gguf"), "x").unwrap();
            assert!(why(&open, missing).contains("node's own data"), "{models}");
        }
    }

    #[test]
    fn accelerators_are_handed_in_only_to_an_image_that_asks_for_them() {
        let dir = tempfile::tempdir().unwrap();
        let (config, provision) = (config(dir.path()), ProvisionId::from_tail("a"));
        let of = |change: fn(&mut Value)| engine(&config, None, &provision, &planned(change)).unwrap();
        assert_eq!(of(|_| {}).gpus, Vec::<u32>::new());
        assert_eq!(of(|plan| plan["container"]["gpu"] = json!(true)).gpus, [2]);
        assert_eq!(of(|_| {}).models, None, "a container without model files sees none");
    }
}
