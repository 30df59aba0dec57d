//! The built-in engine: `cxmpute-engine` as a child process on a unix socket.

use std::path::Path;

use cxmpute_runtime::once::Sandbox;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::control::DesiredService;

use super::{AdapterError, Child, Endpoint, Profile, Ready, Server, Stop, files};
use crate::config::NodeConfig;

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
    config: &NodeConfig,
    folder: Option<&Path>,
    desired: &DesiredService,
) -> Result<Child, AdapterError> {
    let models = folder.map_or_else(|| config.models_dir(), Path::to_owned);
    let path = files::model(&models, desired)?;
    let slots = super::slots(desired, config.engine.slots);
    let socket = crate::place::engine_socket(&config.data_dir);
    let mut arguments = vec![
        "--listen".to_owned(),
        format!("unix:{}", socket.display()),
        "--slots".into(),
        slots.to_string(),
        "--queue".into(),
        config.engine.queue.to_string(),
        "--while-stdin-open".into(),
    ];
    let weight_bytes = std::fs::metadata(&path).map_or(0, |meta| meta.len());
    if desired.kind == ServiceKind::Embeddings {
        let dir = path.parent().unwrap_or(&models);
        arguments.extend(["--embeddings".into(), format!("{}={}", desired.model, dir.display())]);
    } else {
        arguments.extend(["--model".into(), format!("{}={}", desired.model, path.display())]);
        if let Some(context) = desired.context_length {
            arguments.extend(["--context".into(), context.to_string()]);
        }
        if let Some(pace) = config.engine.pace {
            arguments.extend(["--pace".into(), pace.to_string()]);
        }
    }
    let server = Server {
        profile: PROFILE,
        endpoint: Endpoint::Unix(socket.clone()),
        model: desired.model.clone(),
        slots,
        queue: config.engine.queue,
        weight_bytes,
        model_file: None,
    };
    Ok(Child {
        server,
        program: config.engine_program(),
        arguments,
        environment: Vec::new(),
        socket: Some(socket),
        room: None,
        sandbox: Sandbox::default(),
    })
}
