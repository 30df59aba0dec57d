//! Which services a node should run. The plan of this first fleet is per node: every entry that fits, in the
//! catalogue's order, until nothing fits any more. Planning twice gives the same plan.

use cxmpute_wire::{Bytes, ServiceId};

/// Memory that is left to the rest of the machine.
pub const MEMORY_RESERVE: Bytes = Bytes(256 * 1024 * 1024);
/// Disk that is left free.
pub const DISK_RESERVE: Bytes = Bytes(512 * 1024 * 1024);

/// What a node has and allows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Offer {
    /// Memory of the machine, all accelerators included.
    pub memory: Bytes,
    /// Free disk on the file system of the models.
    pub disk_free: Bytes,
    /// Services the owner refuses.
    pub refused: Vec<ServiceId>,
}

/// What one service needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Which service.
    pub service: ServiceId,
    /// Memory it takes while it runs.
    pub memory: Bytes,
    /// Disk its files take.
    pub disk: Bytes,
    /// Whether the fleet wants it at all; a service nobody wants is not planned.
    pub wanted: bool,
}

/// The services the node should run. An entry that does not fit is skipped, the walk goes on to the end of the list.
/// Entries already in `running` keep their place (their files are there), so that a plan does not flap when free disk
/// moves by a little.
#[must_use]
pub fn plan(offer: &Offer, needs: &[Need], running: &[ServiceId]) -> Vec<ServiceId> {
    let mut memory = offer.memory.saturating_sub(MEMORY_RESERVE).get();
    let mut disk = offer.disk_free.saturating_sub(DISK_RESERVE).get();
    let allowed = |need: &&Need| need.wanted && !offer.refused.contains(&need.service);
    let mut planned = Vec::new();
    let (kept, fresh): (Vec<&Need>, Vec<&Need>) =
        needs.iter().filter(allowed).partition(|need| running.contains(&need.service));
    for (need, on_disk) in kept.into_iter().map(|n| (n, true)).chain(fresh.into_iter().map(|n| (n, false))) {
        let needs_disk = if on_disk { 0 } else { need.disk.get() };
        if need.memory.get() <= memory && needs_disk <= disk {
            memory -= need.memory.get();
            disk -= needs_disk;
            planned.push(need.service.clone());
        }
    }
    // In the catalogue's order, so that the same set is the same plan.
    let place = |service: &ServiceId| needs.iter().position(|need| need.service == *service);
    planned.sort_by_key(place);
    planned.dedup();
    planned
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1024 * 1024 * 1024;

    fn need(name: &str, memory: u64, disk: u64) -> Need {
        let service = name.parse().unwrap();
        Need { service, memory: Bytes(memory), disk: Bytes(disk), wanted: true }
    }

    fn offer(memory: u64, disk: u64) -> Offer {
        Offer { memory: Bytes(memory), disk_free: Bytes(disk), refused: Vec::new() }
    }

    fn names(services: &[ServiceId]) -> Vec<&str> {
        services.iter().map(ServiceId::as_str).collect()
    }

    #[test]
    fn the_whole_list_is_walked() {
        let needs =
            [need("llm:a", 2 * GIB, GIB), need("llm:big", 99 * GIB, GIB), need("embeddings:c", GIB, GIB)];
        assert_eq!(names(&plan(&offer(4 * GIB, 9 * GIB), &needs, &[])), ["llm:a", "embeddings:c"]);
    }

    #[test]
    fn refused_and_unwanted_services_are_left_out() {
        let mut needs = [need("llm:a", GIB, 0), need("llm:b", GIB, 0), need("llm:c", GIB, 0)];
        needs[0].wanted = false;
        let mut mine = offer(64 * GIB, 64 * GIB);
        mine.refused.push("llm:b".parse().unwrap());
        assert_eq!(names(&plan(&mine, &needs, &[])), ["llm:c"]);
    }

    #[test]
    fn what_runs_stays_when_the_disk_fills_up() {
        let needs = [need("llm:a", GIB, 5 * GIB), need("llm:b", GIB, 5 * GIB)];
        let running = ["llm:b".parse().unwrap()];
        assert_eq!(names(&plan(&offer(64 * GIB, GIB), &needs, &running)), ["llm:b"]);
    }

    #[test]
    fn nothing_fits_an_unknown_machine() {
        assert!(plan(&Offer::default(), &[need("llm:a", 1, 1)], &[]).is_empty());
    }

    proptest! {
        #[test]
        fn a_plan_fits_and_is_stable(
            sizes in proptest::collection::vec((0u64..8, 0u64..8), 0..12),
            memory in 0u64..32,
            disk in 0u64..32,
        ) {
            let needs: Vec<Need> =
                sizes.iter().enumerate().map(|(i, (m, d))| need(&format!("llm:{i}"), m * GIB, d * GIB)).collect();
            let mine = offer(memory * GIB, disk * GIB);
            let first = plan(&mine, &needs, &[]);
            let used: u64 = needs.iter().filter(|n| first.contains(&n.service)).map(|n| n.memory.get()).sum();
            prop_assert!(used <= memory * GIB);
            prop_assert_eq!(&first, &plan(&mine, &needs, &[]), "planning twice changes nothing");
            // The disk shrank by what was stored: what runs goes on running.
            let stored: u64 = needs.iter().filter(|n| first.contains(&n.service)).map(|n| n.disk.get()).sum();
            let after = Offer { disk_free: Bytes((disk * GIB).saturating_sub(stored)), ..mine };
            let second = plan(&after, &needs, &first);
            prop_assert!(first.iter().all(|service| second.contains(service)));
        }
    }
}
