//! Networks that this machine is in. They change while it runs: a lease ends, a laptop moves.

use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::RwLock;

use super::Network;

/// The networks around this machine, as they were looked up last. Clones see the same.
#[derive(Clone, Debug, Default)]
pub struct Nearby(Arc<RwLock<Vec<Network>>>);

impl Nearby {
    /// Takes a look in.
    pub fn set(&self, networks: Vec<Network>) {
        *self.0.write() = networks;
    }

    /// Whether an address is in one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.read().iter().any(|network| network.contains(address))
    }
}

impl PartialEq for Nearby {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || *self.0.read() == *other.0.read()
    }
}

impl Eq for Nearby {}
