//! Pure decisions: arguments in, value out. No clock, no randomness of its own, no I/O, no async.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod assign;
pub mod book;
pub mod catalogue;
pub mod count;
pub mod health;
pub mod ledger;
pub mod limit;
pub mod picture;
pub mod price;
pub mod queue;
pub mod route;
pub mod shed;
pub mod speed;
pub mod wish;
