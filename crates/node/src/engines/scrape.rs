//! The engine that fetches pages: this program itself as a child process on a unix socket. What it does is in
//! [`crate::scrape`]; here is how it is started.

use std::path::Path;

use cxmpute_runtime::once::Sandbox;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::control::DesiredService;

use super::{AdapterError, Child, Endpoint, Profile, Ready, Server, Stop};
use crate::config::NodeConfig;
use crate::scrape::quota;

/// Its name in plans.
pub const NAME: &str = "scrape";
/// The name of the service where the plan gives it no model.
const MODEL: &str = "scrape";

/// What it is as a server.
const PROFILE: Profile = Profile {
    name: NAME,
    ready: Ready { path: "/health", status: 200, body: None },
    work: &[WorkPath::Scrape],
    stop: Stop::POLITE,
    environment: &[],
    tells_digest: false,
};

/// The engine for a planned service.
///
/// # Errors
/// The owner has not switched scraping on (NR50).
pub fn engine(config: &NodeConfig, desired: &DesiredService, program: &Path) -> Result<Child, AdapterError> {
    let service = desired.service_id.to_string();
    if !config.scrape.enabled {
        return Err(AdapterError::NoEngine(format!("{service}: its owner has not set scrape.enabled")));
    }
    let settings = serde_json::to_string(&config.scrape)
        .map_err(|error| AdapterError::NoEngine(format!("{service}: {error}")))?;
    let model = if desired.model.is_empty() { MODEL.to_owned() } else { desired.model.clone() };
    let socket = crate::place::engine_socket(&config.data_dir);
    let slots = match u16::try_from(desired.slots) {
        Ok(planned) if planned > 0 => planned.min(config.scrape.slots),
        _ => config.scrape.slots,
    };
    let arguments = [
        "engine".to_owned(),
        "scrape".into(),
        "--while-stdin-open".into(),
        format!("--socket={}", socket.display()),
        format!("--settings={settings}"),
        format!("--count={}", quota::file(&config.data_dir).display()),
        format!("--model={model}"),
    ];
    let server = Server {
        profile: PROFILE,
        endpoint: Endpoint::Unix(socket.clone()),
        model,
        slots: slots.max(1),
        queue: 0,
        weight_bytes: 0,
        model_file: None,
    };
    Ok(Child {
        server,
        program: program.to_owned(),
        arguments: arguments.to_vec(),
        environment: Vec::new(),
        socket: Some(socket),
        room: None,
        sandbox: Sandbox::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned() -> DesiredService {
        serde_json::from_value(serde_json::json!({
            "service_id": "scrape", "kind": "scrape", "model": "", "engines": ["scrape"], "files": [], "slots": 2,
        }))
        .unwrap()
    }

    #[test]
    fn it_starts_only_where_the_owner_wants_it() {
        let mut config = NodeConfig::default();
        let error = engine(&config, &planned(), Path::new("/x")).unwrap_err();
        assert!(error.to_string().contains("scrape.enabled"), "{error}");
        config.scrape.enabled = true;
        config.scrape.deny_domains = vec!["example.com".into()];
        let engine = engine(&config, &planned(), Path::new("/x")).unwrap();
        assert_eq!((engine.server.slots, engine.server.model.as_str()), (2, "scrape"));
        assert!(
            engine.arguments.iter().any(|argument| argument.contains("\"deny_domains\":[\"example.com\"]"))
        );
    }
}
