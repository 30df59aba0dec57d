//! Chat completions: the request. Its answer is in `chat_answer.rs`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ChatMessage, FunctionChoice, FunctionSpec, LogitBias, ProviderPreferences, Stop, StreamOptions, Tool,
    ToolChoice, UsageOptions,
};

/// Shape of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ResponseFormat {
    /// Free text.
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON by schema.
    JsonSchema {
        /// Name, schema and strictness.
        json_schema: JsonSchemaFormat,
    },
}

/// `response_format.json_schema`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct JsonSchemaFormat {
    /// Name of the shape: letters, digits, `_` and `-`, up to 64.
    pub name: String,
    /// What the shape is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The JSON schema; any JSON when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Whether the output must follow the schema exactly; it always does here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict: Option<bool>,
}

/// `POST /chat/completions`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct ChatRequest {
    /// Model id or alias.
    pub model: String,
    /// Models to try in order when no node of `model` can serve; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub models: Option<Vec<String>>,
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// Answer as server-sent events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<bool>,
    /// Options of the stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_options: Option<StreamOptions>,
    /// Upper bound of output tokens (old name).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u64>,
    /// Upper bound of output tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_completion_tokens: Option<u64>,
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
    /// Send the probability of each token of the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logprobs: Option<bool>,
    /// How many of the likeliest tokens to list at each place; 0 to 20, needs `logprobs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<u64>,
    /// Seed of the sampler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<i64>,
    /// Where to stop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Number of choices.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// Declared tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Vec<Tool>>,
    /// Which tool to use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_choice: Option<ToolChoice>,
    /// Whether one answer may hold several calls; true when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel_tool_calls: Option<bool>,
    /// Old form of `tools`; the gateway turns it into the new one.
    #[serde(default, skip_serializing)]
    pub functions: Option<Vec<FunctionSpec>>,
    /// Old form of `tool_choice`; the gateway turns it into the new one.
    #[serde(default, skip_serializing)]
    pub function_call: Option<FunctionChoice>,
    /// Shape of the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_format: Option<ResponseFormat>,
    /// How long a reasoning model should think, as its template has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reasoning_effort: Option<String>,
    /// Labels of the caller; stay in the gateway.
    #[serde(default, skip_serializing)]
    pub metadata: Option<std::collections::BTreeMap<String, String>>,
    /// Accepted without effect: nothing is stored.
    #[serde(default, skip_serializing)]
    pub store: Option<bool>,
    /// Accepted without effect.
    #[serde(default, skip_serializing)]
    pub service_tier: Option<String>,
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

impl ChatRequest {
    /// The bound on output tokens that was asked for, whichever name was used (they must agree; the smaller counts).
    #[must_use]
    pub fn output_limit(&self) -> Option<u64> {
        match (self.max_completion_tokens, self.max_tokens) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

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
