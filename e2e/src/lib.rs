//! The test world of Cxmpute: a gateway, nodes and clients on port 0, clean or sabotaged, and the gates that run in it.
//!
//! A gate is one function `gate(Setting) -> Verdict`. It runs clean, where every assertion must hold, and against a
//! known-bad gateway (cargo feature `sabotage`), where the assertion that the gate names must fail.
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(
    clippy::disallowed_methods,
    reason = "the suite is the world around the programs: it owns real time, tasks and the environment"
)]

pub mod atelier;
pub mod client;
pub mod collector;
pub mod contract;
pub mod demo;
pub mod gates;
pub mod ground;
pub mod house;
pub mod layering;
pub mod money;
pub mod paths;
pub mod process;
pub mod proxy;
pub mod secrets;
pub mod services;
pub mod settings;
pub mod site;
pub mod stand_in;
pub mod storm;
pub mod upstream;
pub mod verdict;
pub mod ways;
pub mod world;
