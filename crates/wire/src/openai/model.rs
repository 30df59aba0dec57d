//! The model list.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `GET /models`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelList {
    /// `list`.
    pub object: String,
    /// The models.
    pub data: Vec<ModelObject>,
}

/// One model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelObject {
    /// Model id; opaque.
    pub id: String,
    /// `model`.
    pub object: String,
    /// Seconds since 1970.
    pub created: i64,
    /// Who made it.
    pub owned_by: String,
    /// Name for people.
    pub name: String,
    /// One paragraph.
    pub description: String,
    /// Other names that are accepted.
    pub aliases: Vec<String>,
    /// `llm`, `embeddings`, …
    pub kind: crate::ServiceKind,
    /// Tokens of prompt and output together.
    pub context_length: Option<u64>,
    /// Most output tokens.
    pub max_completion_tokens: Option<u64>,
    /// Length of vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u64>,
    /// Inputs, outputs, tokenizer.
    pub architecture: Architecture,
    /// Credits per unit, exact decimal texts.
    pub pricing: Pricing,
    /// Micro-credits per 10^6 units, the exact source of `pricing`.
    pub pricing_micro: PricingMicro,
    /// Whether nodes serve it now.
    pub availability: Availability,
    /// Quantisations of what the nodes serve that get work now.
    pub quantizations: Vec<String>,
    /// What was measured.
    pub stats: ModelStats,
    /// Request fields that have an effect.
    pub supported_parameters: Vec<String>,
    /// SHA-256 of the model file, where the catalogue knows it.
    pub digest: Option<String>,
}

/// What goes in and out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Architecture {
    /// Such as `text->text`.
    pub modality: String,
    /// Kinds of input.
    pub input_modalities: Vec<String>,
    /// Kinds of output.
    pub output_modalities: Vec<String>,
    /// SHA-256 of the tokenizer's source, where known.
    pub tokenizer: Option<String>,
}

/// Credits per single unit as decimal texts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pricing {
    /// Per prompt token.
    pub prompt: String,
    /// Per output token.
    pub completion: String,
    /// Per embedded token.
    pub embedding: String,
    /// Per character.
    pub character: String,
    /// Per second of sound.
    pub second: String,
    /// Per picture.
    pub image: String,
    /// Per page with content.
    pub url: String,
}

/// Micro-credits per 10^6 units.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PricingMicro {
    /// Per 10^6 prompt tokens.
    pub prompt: i64,
    /// Per 10^6 output tokens.
    pub completion: i64,
    /// Per 10^6 embedded tokens.
    pub embedding: i64,
    /// Per 10^6 characters.
    pub character: i64,
    /// Per 10^6 seconds of sound.
    pub second: i64,
    /// Per 10^6 pictures.
    pub image: i64,
    /// Per 10^6 pages with content.
    pub url: i64,
    /// Least charge of a request.
    pub minimum: i64,
    /// The provider's share in basis points.
    pub share_bp: i64,
    /// Version of the price row.
    pub version: i64,
}

/// Nodes that serve a model now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Availability {
    /// `ready`, `loading` or `none`.
    pub status: String,
    /// Number of routable nodes.
    pub nodes: u64,
    /// Their countries.
    pub regions: Vec<String>,
}

/// What this gateway measured of the last requests for a model; null where nothing was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ModelStats {
    /// Milliseconds to the first token that half of them kept.
    pub ttft_ms_p50: Option<f64>,
    /// The same of 95 in 100.
    pub ttft_ms_p95: Option<f64>,
    /// Tokens per second that half of them had at most.
    pub tokens_per_s_p50: Option<f64>,
    /// Share of the last 30 minutes in which some node got work, 0 to 1.
    pub uptime_30m: Option<f64>,
}
