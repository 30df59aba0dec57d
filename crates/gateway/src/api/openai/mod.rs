//! OpenAI's routes.

pub mod chat;
pub mod completion;
mod conversation;
pub mod embedding;
pub mod model;
mod old_form;
mod parse;
mod place;
mod support;
mod validate;
