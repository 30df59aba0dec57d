//! What a machine is made of, as measured by the node.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Bytes, MicroCredits};

/// Hardware and system of a machine, and what its owner lets it do.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Diagnostics {
    /// System.
    #[serde(default)]
    pub os: OsInfo,
    /// Processor.
    #[serde(default)]
    pub cpu: CpuInfo,
    /// System memory.
    #[serde(default)]
    pub memory: MemoryInfo,
    /// The file system that holds the models.
    #[serde(default)]
    pub disk: DiskInfo,
    /// Accelerators; empty when there are none.
    #[serde(default)]
    pub gpus: Vec<GpuInfo>,
    /// Reachability of the control plane.
    #[serde(default)]
    pub net: NetInfo,
    /// Engines that are there beside the built-in one.
    #[serde(default)]
    pub engines: Vec<EnginePresent>,
    /// What the owner lets it serve.
    #[serde(default)]
    pub services: ServiceWishes,
    /// Model files that it holds already, the largest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<HeldFile>,
}

/// A model file on the machine; told by its sum, or by its name below the models directory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct HeldFile {
    /// SHA-256, lower-case hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Path below the models directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Size.
    #[serde(default)]
    pub size: Bytes,
}

/// An engine on the machine.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct EnginePresent {
    /// The catalogue's name of it, such as `espeak-ng` or `ollama`.
    #[serde(default)]
    pub name: String,
    /// Its version, where it says one.
    #[serde(default)]
    pub version: String,
    /// Models that it holds, under its own names or as service ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<String>,
}

/// Services that an owner wants or refuses: service ids, model ids or kinds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ServiceWishes {
    /// Only these; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Never these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// Least prices of the same names, in micro-credits per 10^6 units: what costs less is not asked for here.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub least_price: BTreeMap<String, MicroCredits>,
}

/// Operating system.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct OsInfo {
    /// Such as `Debian GNU/Linux`.
    #[serde(default)]
    pub name: String,
    /// Version.
    #[serde(default)]
    pub version: String,
    /// Kernel.
    #[serde(default)]
    pub kernel: String,
    /// Such as `x86_64`.
    #[serde(default)]
    pub architecture: String,
}

/// Processor.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CpuInfo {
    /// Model name.
    #[serde(default)]
    pub name: String,
    /// Physical cores.
    #[serde(default)]
    pub cores: u32,
    /// Logical processors.
    #[serde(default)]
    pub threads: u32,
}

/// System memory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MemoryInfo {
    /// All of it.
    #[serde(default)]
    pub total: Bytes,
    /// What programs can still get.
    #[serde(default)]
    pub available: Bytes,
}

/// The file system that holds the models.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct DiskInfo {
    /// Mount point.
    #[serde(default)]
    pub mount: String,
    /// Its size.
    #[serde(default)]
    pub total: Bytes,
    /// Free for this user.
    #[serde(default)]
    pub free: Bytes,
}

/// One accelerator.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct GpuInfo {
    /// Position.
    #[serde(default)]
    pub index: u32,
    /// Vendor, such as `nvidia`.
    #[serde(default)]
    pub vendor: String,
    /// Product name.
    #[serde(default)]
    pub name: String,
    /// The vendor's unique id.
    #[serde(default)]
    pub uuid: String,
    /// Driver version.
    #[serde(default)]
    pub driver: String,
    /// Compute capability, such as `9.0`.
    #[serde(default)]
    pub compute_capability: Option<String>,
    /// Its memory.
    #[serde(default)]
    pub memory_total: Bytes,
    /// Its free memory.
    #[serde(default)]
    pub memory_free: Bytes,
}

/// Reachability of the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct NetInfo {
    /// Whether the control plane answered.
    #[serde(default)]
    pub control_plane: Option<bool>,
    /// Milliseconds of the round trip.
    #[serde(default)]
    pub rtt_ms: Option<u64>,
    /// Server clock minus own clock.
    #[serde(default)]
    pub clock_offset_ms: Option<i64>,
}
