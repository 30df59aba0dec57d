//! Answers: the whole message, and the events of a stream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::MessageErrorBody;
use crate::openai::CostDetails;

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Message {
    /// `msg_…`.
    pub id: String,
    /// `message`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `assistant`.
    pub role: String,
    /// The model that was asked for.
    pub model: String,
    /// What the model said and called.
    pub content: Vec<AnswerBlock>,
    /// Why it ended; null at the beginning of a stream.
    pub stop_reason: Option<StopReason>,
    /// Always null: engines do not say which text stopped them.
    pub stop_sequence: Option<String>,
    /// Tokens.
    pub usage: MessageUsage,
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum AnswerBlock {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A call of a tool.
    ToolUse {
        /// Name of the call.
        id: String,
        /// The tool.
        name: String,
        /// Its arguments; `{"INVALID_JSON": "…"}` where the model did not write an object to its end.
        input: Map<String, Value>,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StopReason {
    /// The model ended, or a stop text came.
    EndTurn,
    /// The bound on tokens was reached.
    MaxTokens,
    /// The model calls tools.
    ToolUse,
    /// A filter cut the output.
    Refusal,
}

/// Tokens and cost of one request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct MessageUsage {
    /// Tokens of the templated prompt; 0 at the beginning of a stream.
    pub input_tokens: u64,
    /// Tokens of the visible output; 0 at the beginning of a stream.
    pub output_tokens: u64,
    /// Credits as a decimal text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<String>,
    /// What `cost` is made of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_details: Option<CostDetails>,
    /// `counted` (by the gateway) or `claimed` (by the node).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// `credits_exhausted` when the answer ended because the hold could not be extended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// One event of a stream; the name of the event is its `type`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum MessageEvent {
    /// The message, empty.
    MessageStart {
        /// The message so far.
        message: Message,
    },
    /// A block begins.
    ContentBlockStart {
        /// Position of the block.
        index: usize,
        /// The block so far.
        content_block: AnswerBlock,
    },
    /// A block goes on.
    ContentBlockDelta {
        /// Position of the block.
        index: usize,
        /// What is added.
        delta: BlockDelta,
    },
    /// A block is complete.
    ContentBlockStop {
        /// Position of the block.
        index: usize,
    },
    /// The message is settled.
    MessageDelta {
        /// How it ended.
        delta: MessageChange,
        /// What it took.
        usage: MessageUsage,
    },
    /// The end.
    MessageStop,
    /// Nothing happened for a while.
    Ping,
    /// The stream broke; nothing follows.
    Error {
        /// What went wrong.
        error: MessageErrorBody,
        /// The request it belongs to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request_id: Option<String>,
    },
}

impl MessageEvent {
    /// The name of the event.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::MessageStart { .. } => "message_start",
            Self::ContentBlockStart { .. } => "content_block_start",
            Self::ContentBlockDelta { .. } => "content_block_delta",
            Self::ContentBlockStop { .. } => "content_block_stop",
            Self::MessageDelta { .. } => "message_delta",
            Self::MessageStop => "message_stop",
            Self::Ping => "ping",
            Self::Error { .. } => "error",
        }
    }
}

/// What is added to a block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum BlockDelta {
    /// More text.
    TextDelta {
        /// The text.
        text: String,
    },
    /// More of the arguments' JSON text.
    InputJsonDelta {
        /// The text.
        partial_json: String,
    },
}

/// How a message ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MessageChange {
    /// Why.
    pub stop_reason: Option<StopReason>,
    /// Always null.
    pub stop_sequence: Option<String>,
}

/// The answer of `POST /messages/count_tokens`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TokenCount {
    /// Tokens of the templated prompt.
    pub input_tokens: u64,
}
