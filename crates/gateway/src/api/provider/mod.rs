//! What nodes and providers' programs talk to.

pub mod blob;
pub mod provision;
pub mod seed;
pub mod tunnel;
