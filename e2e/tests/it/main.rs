//! The gates, clean and against their known-bad variants, and what concerns the house as a whole.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod clean;
mod containers;
mod house;
mod llama;
mod memory;
mod money;
mod node;
mod official;
mod pictures;
mod rhythm;
#[cfg(feature = "sabotage")]
mod sabotaged;
mod services;
mod storm;
mod traces;
mod withdrawn;
