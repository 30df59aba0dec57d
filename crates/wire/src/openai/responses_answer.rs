//! OpenAI's Responses: the answer, and the events of a stream.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    CompletionDetails, CostDetails, ReasoningOptions, ResponseTool, ResponseToolChoice, TextFormat,
    TextOptions, ToolMode,
};

/// An answer, whole or so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ResponseObject {
    /// `resp_…`.
    pub id: String,
    /// `response`.
    pub object: String,
    /// Seconds since 1970.
    pub created_at: i64,
    /// How far it is.
    pub status: ResponseStatus,
    /// Why it failed.
    pub error: Option<ResponseFailure>,
    /// Why it is not complete.
    pub incomplete_details: Option<IncompleteDetails>,
    /// As asked.
    pub instructions: Option<String>,
    /// As asked.
    pub max_output_tokens: Option<u64>,
    /// The model that was asked for.
    pub model: String,
    /// What the model said and called.
    pub output: Vec<OutputItem>,
    /// As asked.
    pub parallel_tool_calls: bool,
    /// Always null: answers are not kept.
    pub previous_response_id: Option<String>,
    /// As asked.
    pub reasoning: ReasoningOptions,
    /// As asked.
    pub temperature: Option<f64>,
    /// As asked.
    pub text: TextOptions,
    /// As asked.
    pub tool_choice: ResponseToolChoice,
    /// As asked.
    pub tools: Vec<ResponseTool>,
    /// As asked.
    pub top_p: Option<f64>,
    /// `disabled`: input is never shortened.
    pub truncation: String,
    /// Tokens; null until the answer is settled.
    pub usage: Option<ResponseUsage>,
    /// As asked.
    pub metadata: BTreeMap<String, String>,
}

impl ResponseObject {
    /// An answer that has not begun, with the values that hold when nothing was asked for.
    #[must_use]
    pub fn begun(id: String, created_at: i64, model: String) -> Self {
        Self {
            id,
            object: "response".to_owned(),
            created_at,
            status: ResponseStatus::InProgress,
            error: None,
            incomplete_details: None,
            instructions: None,
            max_output_tokens: None,
            model,
            output: Vec::new(),
            parallel_tool_calls: true,
            previous_response_id: None,
            reasoning: ReasoningOptions::default(),
            temperature: None,
            text: TextOptions { format: Some(TextFormat::Text) },
            tool_choice: ResponseToolChoice::Mode(ToolMode::Auto),
            tools: Vec::new(),
            top_p: None,
            truncation: "disabled".to_owned(),
            usage: None,
            metadata: BTreeMap::new(),
        }
    }
}

/// How far an answer or an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ResponseStatus {
    /// It goes on.
    InProgress,
    /// It is whole.
    Completed,
    /// It was cut.
    Incomplete,
    /// It broke; nobody pays.
    Failed,
}

/// Why an answer failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResponseFailure {
    /// `server_error`, of the few words that OpenAI has here.
    pub code: String,
    /// One sentence for a person.
    pub message: String,
    /// The stable machine code of this network.
    #[serde(rename = "type")]
    pub kind: String,
}

/// Why an answer is not complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IncompleteDetails {
    /// `max_output_tokens` or `content_filter`.
    pub reason: String,
}

/// An item of the output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputItem {
    /// What the model said.
    Message {
        /// `msg_…`.
        id: String,
        /// How far it is.
        status: ResponseStatus,
        /// `assistant`.
        role: String,
        /// One text.
        content: Vec<OutputPart>,
    },
    /// A call.
    FunctionCall {
        /// `fc_…`.
        id: String,
        /// How far it is.
        status: ResponseStatus,
        /// Name of the call; its answer repeats it.
        call_id: String,
        /// The function.
        name: String,
        /// Its arguments as JSON text.
        arguments: String,
    },
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum OutputPart {
    /// Text.
    OutputText {
        /// The text.
        text: String,
        /// Always empty.
        annotations: Vec<String>,
        /// Always empty.
        logprobs: Vec<String>,
    },
}

impl OutputPart {
    /// A text.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::OutputText { text: text.into(), annotations: Vec::new(), logprobs: Vec::new() }
    }
}

/// Tokens and cost of one request.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct ResponseUsage {
    /// Tokens of the templated prompt.
    pub input_tokens: u64,
    /// Parts of the prompt.
    pub input_tokens_details: InputDetails,
    /// Tokens of the visible output.
    pub output_tokens: u64,
    /// Parts of the output.
    pub output_tokens_details: CompletionDetails,
    /// Sum of both.
    pub total_tokens: u64,
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

/// Parts of the prompt tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct InputDetails {
    /// Tokens found in a prefix cache.
    pub cached_tokens: u64,
    /// Always 0: nothing is charged for keeping a prefix.
    pub cache_write_tokens: u64,
}

/// One event of a stream; the name of the event is its `type`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type")]
pub enum ResponseEvent {
    /// The answer, empty.
    #[serde(rename = "response.created")]
    Created {
        /// Position of the event.
        sequence_number: u64,
        /// The answer so far.
        response: Box<ResponseObject>,
    },
    /// Work began.
    #[serde(rename = "response.in_progress")]
    InProgress {
        /// Position of the event.
        sequence_number: u64,
        /// The answer so far.
        response: Box<ResponseObject>,
    },
    /// An item begins.
    #[serde(rename = "response.output_item.added")]
    ItemAdded {
        /// Position of the event.
        sequence_number: u64,
        /// Position of the item.
        output_index: usize,
        /// The item so far.
        item: OutputItem,
    },
    /// A part of a message begins.
    #[serde(rename = "response.content_part.added")]
    PartAdded {
        /// Position of the event.
        sequence_number: u64,
        /// Which item.
        item_id: String,
        /// Position of the item.
        output_index: usize,
        /// Position of the part.
        content_index: usize,
        /// The part so far.
        part: OutputPart,
    },
    /// More text.
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        /// Position of the event.
        sequence_number: u64,
        /// Which item.
        item_id: String,
        /// Position of the item.
        output_index: usize,
        /// Position of the part.
        content_index: usize,
        /// The text.
        delta: String,
        /// Always empty.
        logprobs: Vec<String>,
    },
    /// A text is complete.
    #[serde(rename = "response.output_text.done")]
    TextDone {
        /// Position of the event.
        sequence_number: u64,
        /// Which item.
        item_id: String,
        /// Position of the item.
        output_index: usize,
        /// Position of the part.
        content_index: usize,
        /// The whole text.
        text: String,
        /// Always empty.
        logprobs: Vec<String>,
    },
    /// A part is complete.
    #[serde(rename = "response.content_part.done")]
    PartDone {
        /// Position of the event.
        sequence_number: u64,
        /// Which item.
        item_id: String,
        /// Position of the item.
        output_index: usize,
        /// Position of the part.
        content_index: usize,
        /// The whole part.
        part: OutputPart,
    },
    /// More of the arguments of a call.
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta {
        /// Position of the event.
        sequence_number: u64,
        /// Which item.
        item_id: String,
        /// Position of the item.
        output_index: usize,
        /// The text.
        delta: String,
    },
    /// The arguments of a call are complete.
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone {
        /// Position of the event.
        sequence_number: u64,
        /// Which item.
        item_id: String,
        /// Position of the item.
        output_index: usize,
        /// The whole text.
        arguments: String,
    },
    /// An item is complete.
    #[serde(rename = "response.output_item.done")]
    ItemDone {
        /// Position of the event.
        sequence_number: u64,
        /// Position of the item.
        output_index: usize,
        /// The whole item.
        item: OutputItem,
    },
    /// The end: the answer is whole and settled.
    #[serde(rename = "response.completed")]
    Completed {
        /// Position of the event.
        sequence_number: u64,
        /// The answer.
        response: Box<ResponseObject>,
    },
    /// The end: the answer was cut and is settled.
    #[serde(rename = "response.incomplete")]
    Incomplete {
        /// Position of the event.
        sequence_number: u64,
        /// The answer.
        response: Box<ResponseObject>,
    },
    /// The end: the answer broke, and nobody pays.
    #[serde(rename = "response.failed")]
    Failed {
        /// Position of the event.
        sequence_number: u64,
        /// The answer so far.
        response: Box<ResponseObject>,
    },
}

impl ResponseEvent {
    /// The name of the event.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::PartDone { .. } => "response.content_part.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
        }
    }
}
