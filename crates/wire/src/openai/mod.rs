//! The OpenAI shapes as this network speaks them. Requests are closed: [`fields`] names what
//! belongs to them, and the rest is never passed on (GR2). Answers are always built from these types, never copied
//! from a provider (GR15).

mod audio;
mod chat;
mod chat_answer;
mod completion;
mod embedding;
mod error;
pub mod fields;
mod image;
mod logprobs;
mod message;
mod model;
mod provider;
mod rerank;
mod responses;
mod responses_answer;
mod tool;
mod tool_choice;
mod usage;

pub use audio::{
    AudioFormat, DurationUsage, Heard, HeardSegment, Segment, SpeechEvent, SpeechRequest, SpeechUsage,
    StreamFormat, TranscriptFormat, Transcription, TtsRequest, VerboseTranscription, Voice, Word,
};
pub use chat::{ChatRequest, JsonSchemaFormat, ResponseFormat};
pub use chat_answer::{
    ChatChoice, ChatChunk, ChatResponse, ChunkChoice, Delta, FinishReason, FunctionDelta, ResponseMessage,
    ToolCallDelta,
};
pub use completion::{CompletionChoice, CompletionRequest, CompletionResponse, PromptInput};
pub use embedding::{
    EmbeddingInput, EmbeddingItem, EmbeddingList, EmbeddingRequest, EmbeddingValue, EncodingFormat,
};
pub use error::{ErrorBody, ErrorEnvelope};
pub use image::{
    DrawRequest, Drawn, ImageDatum, ImageList, ImageRequest, ImageResponse, PictureFormat, SeedImageRequest,
    commands_engine, read_size,
};
pub use logprobs::{ChatLogprobs, CompletionLogprobs, LogitBias, TokenLogprob, TopLogprob};
pub use message::{ChatMessage, Content, ContentPart, ImageUrl, InputAudio, Role};
pub use model::{Architecture, Availability, ModelList, ModelObject, ModelStats, Pricing, PricingMicro};
pub use provider::{
    DataCollection, LatencyBound, MaxPrice, OwnNodes, Percentiles, ProviderPreferences, Sort, SortBy,
    SortOrder,
};
pub use rerank::{RerankDocument, RerankRequest, RerankResponse, RerankResult, RerankText};
pub use responses::{
    ItemContent, ItemPart, ReasoningOptions, ResponseInput, ResponseItem, ResponseNamedTool, ResponseTool,
    ResponseToolChoice, ResponsesRequest, TextFormat, TextOptions,
};
pub use responses_answer::{
    IncompleteDetails, InputDetails, OutputItem, OutputPart, ResponseEvent, ResponseFailure, ResponseObject,
    ResponseStatus, ResponseUsage,
};
pub use tool::{FunctionCall, FunctionSpec, Tool, ToolCall};
pub use tool_choice::{FunctionChoice, NamedFunction, NamedTool, ToolChoice, ToolMode};
pub use usage::{CompletionDetails, CostDetails, PromptDetails, StreamOptions, Usage, UsageOptions};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `stop`: one text or several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Stop {
    /// One stop text.
    One(String),
    /// Up to four stop texts.
    Many(Vec<String>),
}

impl Stop {
    /// The stop texts in order.
    #[must_use]
    pub fn texts(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        }
    }
}
