//! Embeddings: request and answer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ProviderPreferences, Usage};

/// `input`: one text or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EmbeddingInput {
    /// One text.
    One(String),
    /// Several texts.
    Many(Vec<String>),
}

impl EmbeddingInput {
    /// The texts in order.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

/// How a vector is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum EncodingFormat {
    /// A list of numbers.
    #[default]
    Float,
    /// Base64 of little-endian 32-bit floats.
    Base64,
}

/// `POST /embeddings`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingRequest {
    /// Model id or alias.
    pub model: String,
    /// What to embed.
    pub input: EmbeddingInput,
    /// How vectors are printed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoding_format: Option<EncodingFormat>,
    /// Wanted length of the vectors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dimensions: Option<u64>,
    /// Cut texts that are too long (true) or refuse them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncate: Option<bool>,
    /// Accepted for the seed's clients, without effect.
    #[serde(default, skip_serializing)]
    pub keep_alive: Option<serde_json::Value>,
    /// The caller's own name of its user; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub user: Option<String>,
    /// What the caller wants of the nodes; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub provider: Option<ProviderPreferences>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingList {
    /// `list`.
    pub object: String,
    /// One item per text.
    pub data: Vec<EmbeddingItem>,
    /// The model that was asked for.
    pub model: String,
    /// Tokens.
    pub usage: Usage,
}

/// One vector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct EmbeddingItem {
    /// `embedding`.
    pub object: String,
    /// Position of the text.
    pub index: u64,
    /// The vector.
    pub embedding: EmbeddingValue,
}

/// A vector in either print.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum EmbeddingValue {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64 of little-endian 32-bit floats.
    Base64(String),
}
