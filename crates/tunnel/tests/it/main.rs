//! Both ends of the tunnel over real sockets on the loopback.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod control;
mod handshake;
mod liveness;
mod streams;
mod world;
