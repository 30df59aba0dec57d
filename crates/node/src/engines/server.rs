//! A server that this node keeps running, whatever it runs in: where it listens, what it serves, how it is asked.

use std::path::PathBuf;

use cxmpute_runtime::Tasks;

use super::{Endpoint, EngineError, Profile, Question, Reply};

/// Most of an answer to "are you ready" that is read.
const READY_LIMIT_BYTES: usize = 64 * 1024;
/// Most of a list of models that is read.
const MODELS_LIMIT_BYTES: usize = 1024 * 1024;

/// One engine server of ours.
#[derive(Clone, Debug)]
pub struct Server {
    /// What kind it is.
    pub profile: Profile,
    /// Where it listens once it does.
    pub endpoint: Endpoint,
    /// What it calls the model.
    pub model: String,
    /// Requests at a time.
    pub slots: u16,
    /// Requests that may wait.
    pub queue: u16,
    /// Size of the model's files in bytes, for the start budget.
    pub weight_bytes: u64,
    /// The model's file, for this node to hash where the server does not tell what it loaded.
    pub model_file: Option<PathBuf>,
}

impl Server {
    /// Succeeds when it takes work; with the SHA-256 of its model where it tells.
    ///
    /// # Errors
    /// It is not there, or not ready.
    pub async fn ready(&self, tasks: &Tasks) -> Result<Option<String>, EngineError> {
        let ready = self.profile.ready;
        let reply = Reply::Http(self.endpoint.connect(tasks).await?.get(ready.path).await?);
        let status = reply.status().as_u16();
        let body = reply.whole(READY_LIMIT_BYTES).await?;
        if !ready.is(status, &body) {
            return Err(EngineError::NotReady(status));
        }
        if !self.profile.tells_digest {
            return Ok(None);
        }
        let reply = self.endpoint.connect(tasks).await?.get_below("/models").await?;
        if !reply.status().is_success() {
            return Err(EngineError::NotReady(reply.status().as_u16()));
        }
        let body = reply.whole(MODELS_LIMIT_BYTES).await?;
        let models: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let list = models["data"].as_array();
        let entry = list.and_then(|list| list.iter().find(|model| model["id"] == self.model.as_str()));
        Ok(entry.and_then(|entry| entry["digest"].as_str().map(str::to_owned)))
    }

    /// Hands one request over, if it is work of this kind of server.
    ///
    /// # Errors
    /// It is other work, or the server cannot be reached or hung up.
    pub async fn ask(&self, question: Question, tasks: &Tasks) -> Result<Reply, EngineError> {
        if !self.profile.work.contains(&question.path) {
            return Err(EngineError::OtherWork(question.path.as_str()));
        }
        let content_type = question.content_type();
        let link = self.endpoint.connect(tasks).await?;
        link.post(question.path.as_str(), &content_type, question.body).await.map(Reply::Http)
    }
}
