//! Who is calling: keys of users and providers, signatures of nodes.

pub mod caller;
pub mod key;
pub mod node;
pub mod pepper;
pub mod ring;

pub use caller::Caller;
pub use key::{MintedKey, mint, parse};
pub use node::SignedNode;
pub use pepper::Pepper;
pub use ring::KeyRing;
