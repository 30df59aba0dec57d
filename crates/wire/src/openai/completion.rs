//! Legacy completions: request and answer (a stream chunk has the answer's shape).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    CompletionLogprobs, FinishReason, LogitBias, ProviderPreferences, Stop, StreamOptions, Usage,
    UsageOptions,
};

/// `prompt`: one text or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct CompletionRequest {
    /// Model id or alias.
    pub model: String,
    /// Models to try in order when no node of `model` can serve; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub models: Option<Vec<String>>,
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
    /// Only tokens at least this likely, relative to the likeliest one; 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_p: Option<f64>,
    /// Lowers the score of a token by its number of occurrences in the output; -2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frequency_penalty: Option<f64>,
    /// Lowers the score of a token that occurs in the output; -2 to 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub presence_penalty: Option<f64>,
    /// Divides the score of a token that occurs in prompt or output; over 0 to 2, 1 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
    /// Added to the scores of tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_bias: Option<LogitBias>,
    /// How many of the likeliest tokens to list at each place; 0 to 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<u64>,
    /// Repeat the prompt before the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<bool>,
    /// Make this many and send the best `n`; only equal to `n` here.
    #[serde(default, skip_serializing)]
    pub best_of: Option<u64>,
    /// Text after the output; no model here fills in the middle.
    #[serde(default, skip_serializing)]
    pub suffix: Option<String>,
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CompletionChoice {
    /// Position.
    pub index: u64,
    /// The text, or more of it.
    pub text: String,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// Probabilities of the tokens, if they were asked for.
    #[serde(default)]
    pub logprobs: Option<CompletionLogprobs>,
}
