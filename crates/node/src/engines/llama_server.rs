//! llama.cpp's `llama-server`: GGUF models, on a unix socket, in a sandbox without a network. A build that knows no unix
//! sockets gets a port of the loopback and a key that only this node and it know.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cxmpute_runtime::Secret;
use cxmpute_runtime::once::Sandbox;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::control::DesiredService;

use super::told::{VERSION_TIME, told};
use super::{AdapterError, Child, Endpoint, Profile, Ready, Server, Stop, files};
use crate::config::NodeConfig;
use crate::supervise::Surroundings;
use crate::supervise::confine::Terms;

/// Its name in plans.
pub const NAME: &str = "llama-server";
/// Longest that it may take to say what it can.
const HELP_TIME: Duration = Duration::from_secs(20);
/// Memory that it may have for itself beside twice the model and twice what the plan reserved, in bytes.
const MEMORY: u64 = 4 << 30;
/// The same where accelerators map theirs.
const MEMORY_WITH_GPU: u64 = 32 << 30;
/// Largest file that it may write, in bytes; it has nothing to write.
const FILE: u64 = 64 << 20;
/// More layers than any model has: all of them go to the accelerator.
const ALL_LAYERS: &str = "999";

/// What it is as a server.
pub const PROFILE: Profile = Profile {
    name: NAME,
    ready: Ready { path: "/health", status: 200, body: Some("\"ok\"") },
    work: &[WorkPath::ChatCompletions, WorkPath::Completions, WorkPath::Embeddings],
    stop: Stop::POLITE,
    environment: &["CUDA_DEVICE_ORDER"],
    tells_digest: false,
};

/// What a build of it understands, from its own help.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Knows(String);

impl Knows {
    async fn ask(program: &Path) -> Self {
        Self(told(program, &["--help"], HELP_TIME).await.output)
    }

    fn flag(&self, flag: &str) -> bool {
        self.0.split(|c: char| c.is_whitespace() || c == ',').any(|word| word == flag)
    }

    fn sockets(&self) -> bool {
        self.0.contains(".sock")
    }
}

/// Where it is: as configured, beside this program, or on the path.
#[must_use]
pub fn find(config: &NodeConfig) -> Option<PathBuf> {
    super::find_program(config.engines.llama_server.as_deref(), NAME)
}

/// What it says of its version; empty when it says nothing.
pub async fn version_at(program: &Path) -> String {
    let said = told(program, &["--version"], VERSION_TIME).await;
    let mut lines = said.output.lines().chain(said.complaints.lines());
    let line = lines.find_map(|line| line.trim().strip_prefix("version:"));
    line.unwrap_or_default().trim().chars().take(80).collect()
}

/// Whether it can serve this, where it is installed.
#[must_use]
pub fn knows(desired: &DesiredService) -> bool {
    matches!(desired.kind, ServiceKind::Llm | ServiceKind::Embeddings)
        && desired.files.iter().any(|file| file.role == "model" && file.name.ends_with(".gguf"))
}

/// The engine for a planned service.
///
/// # Errors
/// A file is missing or lies outside the model directory.
pub async fn engine(
    around: &Surroundings,
    folder: Option<&Path>,
    desired: &DesiredService,
    program: PathBuf,
) -> Result<Child, AdapterError> {
    let models = folder.map_or_else(|| around.config.models_dir(), Path::to_owned);
    let model_file = files::model(&models, desired)?;
    let knows = Knows::ask(&program).await;
    let room = crate::place::engine_room(&around.config.data_dir);
    let slots = super::slots(desired, around.config.engine.slots);
    let weight_bytes = std::fs::metadata(&model_file).map_or(0, |meta| meta.len());
    let mut arguments = arguments(desired, &model_file, slots, &knows);
    let mut environment = vec![
        ("HOME", Secret::new(room.display().to_string())),
        ("TMPDIR", Secret::new(room.display().to_string())),
    ];
    let gpus: Vec<String> = desired.gpus.iter().map(|gpu| gpu.index.to_string()).collect();
    // Numbers of cards in the order of the diagnostics.
    environment.push(("CUDA_DEVICE_ORDER", Secret::new("PCI_BUS_ID".to_owned())));
    environment.push(("CUDA_VISIBLE_DEVICES", Secret::new(gpus.join(","))));
    let socket = crate::place::socket_in(&room);
    let endpoint = if knows.sockets() {
        arguments.extend(["--host".to_owned(), socket.display().to_string()]);
        Endpoint::Unix(socket.clone())
    } else {
        let (port, key) = super::loopback_door();
        arguments.extend(["--host".to_owned(), "127.0.0.1".into(), "--port".into(), port.to_string()]);
        environment.push(("LLAMA_API_KEY", Secret::new(key.clone())));
        Endpoint::http(&format!("http://127.0.0.1:{port}/v1"), Some(Arc::new(Secret::new(key))))
    };
    let beside = if gpus.is_empty() { MEMORY } else { MEMORY_WITH_GPU };
    let memory =
        weight_bytes.saturating_add(desired.memory_claim.get()).saturating_mul(2).saturating_add(beside);
    let terms = Terms {
        hidden: super::private_places(&around.config),
        readable: vec![super::folder_of(&program), model_file.clone()],
        room: room.clone(),
        network: !knows.sockets(),
        memory: Some(memory),
        files: Some(FILE),
    };
    let sandbox = around.confiner.as_ref().map_or_else(Sandbox::default, |confiner| confiner.sandbox(&terms));
    let server = Server {
        profile: PROFILE,
        endpoint,
        model: desired.model.clone(),
        slots,
        // What it has no slot for waits in it without a bound; here it is refused, so that another node takes it.
        queue: 0,
        weight_bytes,
        model_file: Some(model_file),
    };
    Ok(Child { server, program, arguments, environment, socket: Some(socket), room: Some(room), sandbox })
}

fn arguments(desired: &DesiredService, model: &Path, slots: u16, knows: &Knows) -> Vec<String> {
    let mut arguments =
        vec!["-m".to_owned(), model.display().to_string(), "--alias".into(), desired.model.clone()];
    let mut push = |flag: &str, value: &str| arguments.extend([flag.to_owned(), value.to_owned()]);
    push("--parallel", &slots.to_string());
    if let Some(context) = desired.context_length {
        // It divides the context between its slots.
        push("--ctx-size", &context.saturating_mul(slots.into()).to_string());
    }
    push("--n-gpu-layers", if desired.gpus.is_empty() { "0" } else { ALL_LAYERS });
    // What is kept of one user's prompt in memory is not for the next user's.
    if knows.flag("--cache-ram") {
        push("--cache-ram", "0");
    }
    if desired.kind == ServiceKind::Embeddings {
        arguments.push("--embeddings".to_owned());
    }
    for flag in ["--no-webui", "--no-slots", "--offline", "--jinja"] {
        if knows.flag(flag) {
            arguments.push(flag.to_owned());
        }
    }
    arguments
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned() -> DesiredService {
        serde_json::from_value(serde_json::json!({
            "service_id": "llm:a:1b", "kind": "llm", "model": "a:1b", "engines": [NAME], "slots": 2,
            "files": [{"role": "model", "name": "a.gguf"}], "context_length": 1024,
        }))
        .unwrap()
    }

    #[test]
    fn it_is_told_what_the_plan_says_and_only_flags_that_it_knows() {
        let new = Knows("--host HOST  UNIX socket paths ending in .sock\n-cram, --cache-ram N\n--ui, --webui, --no-ui, --no-webui\n--slots, --no-slots\n--offline".into());
        let said = arguments(&planned(), Path::new("/m/a.gguf"), 2, &new).join(" ");
        assert_eq!(
            said,
            "-m /m/a.gguf --alias a:1b --parallel 2 --ctx-size 2048 --n-gpu-layers 0 --cache-ram 0 --no-webui \
             --no-slots --offline"
        );
        assert!(new.sockets() && !Knows::default().sockets());
        let mut on_cards = planned();
        on_cards.gpus = vec![cxmpute_wire::control::GpuShare { index: 1, memory: cxmpute_wire::Bytes(1) }];
        on_cards.kind = ServiceKind::Embeddings;
        let said = arguments(&on_cards, Path::new("/m/a.gguf"), 1, &Knows::default()).join(" ");
        assert!(said.contains("--n-gpu-layers 999") && said.ends_with("--embeddings"), "{said}");
        assert!(knows(&on_cards));
        on_cards.files[0].name = "model.safetensors".into();
        assert!(!knows(&on_cards));
    }
}
