//! The gateway: users' requests in, nodes' answers out, money moved exactly once.
//!
//! [`app::App`] is the whole thing as one value; [`router`] is the table of all routes; ARCHITECTURE.md walks through
//! a request file by file.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod api;
pub mod app;
pub mod auth;
pub mod body;
pub mod catalogue;
pub mod cli;
pub mod config;
pub mod counters;
pub mod edge;
pub mod error;
pub mod fleet;
pub mod frames;
pub mod framing;
pub mod json;
pub mod larder;
pub mod limits;
pub mod listen;
pub mod media;
pub mod meter;
mod one_line;
pub mod openapi;
pub mod rates;
pub mod relay;
mod request_id;
mod room;
pub mod router;
#[cfg(feature = "sabotage")]
pub mod sabotage;
pub mod schema;
pub mod seals;
pub mod stall;
pub mod telemetry;
pub mod trace;
pub mod watch;
pub mod web;
pub mod work;

pub use app::{App, Listeners, Parts, serve};
