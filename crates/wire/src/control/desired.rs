//! Desired state: what the server wants a provision to run.

use serde::{Deserialize, Serialize};

use crate::{Bytes, Generation, ServiceId, ServiceKind};

/// The whole desired state of one provision; a later generation replaces an earlier one as a whole.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Desired {
    /// Version.
    pub generation: Generation,
    /// What should run.
    pub services: Vec<DesiredService>,
    /// Limits that hold for the whole node.
    #[serde(default)]
    pub policy: Policy,
}

/// One service that should run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DesiredService {
    /// Which service.
    pub service_id: ServiceId,
    /// Kind of work.
    pub kind: ServiceKind,
    /// Catalogue id of the model.
    pub model: String,
    /// Engines in order of preference (`builtin`, `external`, …).
    pub engines: Vec<String>,
    /// Files of the model.
    #[serde(default)]
    pub files: Vec<DesiredFile>,
    /// Context in tokens.
    #[serde(default)]
    pub context_length: Option<u64>,
    /// Requests at a time; 0 leaves it to the node.
    #[serde(default)]
    pub slots: u32,
    /// Memory that the plan reserved.
    #[serde(default)]
    pub memory_claim: Bytes,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DesiredFile {
    /// `model`, `tokenizer`, `config`, …
    pub role: String,
    /// Path below the model directory, never absolute, never with `..`.
    pub name: String,
    /// SHA-256 in hexadecimal, where the catalogue pins it.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Size, where known.
    #[serde(default)]
    pub size: Option<Bytes>,
}

/// Limits for the whole node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// Most concurrent work streams; 0 leaves it to the node.
    #[serde(default)]
    pub max_streams: u32,
}
