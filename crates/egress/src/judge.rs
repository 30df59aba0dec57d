//! May this be asked? Pure decisions over URLs and addresses.
//!
//! A URL is parsed once, by the rules that browsers follow (WHATWG), and what came out of that parse is what is
//! judged, resolved and connected to; the text is never looked at again. That is why every spelling of an address
//! (decimal, octal, short, circled digits, percent-encoded …) is judged as the address it means.

mod address;
mod domains;
mod nearby;
mod network;
mod policy;
mod refusal;
mod target;

pub use address::{Class, classify};
pub use domains::Domains;
pub use nearby::Nearby;
pub use network::{Network, Permission};
pub use policy::{Judged, Policy};
pub use refusal::Refusal;
pub use target::{Host, Target};
