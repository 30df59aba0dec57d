//! The built program with the model of this repository, asked over its socket.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod architectures;
mod chat;
mod client;
mod constrained;
mod embeddings;
mod lifecycle;
mod load;
mod program;
mod sampling;
