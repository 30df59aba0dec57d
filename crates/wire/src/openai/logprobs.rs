//! Probabilities of tokens and biases on them.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `logit_bias`: token id (as text) → -100 to 100, added to the token's score before sampling.
pub type LogitBias = BTreeMap<String, f64>;

/// Probabilities of the tokens of a chat output, or of the part of it that a chunk adds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ChatLogprobs {
    /// The tokens of the content.
    pub content: Option<Vec<TokenLogprob>>,
    /// Always null here.
    #[serde(default)]
    pub refusal: Option<Vec<TokenLogprob>>,
}

/// A token that was chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TokenLogprob {
    /// Its text; bytes that are no UTF-8 are replaced.
    pub token: String,
    /// Natural logarithm of its probability; -9999 for "practically none".
    pub logprob: f64,
    /// Its bytes.
    #[serde(default)]
    pub bytes: Option<Vec<u8>>,
    /// The likeliest tokens at this place, likeliest first.
    #[serde(default)]
    pub top_logprobs: Vec<TopLogprob>,
}

/// A token that could have been chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TopLogprob {
    /// Its text; bytes that are no UTF-8 are replaced.
    pub token: String,
    /// Natural logarithm of its probability.
    pub logprob: f64,
    /// Its bytes.
    #[serde(default)]
    pub bytes: Option<Vec<u8>>,
}

/// Probabilities of the tokens of a legacy completion; four lists of equal length.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct CompletionLogprobs {
    /// The tokens.
    pub tokens: Vec<String>,
    /// Natural logarithms of their probabilities.
    pub token_logprobs: Vec<Option<f64>>,
    /// The likeliest tokens at each place.
    pub top_logprobs: Option<Vec<Option<BTreeMap<String, f64>>>>,
    /// Where each token begins in the text, in characters.
    pub text_offset: Vec<u64>,
}
