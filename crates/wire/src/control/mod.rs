//! Messages between gateway and node. Versioned by addition: unknown fields are ignored, new fields have defaults.

mod container;
mod desired;
mod diagnostics;
mod enrol;
mod heartbeat;
mod seal;
mod seed_routes;

pub use container::{ContainerFault, ContainerImage, PLACEHOLDERS, ReadyCheck};
pub use desired::{Desired, DesiredFile, DesiredService, GpuShare, HubModel, Policy};
pub use diagnostics::{
    CpuInfo, Diagnostics, DiskInfo, EnginePresent, GpuInfo, HeldFile, MemoryInfo, NetInfo, OsInfo,
    ServiceWishes,
};
pub use enrol::{EnrolAnswer, EnrolRequest, Location, Software};
pub use heartbeat::{GpuLoad, Heartbeat, ObservedService, OwnerState, Progress, ServiceState, readable};
pub use seal::{Seal, SealedFile, sealed_text};
pub use seed_routes::{
    SeedCallback, SeedDelete, SeedDone, SeedEnd, SeedError, SeedNew, SeedNewAnswer, SeedServices, SeedStart,
};

use serde::{Deserialize, Serialize};

use crate::{Code, ServiceId, Timestamp};

/// Version of the protocol of the control stream and the work streams.
pub const PROTOCOL_VERSION: u32 = 1;

/// Gateway to node, one JSON object per line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToNode {
    /// What the node should run.
    Desired(Desired),
    /// What the server knows of the node; answers each heartbeat.
    Status(NodeStatus),
    /// The tunnel ends for this reason; the node acts on the code.
    Closing {
        /// Such as `epoch_stale`, `node_revoked`, `draining`.
        code: Code,
        /// One sentence for the owner.
        message: String,
    },
}

/// Node to gateway, one JSON object per line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromNode {
    /// Load, state and observed services, every 5 s and at once after a change.
    Heartbeat(Heartbeat),
    /// No new work, please; running work finishes.
    Draining {
        /// Why, for people.
        reason: String,
    },
}

/// The server's view of a node; the node shows this, never its own opinion (NR11).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Number of the heartbeat this answers.
    pub seq: u64,
    /// The server's clock.
    pub server_time: Timestamp,
    /// `online`, `draining`, `suspended`, …
    pub state: String,
    /// Services that get paid work now.
    pub routable: Vec<ServiceId>,
    /// The one reason for not earning, absent while earning is possible.
    #[serde(default)]
    pub reason: Option<String>,
}
