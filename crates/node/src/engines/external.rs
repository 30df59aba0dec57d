//! A server that the owner runs: any OpenAI-compatible one (llama-server, Ollama, vLLM …). We never start or stop it.

use std::path::PathBuf;
use std::sync::Arc;

use cxmpute_runtime::{Secret, Tasks};
use cxmpute_wire::ServiceKind;
use cxmpute_wire::control::DesiredService;
use serde_json::Value;

use super::found::{Found, FoundModel, pinned};
use super::{Endpoint, EngineError, Question, Reply, profile};
use crate::config::External;
use crate::supervise::Surroundings;

/// Most of a list of models that is read.
const MODELS_BYTES: usize = 1024 * 1024;
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
    /// The kind of work that it is asked for, and no other.
    kind: ServiceKind,
    /// Where it was found. Then it is ready only while it lists the model.
    found_at: Option<String>,
    /// The model's file, where the catalogue pins it and the server does not tell its hash.
    pub model_file: Option<PathBuf>,
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
            kind: desired.kind,
            found_at: None,
            model_file: None,
        }
    }

    /// A server that was found, with its model for a planned service.
    #[must_use]
    pub fn found(found: &Found, model: &FoundModel, desired: &DesiredService, slots: Option<u16>) -> Self {
        let pinned = pinned(desired).is_some();
        Self {
            endpoint: Endpoint::http(&format!("http://{}/v1", found.address), None),
            model: model.name.clone(),
            slots: slots.or(model.slots).unwrap_or(found.kind.slots()).max(1),
            kind: desired.kind,
            found_at: Some(found.address.clone()),
            model_file: model.file.clone().filter(|_| pinned && model.digest.is_none()),
        }
    }

    /// Whether it still has the model for which it was found, with the weights that the plan pins. Always for a server that
    /// the owner configured.
    #[must_use]
    pub fn is_among(&self, finds: &[Found], desired: &DesiredService) -> bool {
        let Some(address) = &self.found_at else { return true };
        let here = finds.iter().filter(|found| found.address == *address);
        here.flat_map(|found| found.models_for(desired)).any(|model| model.name == self.model)
    }

    /// Succeeds when it lists its models, with ours among them where it was found by that.
    ///
    /// # Errors
    /// It is not there, or not ready.
    pub async fn ready(&self, tasks: &Tasks) -> Result<(), EngineError> {
        let reply = self.endpoint.connect(tasks).await?.get_below("/models").await?;
        let status = reply.status();
        if !status.is_success() {
            return Err(EngineError::NotReady(status.as_u16()));
        }
        if self.found_at.is_some() {
            let models: Value = serde_json::from_slice(&reply.whole(MODELS_BYTES).await?).unwrap_or_default();
            let mut listed = models["data"].as_array().into_iter().flatten();
            if !listed.any(|model| model["id"] == self.model.as_str()) {
                return Err(EngineError::NotReady(status.as_u16()));
            }
        }
        Ok(())
    }

    /// Hands one request over, if it is work of the service's kind.
    ///
    /// # Errors
    /// It is other work, or the server cannot be reached or hung up.
    pub async fn ask(&self, question: Question, tasks: &Tasks) -> Result<Reply, EngineError> {
        if !profile::work_of(self.kind).contains(&question.path) {
            return Err(EngineError::OtherWork(question.path.as_str()));
        }
        let content_type = question.content_type();
        let link = self.endpoint.connect(tasks).await?;
        link.post(question.path.as_str(), &content_type, question.body).await.map(Reply::Http)
    }
}

/// The owner's server that runs a planned model, looked for under one name of the plan's engines. Where the server does not
/// say the hash of its weights, their file is read: once, and again when it has changed.
///
/// # Errors
/// It has another model under the planned name.
pub(super) async fn running<'a>(
    around: &Surroundings,
    desired: &DesiredService,
    name: &str,
    finds: &'a [Found],
) -> Result<Option<(&'a Found, &'a FoundModel)>, String> {
    let mut other = None;
    for found in finds.iter().filter(|found| found.kind.name() == name || name == "external") {
        for model in found.models_for(desired) {
            let file = model.file.as_ref().filter(|_| model.digest.is_none());
            let Some((pinned, file)) = pinned(desired).zip(file) else {
                return Ok(Some((found, model)));
            };
            match around.models.sum(file).await {
                Ok(sum) if pinned.eq_ignore_ascii_case(&sum.to_string()) => return Ok(Some((found, model))),
                Ok(sum) => {
                    other = Some(format!("the model file has the hash {sum}, the catalogue pins {pinned}"));
                }
                Err(error) => other = Some(format!("{}: {error}", file.display())),
            }
        }
    }
    other.map_or(Ok(None), Err)
}
