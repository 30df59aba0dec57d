//! The gateway from the outside: over sockets, and as a program.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests may fail loudly")]

mod enrolment;
mod limits;
mod plan;
mod seed;
mod start;
mod surface;
mod translated;
mod world;
