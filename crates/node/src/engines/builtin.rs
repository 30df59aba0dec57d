//! The built-in engine: `cxmpute-engine` as a child process on a unix socket.

use std::path::{Component, Path, PathBuf};

use cxmpute_runtime::once::Sandbox;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::control::{DesiredFile, DesiredService};

use super::{AdapterError, Child, Endpoint, Profile, Ready, Server, Stop};
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
pub fn engine(config: &NodeConfig, desired: &DesiredService) -> Result<Child, AdapterError> {
    let models = config.models_dir();
    for file in &desired.files {
        let path = below(&models, file)?;
        if !path.is_file() {
            return Err(AdapterError::ModelMissing(path.display().to_string()));
        }
    }
    let file = desired
        .files
        .iter()
        .find(|file| file.role == "model")
        .ok_or_else(|| AdapterError::ModelMissing(format!("a model file of {}", desired.service_id)))?;
    let path = below(&models, file)?;
    let slots =
        if desired.slots == 0 { config.engine.slots } else { fit(desired.slots, config.engine.slots) }.max(1);
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
    };
    Ok(Child {
        server,
        program: config.engine_program(),
        arguments,
        environment: Vec::new(),
        socket: Some(socket),
        sandbox: Sandbox::default(),
    })
}

fn fit(planned: u32, own: u16) -> u16 {
    u16::try_from(planned).unwrap_or(u16::MAX).min(own)
}

/// The path of a planned file; the plan comes from the network, so it may only name files below the model directory.
pub(super) fn below(models: &Path, file: &DesiredFile) -> Result<PathBuf, AdapterError> {
    let name = Path::new(&file.name);
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !file.name.is_empty() {
        Ok(models.join(name))
    } else {
        Err(AdapterError::UnsafePath(file.name.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_cannot_leave_the_model_directory() {
        let file =
            |name: &str| DesiredFile { role: "model".into(), name: name.into(), sha256: None, size: None };
        for bad in ["../x", "/etc/passwd", "a/../../x", "", "."] {
            assert!(below(Path::new("/models"), &file(bad)).is_err(), "{bad}");
        }
        assert_eq!(below(Path::new("/m"), &file("a/b.gguf")).unwrap(), Path::new("/m/a/b.gguf"));
    }
}
