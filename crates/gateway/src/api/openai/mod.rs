//! OpenAI's routes.

pub mod chat;
pub mod completion;
pub mod embedding;
pub mod model;
mod parse;
mod validate;
