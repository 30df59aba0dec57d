//! The `provider` object of a request: what the caller wants of the nodes.

use serde::{Deserialize, Serialize};

use super::Unknown;

/// `provider`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ProviderPreferences {
    /// Whether nodes of the caller's own account may serve; `never` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_nodes: Option<OwnNodes>,
    /// Fields outside the schema.
    #[serde(flatten, skip_serializing)]
    pub unknown: Unknown,
}

/// Whether nodes of the caller's own account may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OwnNodes {
    /// Never.
    Never,
    /// As good as others; they earn nothing.
    Allow,
    /// No others.
    Only,
}
