//! The shapes of Anthropic's Messages API, version 2023-06-01, as far as this network speaks them. A request is closed
//! ([`crate::openai::fields`]) and becomes a chat; an answer is a chat's answer in other words.

mod answer;
mod error;
mod request;

pub use answer::{
    AnswerBlock, BlockDelta, Message, MessageChange, MessageEvent, MessageUsage, StopReason, TokenCount,
};
pub use error::{MessageError, MessageErrorBody};
pub use request::{
    AnthropicTool, AnthropicToolChoice, BlockContent, CountRequest, ImageSource, InputBlock, InputMessage,
    MessageMetadata, MessageRole, MessagesRequest, ResultBlock, ResultContent, Thinking,
};

/// The version of the API that is spoken, as the header `anthropic-version` names it.
pub const VERSION: &str = "2023-06-01";
