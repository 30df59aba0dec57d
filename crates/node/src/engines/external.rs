//! A server that the owner runs: any OpenAI-compatible one (llama-server, Ollama, vLLM …). We never start or stop it.

use cxmpute_runtime::Secret;
use cxmpute_wire::control::DesiredService;

use super::Endpoint;
use crate::config::External;

/// Requests an owner's server takes at a time when nothing else is configured.
const DEFAULT_SLOTS: u16 = 4;

/// Where the owner's server listens and what it calls the model.
#[derive(Clone, Debug)]
pub struct ExternalEngine {
    /// Its address.
    pub endpoint: Endpoint,
    /// Its own name of the model.
    pub model: String,
    /// Requests at a time.
    pub slots: u16,
}

impl ExternalEngine {
    /// The configured server for a planned service.
    #[must_use]
    pub fn new(external: &External, desired: &DesiredService) -> Self {
        let key = external.api_key_file.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        Self {
            endpoint: Endpoint::http(
                &external.base_url,
                key.map(|key| std::sync::Arc::new(Secret::new(key.trim().to_owned()))),
            ),
            model: external.model.clone().unwrap_or_else(|| desired.model.clone()),
            slots: external.slots.unwrap_or(DEFAULT_SLOTS).max(1),
        }
    }
}
