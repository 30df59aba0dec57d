//! Which services each provision should run (NR22). The plan is a function of what is asked for, what each machine has
//! and what runs already: it walks the whole list of every machine until nothing fits, prefers what is asked for and
//! served by few, keeps what runs, and says why.
//!
//! The value of one more provision of a service is its weight (what the catalogue wants, and more for what was asked
//! for) divided by the number of provisions that serve it then, so the first provision is worth most and the hundredth
//! little. A machine takes what is worth most to the network and fits; at equal value the largest that its accelerators
//! hold, because large machines are few.

use std::collections::HashMap;

use cxmpute_wire::{Bytes, MicroCredits, Millis, ProvisionId, ServiceId, Timestamp, UserId};

use crate::catalogue::{Delivery, Engine, ModelEntry};

mod board;
mod demand;
mod held;
mod place;
mod room;
pub mod sample;
mod terms;
mod verdict;

pub use board::Board;
pub use demand::{Demand, WINDOW_MINUTES, Window};
pub use held::{Held, WantedFile};
pub use room::{Claim, GpuClaim};
pub use terms::{FLOOR_HOLDS, Floor, raised};
pub use verdict::{Kind, Verdict};

/// Memory that is left to the rest of the machine.
pub const MEMORY_RESERVE: Bytes = Bytes(256 << 20);
/// Memory of each accelerator that is left to its driver and to the owner's screen.
pub const VRAM_RESERVE: Bytes = Bytes(512 << 20);
/// Disk that is left free.
pub const DISK_RESERVE: Bytes = Bytes(512 << 20);
/// A service stays for at least this long once a provision was given it.
pub const DWELL: Millis = Millis(30 * 60 * 1000);
/// Another service replaces one that runs only when it is worth this many times as much: changing costs a load, and a
/// plan should not turn with the weather.
pub const WORTH_A_SWITCH: u64 = 2;
/// Most services of one provision.
pub const MOST_SERVICES: usize = 32;
/// One provision in so many may change a service that runs in one round, and always one.
pub const SWITCH_SHARE: usize = 10;

/// What one service needs, from its catalogue entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Need {
    /// Which service.
    pub service: ServiceId,
    /// What engines may call the model.
    pub names: Vec<String>,
    /// Engines that can run it.
    pub engines: Vec<Engine>,
    /// How a node gets it.
    pub delivery: Delivery,
    /// Memory of accelerators; 0 where it runs on the processor.
    pub vram: Bytes,
    /// Memory of the machine, beside `vram` where that is used.
    pub memory: Bytes,
    /// Memory of the machine without an accelerator; `None` where it needs one.
    pub cpu_memory: Option<Bytes>,
    /// Disk its files take.
    pub disk: Bytes,
    /// Its files, where they are pinned.
    pub files: Vec<WantedFile>,
    /// What it costs, by its most telling unit.
    pub price: MicroCredits,
    /// How many provisions are wanted while nobody asks; 0: none, ever.
    pub target: u32,
}

impl From<&ModelEntry> for Need {
    fn from(entry: &ModelEntry) -> Self {
        let mut names = vec![entry.id.clone()];
        names.extend(entry.aliases.iter().cloned());
        names.extend(entry.ollama.clone());
        names.extend(entry.hub.as_ref().map(|hub| hub.repository.clone()));
        Self {
            service: entry.service.clone(),
            names,
            engines: entry.engines.clone(),
            delivery: entry.delivery(),
            vram: entry.vram,
            memory: entry.memory,
            cpu_memory: entry.cpu_memory,
            disk: entry.disk,
            files: entry.files.iter().map(WantedFile::from).collect(),
            price: entry.price.main(),
            target: entry.target,
        }
    }
}

/// An accelerator, as measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gpu {
    /// Its position on the machine.
    pub index: u32,
    /// All of its memory: what is free moves with what happens to run, and a plan must not.
    pub memory: Bytes,
}

/// A service that a provision was given before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Which service.
    pub service: ServiceId,
    /// Since when.
    pub since: Timestamp,
    /// Where it was put.
    pub gpus: Vec<GpuClaim>,
    /// Whether its files have arrived, so that the free disk does not hold them any more.
    pub stored: bool,
}

/// What a provision has, allows and runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Which provision.
    pub provision: ProvisionId,
    /// Whose.
    pub owner: UserId,
    /// Where, if its owner said so.
    pub region: Option<String>,
    /// Its accelerators.
    pub gpus: Vec<Gpu>,
    /// Memory of the machine.
    pub memory: Bytes,
    /// Free disk on the file system of the models.
    pub disk_free: Bytes,
    /// Engines that are there beside the built-in one, and the models that each holds.
    pub engines: Vec<(Engine, Vec<String>)>,
    /// Only these, if any: service ids, model ids or kinds.
    pub allow: Vec<String>,
    /// Never these.
    pub deny: Vec<String>,
    /// Least prices of services, models or kinds: below them its owner does not want to be asked.
    pub least_prices: Vec<(String, MicroCredits)>,
    /// Model files that it holds.
    pub held: Vec<Held>,
    /// Services that ran out of memory there.
    pub floors: Vec<Floor>,
    /// What it was given before.
    pub running: Vec<Running>,
}

/// One service of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Which service.
    pub service: ServiceId,
    /// Since when the provision has it.
    pub since: Timestamp,
    /// What it takes.
    pub claim: Claim,
}

/// The plan of one provision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePlan {
    /// Which provision.
    pub provision: ProvisionId,
    /// What it should run, in the catalogue's order.
    pub services: Vec<Planned>,
}

impl NodePlan {
    /// Whether these are the services that the provision runs already.
    #[must_use]
    pub fn is_of(&self, running: &[Running]) -> bool {
        self.services.len() == running.len()
            && self.services.iter().all(|one| running.iter().any(|other| other.service == one.service))
    }
}

/// Memory in all. Machines say themselves how much they have, so that a sum has an end.
fn total(memory: impl Iterator<Item = Bytes>) -> u64 {
    memory.fold(0, |sum, part| sum.saturating_add(part.0))
}

/// Plans a whole fleet, the largest machines first; the plans are in the order of the offers. At most one provision in
/// [`SWITCH_SHARE`] changes a service that runs.
#[must_use]
pub fn plan(
    needs: &[Need],
    offers: &[Offer],
    demand: &HashMap<ServiceId, Demand>,
    downloads: bool,
    now: Timestamp,
) -> Vec<NodePlan> {
    let mut board = Board::new(needs, downloads);
    board.ask(demand);
    for offer in offers {
        board.put(offer);
    }
    let vram = |offer: &Offer| total(offer.gpus.iter().map(|gpu| gpu.memory));
    let mut order: Vec<usize> = (0..offers.len()).collect();
    order.sort_by_cached_key(|n| {
        let offer = &offers[*n];
        (std::cmp::Reverse((vram(offer), offer.memory.0)), offer.provision.clone())
    });
    let mut switches = (offers.len() / SWITCH_SHARE).max(1);
    let mut plans: Vec<Option<NodePlan>> = offers.iter().map(|_| None).collect();
    for n in order {
        let offer = &offers[n];
        let plan = board.place(offer, now, switches > 0);
        let lost = |old: &Running| plan.services.iter().all(|planned| planned.service != old.service);
        if offer.running.iter().any(lost) {
            switches = switches.saturating_sub(1);
        }
        plans[n] = Some(plan);
    }
    plans.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests;
