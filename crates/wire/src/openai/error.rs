//! The error envelope.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `{"error": {...}, "request_id": ...}`: the body of every refusal, and the payload of an error event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorEnvelope {
    /// What went wrong.
    pub error: ErrorBody,
    /// The request it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

/// One error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    /// One sentence for a person; never internals.
    pub message: String,
    /// OpenAI's class of error, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The field at fault.
    #[serde(default)]
    pub param: Option<String>,
    /// The stable machine code.
    #[serde(default)]
    pub code: Option<String>,
    /// Further documented fields, such as `required` and `available`.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}
