//! The node against a gateway of a hundred lines: enrolment, plans, work, faults of engines, ends.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod conformance;
mod delivery;
mod docker;
mod downloads;
mod engines;
mod gateway;
mod life;
mod mirror;
mod owner;
mod scrape;
mod thrift;
mod work;
