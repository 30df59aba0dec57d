//! The gates of the security reference, section 10, that this product claims, and some of the gateway's own rules (GR). One
//! file each.

pub mod aborted;
pub mod aborted_paths;
pub mod aborted_services;
pub mod addresses;
pub mod allowances;
pub mod bodies;
pub mod crash;
pub mod drain;
pub mod ejection;
pub mod enrolment;
pub mod epochs;
pub mod fallback;
pub mod faults;
pub mod floods;
pub mod leaks;
mod leaving;
pub mod lies;
pub mod lies_services;
pub mod lockstep;
pub mod memory;
pub mod overspend;
pub mod probes;
pub mod property;
pub mod retries;
pub mod rogue_answers;
pub mod rogue_plays;
pub mod rogue_streams;
pub mod slow_clients;
pub mod surface;
pub mod values;
