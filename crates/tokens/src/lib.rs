//! Prompts and token counts: one code for gateway and engine, so that the same request is the same prompt and the
//! same number of tokens on both sides.
//!
//! [`gguf`] reads header, vocabulary and template of a model file within fixed bounds, [`tokenizer`] makes a
//! tokenizer of them, [`template`] writes a conversation down as the model was trained to read it, and
//! [`TokenCounter`] puts the three together.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod count;
pub mod gguf;
mod guard;
mod quick;
pub mod template;
pub mod tokenizer;
mod vocabulary;

pub use count::{CountError, TokenCounter};
pub use template::{ChatTemplate, TemplateError};
pub use tokenizer::{TextTokenizer, TokenizerError};
