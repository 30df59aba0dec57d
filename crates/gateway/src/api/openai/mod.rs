//! OpenAI's routes.

pub mod chat;
pub mod completion;
mod conversation;
pub mod embedding;
pub mod image;
pub mod model;
mod old_form;
pub(super) mod parse;
mod place;
pub mod rerank;
pub mod responses;
mod responses_answer;
mod responses_request;
pub mod speech;
mod support;
pub mod transcription;
pub(super) mod validate;
