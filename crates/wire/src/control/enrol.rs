//! Enrolment: `PUT /api/v1/provisions/{provision_id}`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Diagnostics;
use crate::{Epoch, ProvisionId, Timestamp, UserId};

/// Body of an enrolment; the request is signed by the key it brings.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
pub struct EnrolRequest {
    /// Ed25519 public key, base64.
    pub public_key: String,
    /// Single-use owner grant; not needed when this key is enrolled already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// Name of this run, for logs.
    #[serde(default)]
    pub run_id: String,
    /// Name of the device for people.
    #[serde(default)]
    pub name: String,
    /// Where it stands.
    #[serde(default)]
    pub location: Location,
    /// What it is made of.
    #[serde(default)]
    pub diagnostics: Diagnostics,
    /// What it runs.
    #[serde(default)]
    pub software: Software,
    /// A provision made by the first seed's routes that this key takes over (its UUID).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alias: Option<String>,
}

/// Where a device stands; only the country is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Location {
    /// Country.
    #[serde(default)]
    pub country: String,
    /// State or province.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// City.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub city: Option<String>,
}

/// Program version and platform.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Software {
    /// Version of the provider program.
    #[serde(default)]
    pub version: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Architecture.
    #[serde(default)]
    pub arch: String,
}

/// The answer, the same for a new and a repeated enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EnrolAnswer {
    /// The provision.
    pub provision_id: ProvisionId,
    /// Its owner.
    pub owner: UserId,
    /// `enrolled`, `suspended`, …
    pub state: String,
    /// The server's clock.
    pub server_time: Timestamp,
    /// Number of tunnels opened so far.
    pub epoch: Epoch,
    /// Name of the control plane.
    pub control_plane: String,
}
