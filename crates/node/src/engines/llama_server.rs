//! llama.cpp's `llama-server`: GGUF models, on a unix socket, in a sandbox without a network. A build that knows no unix
//! sockets gets a port of the loopback and a key that only this node and it know.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cxmpute_runtime::confine::Sockets;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::control::DesiredService;

use super::start::{Finish, Start};
use super::told::{VERSION_TIME, told};
use super::{AdapterError, Child, Profile, Ready, Stop};
use crate::config::NodeConfig;
use crate::supervise::Surroundings;

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
    let knows = Knows::ask(&program).await;
    let mut start = Start::new(around, folder, desired, program)?;
    start.arguments = arguments(desired, &start.file, start.slots, &knows);
    start.show_cards();
    let endpoint = start.listen(knows.sockets().then_some("--host"), "LLAMA_API_KEY");
    let weight_bytes = std::fs::metadata(&start.file).map_or(0, |meta| meta.len());
    let beside = if desired.gpus.is_empty() { MEMORY } else { MEMORY_WITH_GPU };
    let memory = weight_bytes.saturating_add(desired.memory_claim.get()).saturating_mul(2);
    Ok(start.child(Finish {
        profile: PROFILE,
        endpoint,
        // What it has no slot for waits in it without a bound; here it is refused, so that another node takes it.
        queue: 0,
        weight_bytes,
        hashes: true,
        readable: Vec::new(),
        sockets: Sockets::Door,
        memory: Some(memory.saturating_add(beside)),
        files: Some(FILE),
    }))
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
