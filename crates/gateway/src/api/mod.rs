//! One file per family of endpoints; the table that names them all is [`crate::router`].

pub mod account;
pub mod anthropic;
pub mod docs;
pub mod health;
pub mod openai;
pub mod provider;
pub mod services;
mod translation;
