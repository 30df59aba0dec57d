//! What nodes and providers' programs talk to.

pub mod provision;
pub mod seed;
pub mod tunnel;
