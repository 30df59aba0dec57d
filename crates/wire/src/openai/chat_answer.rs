//! Chat completions: the whole answer, and the chunks of a stream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ChatLogprobs, FunctionCall, Role, ToolCall, Usage};

/// Why an output ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended, or a stop text came.
    Stop,
    /// The bound on tokens was reached.
    Length,
    /// The model called tools.
    ToolCalls,
    /// A filter cut the output.
    ContentFilter,
    /// The model called a function, for requests in the old form (`functions`).
    FunctionCall,
}

impl FinishReason {
    /// The printed form.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
            Self::ContentFilter => "content_filter",
            Self::FunctionCall => "function_call",
        }
    }
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatResponse {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The model that was asked for.
    pub model: String,
    /// The outputs.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    #[serde(default)]
    pub usage: Option<Usage>,
    /// Always null here.
    #[serde(default)]
    pub system_fingerprint: Option<String>,
}

/// One output of a whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatChoice {
    /// Position.
    pub index: u64,
    /// The message.
    pub message: ResponseMessage,
    /// Why it ended.
    pub finish_reason: Option<FinishReason>,
    /// Probabilities of the tokens, if they were asked for.
    #[serde(default)]
    pub logprobs: Option<ChatLogprobs>,
}

/// The message of a whole answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResponseMessage {
    /// `assistant`.
    pub role: Role,
    /// The text.
    pub content: Option<String>,
    /// Always null here.
    #[serde(default)]
    pub refusal: Option<String>,
    /// Calls of tools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCall>>,
    /// The call, for requests in the old form (`functions`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall>,
}

/// One chunk of a stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChatChunk {
    /// `chatcmpl-…`, constant over a stream.
    pub id: String,
    /// `chat.completion.chunk`.
    pub object: String,
    /// Seconds since 1970, constant over a stream.
    pub created: i64,
    /// The model that was asked for.
    pub model: String,
    /// Changes; empty in the usage chunk.
    pub choices: Vec<ChunkChoice>,
    /// `Some(None)` prints `null` (other chunks of a stream with usage), `None` prints nothing.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "present")]
    #[schemars(with = "Option<Usage>")]
    pub usage: Option<Option<Usage>>,
    /// Always null here.
    #[serde(default)]
    pub system_fingerprint: Option<String>,
}

/// A field whose presence matters: absent, null or a value.
mod present {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Usage;

    #[expect(clippy::ref_option, clippy::option_option, reason = "serde's `with` fixes the signature")]
    pub fn serialize<S: Serializer>(value: &Option<Option<Usage>>, serializer: S) -> Result<S::Ok, S::Error> {
        value.as_ref().and_then(Option::as_ref).serialize(serializer)
    }

    #[expect(clippy::option_option, reason = "absent and null differ")]
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Option<Usage>>, D::Error> {
        Option::<Usage>::deserialize(deserializer).map(Some)
    }
}

/// One change of one output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ChunkChoice {
    /// Position.
    pub index: u64,
    /// What is added.
    pub delta: Delta,
    /// Set in the last chunk of the output.
    pub finish_reason: Option<FinishReason>,
    /// Probabilities of the tokens, if they were asked for.
    #[serde(default)]
    pub logprobs: Option<ChatLogprobs>,
}

/// What a chunk adds.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Delta {
    /// `assistant` in the first chunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// More text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// Parts of tool calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_calls: Option<Vec<ToolCallDelta>>,
    /// A part of the call, for requests in the old form (`functions`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionDelta>,
}

/// A part of a tool call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ToolCallDelta {
    /// Position of the call.
    pub index: u64,
    /// Name of the call, in its first part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// `function`, in its first part.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The function's part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionDelta>,
}

/// A part of a function call.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct FunctionDelta {
    /// Name, in the first part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// More of the arguments' text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<String>,
}
