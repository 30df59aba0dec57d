//! The five routes of the first seed (`/api/v1/providers/…`): thin adapters over enrolment, desired and observed
//! state. Field names are the seed's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `POST /providers/new`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeedNew {
    /// Account id.
    pub provider_id: String,
    /// Provider key.
    pub provider_ak: String,
    /// Id made by the client (a UUID), kept as an alias.
    pub provision_id: String,
    /// Hardware.
    pub device_diagnostics: Value,
    /// `{country, state, city}`.
    pub location: Value,
    /// Name of the person.
    #[serde(default)]
    pub username: Option<String>,
    /// Name of the device.
    #[serde(default)]
    pub device_name: Option<String>,
    /// A single-use enrolment grant; may be absent.
    #[serde(default)]
    pub registration_secret: Option<String>,
}

/// Answer of `new`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeedNewAnswer {
    /// Always true.
    pub success: bool,
    /// The `provisionId` that was sent.
    pub device_id: String,
}

/// `POST /providers/start`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeedStart {
    /// Alias or provision id.
    pub provision_id: String,
    /// Provider key.
    pub provider_ak: String,
    /// Hardware, measured afresh.
    pub available_resources: Value,
}

/// Answer of `start`: the assignment as service ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedServices {
    /// Such as `llm:cxm-tiny`.
    pub services: Vec<String>,
}

/// `POST /providers/start/callback`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeedCallback {
    /// Alias or provision id.
    pub provision_id: String,
    /// Provider key.
    pub provider_ak: String,
    /// What runs now.
    pub started_services: Vec<String>,
    /// A label; never dialled.
    pub provided_url: String,
}

/// `POST /providers/end`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeedEnd {
    /// Alias or provision id.
    pub provision_id: String,
    /// Provider key.
    pub provider_ak: String,
    /// Which services end; all when absent.
    #[serde(default)]
    pub services: Option<Vec<String>>,
}

/// `POST` or `DELETE /providers/delete`.
#[derive(Clone, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SeedDelete {
    /// Alias or provision id.
    pub provision_id: String,
    /// Provider key.
    pub provider_ak: String,
}

/// Answer of `callback`, `end` and `delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedDone {
    /// Always true.
    pub success: bool,
    /// One sentence.
    pub message: String,
}

/// An error of the seed's routes: the text under `error`, with our code and the way out beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SeedError {
    /// One sentence.
    pub error: String,
    /// Machine code.
    pub code: String,
    /// What to do, such as `enrol`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
}
