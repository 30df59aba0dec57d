//! The built-in engine: `cxmpute-engine` as a child process on a unix socket.

use std::path::Path;

use cxmpute_runtime::confine::Sockets;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::control::DesiredService;

use super::start::{Finish, Start};
use super::{AdapterError, Child, Endpoint, Profile, Ready, Stop};
use crate::supervise::Surroundings;

/// Memory that it may have for itself beside three times the model, in bytes.
const MEMORY: u64 = 4 << 30;
/// The same for each slot: the keys and values of one answer are a GiB at most.
const MEMORY_OF_SLOT: u64 = 2 << 30;
/// Largest file that it may write, in bytes; it has nothing to write.
const FILE: u64 = 64 << 20;

/// What it is as a server.
const PROFILE: Profile = Profile {
    name: "builtin",
    ready: Ready { path: "/health", status: 200, body: None },
    work: &[WorkPath::ChatCompletions, WorkPath::Completions, WorkPath::Embeddings],
    stop: Stop::POLITE,
    environment: &["RAYON_NUM_THREADS"],
    tells_digest: true,
};

/// Whether the built-in engine serves this kind.
#[must_use]
pub const fn knows(kind: ServiceKind) -> bool {
    matches!(kind, ServiceKind::Llm | ServiceKind::Embeddings)
}

/// The engine for a planned service.
///
/// # Errors
/// A file is missing or lies outside the model directory.
pub fn engine(
    around: &Surroundings,
    folder: Option<&Path>,
    desired: &DesiredService,
) -> Result<Child, AdapterError> {
    let config = &around.config;
    let mut start = Start::new(around, folder, desired, config.engine_program())?;
    let socket = start.socket();
    start.push("--listen", format!("unix:{}", socket.display()));
    start.push("--slots", start.slots.to_string());
    start.push("--queue", config.engine.queue.to_string());
    start.arguments.push("--while-stdin-open".to_owned());
    let weight_bytes = std::fs::metadata(&start.file).map_or(0, |meta| meta.len());
    let mut readable = Vec::new();
    if desired.kind == ServiceKind::Embeddings {
        let folder = start.folder();
        start.push("--embeddings", format!("{}={}", desired.model, folder.display()));
        readable.push(folder);
    } else {
        start.push("--model", format!("{}={}", desired.model, start.file.display()));
        if let Some(context) = desired.context_length {
            start.push("--context", context.to_string());
        }
        if let Some(pace) = config.engine.pace {
            start.push("--pace", pace.to_string());
        }
    }
    let memory = weight_bytes.saturating_mul(3).saturating_add(MEMORY_OF_SLOT * u64::from(start.slots));
    Ok(start.child(Finish {
        profile: PROFILE,
        endpoint: Endpoint::Unix(socket),
        queue: config.engine.queue,
        weight_bytes,
        hashes: false,
        readable,
        sockets: Sockets::Door,
        memory: Some(memory.saturating_add(MEMORY)),
        files: Some(FILE),
    }))
}
