//! The `provider` object of a request: what the caller wants of the nodes (GR section 6).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `provider`. Every field narrows or orders the set of nodes that may serve.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct ProviderPreferences {
    /// Nodes to try first, in this order, by public name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Vec<String>>,
    /// No other nodes than these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only: Option<Vec<String>>,
    /// None of these nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignore: Option<Vec<String>>,
    /// Whether nodes beyond `order` may serve; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_fallbacks: Option<bool>,
    /// Only nodes that support every parameter of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_parameters: Option<bool>,
    /// `deny`: only nodes that are known to keep nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data_collection: Option<DataCollection>,
    /// Only nodes that are known to keep nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zdr: Option<bool>,
    /// Only these quantisations of the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantizations: Option<Vec<String>>,
    /// What comes first when several nodes can serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sort: Option<Sort>,
    /// Tokens per second that a node should reach; slower ones serve only if no other can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_min_throughput: Option<LatencyBound>,
    /// Seconds to the first token that a node should keep; slower ones serve only if no other can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preferred_max_latency: Option<LatencyBound>,
    /// The most a request may be priced at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_price: Option<MaxPrice>,
    /// Least evidence that a node serves what it says: `unverified`, `canary-passed` or `attested`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<String>,
    /// Only nodes in these countries.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Vec<String>>,
    /// Whether nodes of the caller's own account may serve; `never` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_nodes: Option<OwnNodes>,
}

/// Whether nodes of the caller's own account may serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OwnNodes {
    /// Never.
    Never,
    /// As good as others; they earn nothing.
    Allow,
    /// No others.
    Only,
}

/// Whether nodes that may keep data can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DataCollection {
    /// They can.
    Allow,
    /// They cannot.
    Deny,
}

/// `sort`: a word, or an object with the word in `by`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Sort {
    /// The word.
    By(SortBy),
    /// The object.
    Order(SortOrder),
}

impl Sort {
    /// What comes first.
    #[must_use]
    pub fn by(&self) -> SortBy {
        match self {
            Self::By(by) => *by,
            Self::Order(order) => order.by,
        }
    }
}

/// `sort` as an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SortOrder {
    /// What comes first.
    pub by: SortBy,
    /// `model` (each model's nodes by themselves) or `none` (the nodes of all models together).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
}

/// What comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SortBy {
    /// The cheapest.
    Price,
    /// The most tokens per second.
    Throughput,
    /// The shortest time to the first token.
    Latency,
}

/// A bound: a number (the median), or one per percentile.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum LatencyBound {
    /// Of the median.
    Median(f64),
    /// Of percentiles.
    Percentiles(Percentiles),
}

/// One bound per percentile.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Percentiles {
    /// Median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50: Option<f64>,
    /// 75th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p75: Option<f64>,
    /// 90th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p90: Option<f64>,
    /// 99th percentile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99: Option<f64>,
}

/// Upper bounds of prices, in credits per million units (numbers, or decimals as text).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MaxPrice {
    /// Per million prompt tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<serde_json::Value>,
    /// Per million output tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion: Option<serde_json::Value>,
    /// Per request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<serde_json::Value>,
    /// Per image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<serde_json::Value>,
}
