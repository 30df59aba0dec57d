//! The node: it runs on a provider's machine, dials out to a gateway, keeps engines running as the gateway's plan
//! says and the owner allows, and hands work to them. It opens no port.
//!
//! Rooms: [`identity`] (the key), [`enrol`], [`diagnose`] (the machine), [`agent`] (tunnel and control), [`serve`]
//! (work), [`reconcile`] (plan against reality, pure), [`supervise`] and [`engines`] (processes), [`local`] (the
//! socket that `status` and `stop` talk to), [`cli`].
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod agent;
pub mod cli;
pub mod config;
pub mod diagnose;
pub mod engines;
pub mod enrol;
pub mod identity;
pub mod local;
pub mod output;
pub mod reconcile;
pub mod serve;
pub mod supervise;

pub use agent::Node;
pub use config::NodeConfig;
