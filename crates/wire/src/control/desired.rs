//! Desired state: what the server wants a provision to run.

use serde::{Deserialize, Serialize};

use super::{ContainerImage, Seal};
use crate::{Bytes, Generation, ServiceId, ServiceKind, Timestamp};

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
    /// Memory of the machine that the plan reserved.
    #[serde(default)]
    pub memory_claim: Bytes,
    /// Parts of accelerators that the plan reserved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<GpuShare>,
    /// Since when the plan has it on this provision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Its name in Ollama's library, where no files are pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ollama: Option<String>,
    /// Where a hub has it, where no files are pinned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<Box<HubModel>>,
    /// The image that serves it, for the engine `docker`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<Box<ContainerImage>>,
    /// The operator's signature over the files, where the catalogue is sealed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seal: Option<Box<Seal>>,
}

/// A part of one accelerator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuShare {
    /// Position, as in the diagnostics.
    pub index: u32,
    /// How much of its memory.
    pub memory: Bytes,
}

/// A model on a hub in Hugging Face's layout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HubModel {
    /// `OWNER/NAME`.
    pub repository: String,
    /// Commit or tag; the newest when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// One file; all that the engine wants when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
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
    /// Where it can be had: whole URLs, and paths of the control plane itself (`/api/v1/blobs/…`), asked with a signature.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// Where a hub has it; `file` is the path in the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hub: Option<Box<HubModel>>,
}

/// Limits for the whole node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Policy {
    /// Most concurrent work streams; 0 leaves it to the node.
    #[serde(default)]
    pub max_streams: u32,
}
