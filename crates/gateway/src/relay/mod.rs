//! The way of a request for work: admission → select → forward → events → retry → settlement → the client.
//!
//! ```text
//! handler ── admission (hold) ── spawns ──▶ run ──▶ select ──▶ forward ──▶ events ─┐
//!    ▲                                       ▲  └── retry ◀── fault ◀──────────────┤
//!    │ head (status), body (delivery)        └───── settle ◀── complete ◀──────────┘
//! ```

mod admission;
mod answer;
mod bound;
mod checkpoint;
mod delivery;
mod draw;
mod embed;
mod errand;
pub mod events;
mod forward;
mod job;
pub mod logprobs;
mod look;
mod pages;
mod rerank;
mod respond;
mod retry;
mod rules;
mod run;
mod select;
mod settle;
mod sight;
mod so_far;
mod speech;
mod transcript;
mod usage;
mod vectors;
mod watchdog;

pub use draw::{Drawing, DrawingForm};
pub use embed::Embedding;
pub use errand::{Errand, Printed, Ticket, afford, run_errand};
pub use job::{Alternative, Ask, Form, Job, Pictures};
pub use look::Look;
pub use pages::Pages;
pub use rerank::Rerank;
pub use respond::run_llm;
pub use rules::{Format, Rules};
pub use select::overloaded;
pub use sight::{Sight, Wanted};
pub use speech::Speech;
pub use transcript::Transcript;
pub use usage::cost_details;
