//! Heartbeats: observed state and load.

use serde::{Deserialize, Serialize};

use crate::{Bytes, Code, Epoch, Generation, ServiceId};

/// One heartbeat; complete by itself, so a lost one is repaired by the next.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts up within a tunnel.
    pub seq: u64,
    /// Counts up with every start of the program (NR10).
    pub boot: u64,
    /// Epoch of the tunnel.
    pub epoch: Epoch,
    /// The generation whose services `services` describes.
    pub observed_generation: Generation,
    /// State of each service.
    pub services: Vec<ObservedService>,
    /// Requests being worked on.
    pub in_flight: u32,
    /// Requests waiting for a slot.
    pub queued: u32,
    /// Load of the accelerators.
    #[serde(default)]
    pub gpus: Vec<GpuLoad>,
    /// Free bytes on the models' file system.
    #[serde(default)]
    pub disk_free: Bytes,
    /// What the owner lets the node do.
    #[serde(default)]
    pub owner: OwnerState,
    /// Version of the provider program.
    #[serde(default)]
    pub version: String,
}

/// State of one service on a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedService {
    /// Which service.
    pub service_id: ServiceId,
    /// How far it is.
    pub state: ServiceState,
    /// Requests it can take at a time.
    #[serde(default)]
    pub slots: u32,
    /// Requests it works on.
    #[serde(default)]
    pub in_flight: u32,
    /// Engine that serves it, such as `builtin`.
    #[serde(default)]
    pub engine: String,
    /// Process id of the engine, where the node started it.
    #[serde(default)]
    pub pid: Option<u32>,
    /// SHA-256 of the model file that is served.
    #[serde(default)]
    pub digest: Option<String>,
    /// Why it is not ready.
    #[serde(default)]
    pub code: Option<Code>,
    /// One sentence for the owner.
    #[serde(default)]
    pub detail: Option<String>,
    /// How far the fetching or checking of its files is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<Progress>,
}

/// How far the files of a service are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes that are here, of all files.
    pub bytes: Bytes,
    /// Bytes of all files.
    pub total: Bytes,
    /// Where they come from now: `local`, or the host that is asked.
    #[serde(default)]
    pub source: String,
    /// Bytes per second of late; 0 while nobody can tell.
    #[serde(default)]
    pub rate: u64,
}

impl Progress {
    /// Seconds until the rest is here at this rate; `None` where that cannot be told.
    #[must_use]
    pub const fn seconds_left(&self) -> Option<u64> {
        self.total.0.saturating_sub(self.bytes.0).checked_div(self.rate)
    }
}

/// How far a service is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceState {
    /// Not there.
    Absent,
    /// Waiting for its turn.
    Queued,
    /// Files are being fetched.
    Downloading,
    /// Files are being checked.
    Verifying,
    /// The engine starts.
    Loading,
    /// It takes work.
    Ready,
    /// It fails too often and waits for another plan.
    Degraded,
    /// It is being stopped.
    Stopping,
    /// It cannot run; `code` says why.
    Failed,
}

/// Load of one accelerator.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GpuLoad {
    /// Position.
    pub index: u32,
    /// Free memory.
    pub memory_free: Bytes,
    /// Percent busy.
    pub utilisation: u32,
    /// Degrees Celsius.
    pub temperature: u32,
}

/// What the owner lets the node do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OwnerState {
    /// Work is welcome.
    #[default]
    Available,
    /// The owner paused it.
    Paused,
    /// It is leaving.
    Draining,
}
