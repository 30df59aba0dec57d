//! Ordering documents by how well they answer a query, in the shape that Cohere, Jina and their clients share.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ProviderPreferences, Usage};

/// `POST /rerank`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct RerankRequest {
    /// Model id or alias.
    pub model: String,
    /// What is looked for.
    pub query: String,
    /// Where it is looked for.
    pub documents: Vec<RerankDocument>,
    /// How many to give; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_n: Option<u64>,
    /// Whether the texts are given, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub return_documents: Option<bool>,
    /// What the caller wants of the nodes; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub provider: Option<ProviderPreferences>,
}

/// A document: its text, or an object with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum RerankDocument {
    /// The text.
    Text(String),
    /// An object with the text.
    Object {
        /// The text.
        text: String,
    },
}

impl RerankDocument {
    /// The text.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Object { text } => text,
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerankResponse {
    /// Id of the request.
    pub id: String,
    /// The model that was asked for.
    pub model: String,
    /// The best first.
    pub results: Vec<RerankResult>,
    /// Tokens.
    pub usage: Usage,
}

/// One document's place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RerankResult {
    /// Position in the request.
    pub index: u64,
    /// How well it fits, from 0 to 1.
    pub relevance_score: f64,
    /// The document, where it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document: Option<RerankText>,
}

/// A document of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RerankText {
    /// Its text.
    pub text: String,
}
