//! The one guarded way out for addresses that users and providers name (DESIGN D10, SR26 to SR29).
//!
//! Rooms: [`judge`] decides, purely, which URLs and which addresses may be asked; [`connect`] resolves a name once,
//! judges every address of it and connects to a judged one; [`fetch`] gets a page with its redirects, under limits of
//! time and decoded bytes, or one answer piece by piece, for what is too large to hold; [`robots`] and [`pace`] are manners towards the hosts; [`proxy`] lets a browser out through
//! the same judgement. Whatever fetches such an address goes through here; nothing else opens a socket for it.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod connect;
pub mod fetch;
pub mod judge;
pub mod pace;
pub mod proxy;
pub mod robots;
#[cfg(feature = "sabotage")]
pub mod sabotage;

pub use connect::Connector;
pub use fetch::{FetchError, Fetcher, Limits, Page, Stream, Wanted};
pub use judge::{Policy, Refusal, Target};
