//! The node: it runs on a provider's machine, dials out to a gateway, keeps engines running as the gateway's plan
//! says and the owner allows, and hands work to them. It opens no port.
//!
//! Rooms: [`identity`] (the key), [`enrol`], [`diagnose`] (the machine), [`agent`] (dialling again and again),
//! [`session`] (one tunnel: plans in, heartbeats out), [`serve`] (work), [`services`] with [`reconcile`] (plan against
//! reality, pure), [`scrape`] (the engine that fetches pages), [`supervise`] and [`engines`] (processes), [`standing`] (why it does not earn, pure), [`local`] (the
//! socket that `status` and `stop` talk to), [`cli`].
//!
//! Embedding: `Node::build(config, Deps::new(clock, tasks))?`, then `node.run().await`; the soft stop of `tasks` drains it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod agent;
pub mod cli;
pub mod config;
pub mod diagnose;
pub mod engines;
pub mod enrol;
pub mod events;
pub mod hold;
pub mod identity;
pub mod local;
pub mod models;
pub mod output;
pub mod owner;
pub mod place;
pub mod reconcile;
pub mod scrape;
pub mod serve;
pub mod services;
pub mod session;
pub mod standing;
pub mod supervise;

pub use agent::{Deps, Node, NodeView};
pub use config::NodeConfig;
