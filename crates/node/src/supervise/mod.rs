//! Keeping engines running: the rules are pure ([`state`], [`restart`]), the process is in [`process`], its output in
//! [`log`]; [`service`] carries the rules out and publishes what it sees.

pub mod confine;
pub mod container;
pub mod log;
mod probe;
pub mod process;
pub mod restart;
pub mod running;
pub mod service;
pub mod state;

pub use service::{Place, Service, Surroundings};
