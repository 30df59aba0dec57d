//! Keeping engines running: the rules are pure ([`state`], [`restart`]), the process is in [`process`], its output in
//! [`log`]; `keeper` carries the rules out for one service, [`service`] is what the others see of it.

pub mod container;
mod keeper;
pub mod log;
mod oom;
mod probe;
pub mod process;
pub mod restart;
pub mod running;
pub mod service;
pub mod state;
mod surroundings;

pub use service::{Place, Service};
pub use surroundings::Surroundings;
