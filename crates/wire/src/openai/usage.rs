//! Token usage and its cost.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `stream_options` of a streamed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct StreamOptions {
    /// Send one chunk with `choices: []` and `usage` before `[DONE]`.
    #[serde(default)]
    pub include_usage: bool,
}

/// `usage: {"include": true}`, the other spelling of `stream_options.include_usage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct UsageOptions {
    /// Send usage.
    #[serde(default)]
    pub include: bool,
}

/// Tokens and cost of one request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Usage {
    /// Tokens of the templated prompt.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Tokens of the visible output.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Sum of both.
    #[serde(default)]
    pub total_tokens: u64,
    /// Parts of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptDetails>,
    /// Parts of the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionDetails>,
    /// Credits as a decimal text; set by the gateway only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// What `cost` is made of; set by the gateway only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_details: Option<CostDetails>,
    /// `counted` (by the gateway) or `claimed` (by the node).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `credits_exhausted` when the answer ended because the hold could not be extended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

impl Usage {
    /// Usage of these counts.
    #[must_use]
    pub fn new(prompt_tokens: u64, completion_tokens: u64) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            ..Self::default()
        }
    }

    /// The same with the number of prompt tokens that were found in a prefix cache.
    #[must_use]
    pub fn with_cached(mut self, cached_tokens: u64) -> Self {
        self.prompt_tokens_details = Some(PromptDetails { cached_tokens, image_tokens: None });
        self
    }
}

/// The parts of a cost: credits as exact decimal texts that add up to `cost`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CostDetails {
    /// The prompt, or what was embedded.
    pub prompt: String,
    /// The output.
    pub completion: String,
    /// Prompt and output of a model that is priced by characters, or a text that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub characters: Option<String>,
    /// Seconds of sound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<String>,
    /// Pages with content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<String>,
    /// Images, where they have a price of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images: Option<String>,
    /// What rounding up and the least charge add, or the end of the hold takes.
    pub adjustment: String,
    /// Version of the price row.
    pub price_version: i64,
}

/// Parts of the prompt tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PromptDetails {
    /// Tokens found in a prefix cache.
    #[serde(default)]
    pub cached_tokens: u64,
    /// Tokens that the images of the prompt count as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_tokens: Option<u64>,
}

/// Parts of the completion tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CompletionDetails {
    /// Tokens of visible reasoning.
    #[serde(default)]
    pub reasoning_tokens: u64,
}
