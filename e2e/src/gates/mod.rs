//! The gates of the security reference, section 10, that this product claims, and GR16 of the gateway's rules. One
//! file each.

pub mod aborted;
pub mod aborted_paths;
pub mod addresses;
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
pub mod lies;
pub mod lockstep;
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
