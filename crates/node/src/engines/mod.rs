//! Engines behind one contract: where they listen, how they are started, which model name they know.

pub mod builtin;
pub mod endpoint;
pub mod external;

use anyhow::Result;
use cxmpute_wire::control::DesiredService;

pub use endpoint::{Endpoint, EngineError, Reply};

use crate::config::NodeConfig;

/// What runs a service on this machine.
#[derive(Clone, Debug)]
pub enum Adapter {
    /// Our own engine program, a child process.
    Builtin(builtin::Builtin),
    /// A server that the owner runs.
    External(external::ExternalEngine),
}

/// Why no engine of this machine can run a service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdapterError {
    /// A file of the model is not there.
    #[error("{0} is missing below the model directory")]
    ModelMissing(String),
    /// No engine of this machine knows this kind of service.
    #[error("no engine of this machine runs {0}")]
    NoEngine(String),
    /// The plan names a file outside the model directory.
    #[error("the plan names the file {0:?}, which is not below the model directory")]
    UnsafePath(String),
}

impl Adapter {
    /// The adapter for a service: the owner's own server when one is configured for it, else the first engine of the
    /// plan that this machine has.
    ///
    /// # Errors
    /// No engine fits, or a file is missing.
    pub fn choose(config: &NodeConfig, desired: &DesiredService) -> Result<Self, AdapterError> {
        let own = config.external.iter().find(|external| external.service == desired.service_id.as_str());
        if let Some(own) = own {
            return Ok(Self::External(external::ExternalEngine::new(own, desired)));
        }
        if desired.engines.iter().any(|engine| engine == "builtin") && builtin::knows(desired.kind) {
            return builtin::Builtin::new(config, desired).map(Self::Builtin);
        }
        Err(AdapterError::NoEngine(desired.service_id.to_string()))
    }

    /// Its name in reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Builtin(_) => "builtin",
            Self::External(_) => "external",
        }
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        match self {
            Self::Builtin(engine) => &engine.endpoint,
            Self::External(engine) => &engine.endpoint,
        }
    }

    /// The model's name in requests to it.
    #[must_use]
    pub fn model(&self) -> &str {
        match self {
            Self::Builtin(engine) => &engine.model,
            Self::External(engine) => &engine.model,
        }
    }

    /// Requests it works on at a time, and how many more may wait.
    #[must_use]
    pub fn capacity(&self) -> (u32, u32) {
        match self {
            Self::Builtin(engine) => (engine.slots.into(), engine.queue.into()),
            Self::External(engine) => (engine.slots.into(), 0),
        }
    }
}
