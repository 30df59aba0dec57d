//! OpenAI's routes.

pub mod chat;
pub mod completion;
mod conversation;
pub mod embedding;
pub mod image;
pub mod model;
mod old_form;
pub(super) mod parse;
pub(super) mod pictures;
mod place;
pub mod rerank;
pub mod responses;
mod responses_answer;
mod responses_request;
pub mod speech;
pub(super) mod support;
pub mod transcription;
pub(super) mod validate;
