//! What any of our processes needs to live: time, chance, tasks with owners, configuration, logs, exit codes, and
//! programs of others that run for a moment.
//!
//! Everything that reaches for the outside of the program (clock, operating system randomness, environment
//! variables, spawning, ending the process) goes through this crate, so that the rest stays testable. `clippy.toml`
//! at the root of the workspace holds everybody to it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod backoff;
pub mod clock;
pub mod config;
pub mod confine;
pub mod exit;
pub mod lifecycle;
pub mod once;
pub mod random;
pub mod secret;
pub mod telemetry;

pub use backoff::Backoff;
pub use clock::{Clock, MockClock};
pub use config::{ConfigError, Sources};
pub use lifecycle::Tasks;
pub use secret::Secret;
pub use tokio_util::sync::CancellationToken;
