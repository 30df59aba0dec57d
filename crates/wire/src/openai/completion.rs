//! Legacy completions: request and answer (a stream chunk has the answer's shape).

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{FinishReason, ProviderPreferences, Stop, StreamOptions, Unknown, Usage, UsageOptions};

/// `prompt`: one text or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PromptInput {
    /// One prompt.
    One(String),
    /// Several prompts, answered as choices in order.
    Many(Vec<String>),
}

impl PromptInput {
    /// The prompts in order.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}

/// `POST /completions`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CompletionRequest {
    /// Model id or alias.
    pub model: String,
    /// The text to continue.
    pub prompt: PromptInput,
    /// Answer as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Options of the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// Upper bound of output tokens; 16 when absent, as OpenAI has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// 0 (greedy) to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    /// Nucleus, over 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    /// Only the k likeliest tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<u64>,
    /// Seed of the sampler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Where to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Number of choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// The caller's own name of its user; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub user: Option<String>,
    /// Other spelling of `stream_options.include_usage`.
    #[serde(default, skip_serializing)]
    pub usage: Option<UsageOptions>,
    /// What the caller wants of the nodes; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub provider: Option<ProviderPreferences>,
    /// Fields outside the schema.
    #[serde(flatten, skip_serializing)]
    pub unknown: Unknown,
}

impl CompletionRequest {
    /// Output tokens when none are asked for (OpenAI's default).
    pub const DEFAULT_MAX_TOKENS: u64 = 16;

    /// Whether the answer is streamed.
    #[must_use]
    pub fn streamed(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    /// Whether a usage chunk was asked for.
    #[must_use]
    pub fn wants_usage(&self) -> bool {
        self.stream_options.is_some_and(|options| options.include_usage)
            || self.usage.is_some_and(|options| options.include)
    }
}

/// A whole answer, or one chunk of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionResponse {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The model that was asked for.
    pub model: String,
    /// The outputs; empty in the usage chunk.
    pub choices: Vec<CompletionChoice>,
    /// Tokens; absent in chunks without usage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
    /// Always null here.
    #[serde(default)]
    pub system_fingerprint: Option<String>,
}

/// One output, or a change of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CompletionChoice {
    /// Position.
    pub index: u64,
    /// The text, or more of it.
    pub text: String,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// Always null here.
    #[serde(default)]
    pub logprobs: Option<Value>,
}
