//! A server that the owner runs: any OpenAI-compatible one (llama-server, Ollama, vLLM …). We never start or stop it.

use std::sync::Arc;

use cxmpute_runtime::{Secret, Tasks};
use cxmpute_wire::control::DesiredService;

use super::{Endpoint, EngineError, Question, Reply};
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
    /// The configured server for a planned service. The key file is read each time, so that a new key needs no restart.
    #[must_use]
    pub fn new(external: &External, desired: &DesiredService) -> Self {
        let endpoint = match external.api_key_file.as_ref().map(|path| (path, std::fs::read_to_string(path)))
        {
            None => Endpoint::http(&external.base_url, None),
            Some((_, Ok(key))) => {
                Endpoint::http(&external.base_url, Some(Arc::new(Secret::new(key.trim().to_owned()))))
            }
            Some((path, Err(error))) => Endpoint::Unusable(format!(
                "external.api_key_file {} cannot be read: {error}",
                path.display()
            )),
        };
        Self {
            endpoint,
            model: external.model.clone().unwrap_or_else(|| desired.model.clone()),
            slots: external.slots.unwrap_or(DEFAULT_SLOTS).max(1),
        }
    }
    /// Succeeds when it lists its models.
    ///
    /// # Errors
    /// It is not there, or not ready.
    pub async fn ready(&self, tasks: &Tasks) -> Result<(), EngineError> {
        let reply = self.endpoint.connect(tasks).await?.get_below("/models").await?;
        if reply.status().is_success() { Ok(()) } else { Err(EngineError::NotReady(reply.status().as_u16())) }
    }

    /// Hands one request over.
    ///
    /// # Errors
    /// It cannot be reached or hung up.
    pub async fn ask(&self, question: Question, tasks: &Tasks) -> Result<Reply, EngineError> {
        let content_type = question.content_type();
        let link = self.endpoint.connect(tasks).await?;
        link.post(question.path.as_str(), &content_type, question.body).await.map(Reply::Http)
    }
}
