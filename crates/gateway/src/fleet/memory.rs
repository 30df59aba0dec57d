//! How services of nodes did, for longer than their tunnels: a node that comes back is what it was before, and one that
//! stays away is forgotten.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_market::health::BreakerPolicy;
use cxmpute_wire::{ProvisionId, ServiceId};
use parking_lot::Mutex;

use super::node::Health;

/// How long a service is remembered that no tunnel serves: longer than any breaker stays open.
const REMEMBERED: Duration = Duration::from_secs(15 * 60);

/// Outlives the tunnels of a provision.
pub(super) type SharedHealth = Arc<Mutex<Health>>;

/// What is remembered of each service of each node.
#[derive(Debug, Default)]
pub(super) struct Memory {
    entries: Mutex<HashMap<(ProvisionId, ServiceId), Entry>>,
}

#[derive(Debug)]
struct Entry {
    health: SharedHealth,
    /// When it was found without a tunnel first.
    left: Option<Duration>,
}

impl Memory {
    /// What is known of a service on a node that has it now.
    pub fn of(
        &self,
        provision: &ProvisionId,
        service: &ServiceId,
        policy: BreakerPolicy,
        now: Duration,
    ) -> SharedHealth {
        let mut entries = self.entries.lock();
        let fresh = || Entry { health: Arc::new(Mutex::new(Health::new(policy, now))), left: None };
        let entry = entries.entry((provision.clone(), service.clone())).or_insert_with(fresh);
        entry.left = None;
        entry.health.clone()
    }

    /// Forgets what no tunnel has served for long.
    pub fn forget_old(&self, now: Duration) {
        self.entries.lock().retain(|_, entry| {
            if Arc::strong_count(&entry.health) > 1 {
                entry.left = None;
                return true;
            }
            now.saturating_sub(*entry.left.get_or_insert(now)) < REMEMBERED
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_remembered_while_it_is_served_and_for_a_while_after() {
        let memory = Memory::default();
        let node = ProvisionId::from_tail("node");
        let service: ServiceId = "llm:tiny".parse().unwrap();
        let of = |now| memory.of(&node, &service, BreakerPolicy::default(), now);
        let served = of(Duration::ZERO);
        served.lock().last_good = Some(Duration::ZERO);
        memory.forget_old(REMEMBERED * 9);
        assert!(Arc::ptr_eq(&served, &of(REMEMBERED * 9)), "it is served all the time");
        drop(served);
        memory.forget_old(REMEMBERED * 10);
        let back = of(REMEMBERED * 11 - Duration::from_secs(1));
        assert_eq!(back.lock().last_good, Some(Duration::ZERO), "a node that comes back is what it was");
        drop(back);
        memory.forget_old(REMEMBERED * 11);
        memory.forget_old(REMEMBERED * 12);
        assert!(memory.entries.lock().is_empty());
    }
}
