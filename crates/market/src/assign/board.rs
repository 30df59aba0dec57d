//! Who serves what, and what one more provision of each service is worth.

use std::collections::HashMap;

use cxmpute_wire::{ProvisionId, ServiceId, UserId};

use super::held::Files;
use super::{Demand, Need, Offer};
use crate::catalogue::{Engine, EngineSet, servable};

/// Weight of one provision that the catalogue wants.
const WANTED: u64 = 1_000;
/// Values are whole numbers; so many parts keep small ones apart.
const PARTS: u64 = 1_000;
/// Nothing weighs more; products of values stay inside 64 bits.
const HEAVIEST: u64 = 2_000_000_000;

/// The needs with what is asked for, and the provisions that serve them.
#[derive(Debug, Clone)]
pub struct Board {
    pub(super) needs: Vec<Prepared>,
    places: HashMap<ServiceId, usize>,
    /// Which needs an engine may mean by a name.
    names: HashMap<String, Vec<usize>>,
    pub(super) files: Files,
    supply: Vec<u64>,
    owners: HashMap<UserId, HashMap<usize, u64>>,
    regions: HashMap<String, HashMap<usize, u64>>,
    placed: HashMap<ProvisionId, Placed>,
}

/// A need, with what every machine would compute of it again.
#[derive(Debug, Clone)]
pub(super) struct Prepared {
    pub need: Need,
    pub engines: EngineSet,
    /// Engines that can serve it though they do not hold it.
    pub without: EngineSet,
    pub demand: Demand,
    pub weight: u64,
}

#[derive(Debug, Clone)]
struct Placed {
    owner: UserId,
    region: Option<String>,
    services: Vec<usize>,
}

impl Board {
    /// Needs that nobody serves yet. `downloads`: whether engines may fetch what nobody pins.
    #[must_use]
    pub fn new(needs: &[Need], downloads: bool) -> Self {
        let mut names: HashMap<String, Vec<usize>> = HashMap::new();
        let mut places = HashMap::new();
        for (n, need) in needs.iter().enumerate() {
            places.entry(need.service.clone()).or_insert(n);
            for name in &need.names {
                let of_name = names.entry(name.clone()).or_default();
                if !of_name.contains(&n) {
                    of_name.push(n);
                }
            }
        }
        let prepared = |need: &Need| {
            let without = |engine: &Engine| servable(need.delivery, *engine, false, downloads);
            Prepared {
                engines: need.engines.iter().copied().collect(),
                without: need.engines.iter().copied().filter(without).collect(),
                demand: Demand::default(),
                weight: u64::from(need.target) * WANTED,
                need: need.clone(),
            }
        };
        Self {
            needs: needs.iter().map(prepared).collect(),
            supply: vec![0; needs.len()],
            places,
            names,
            files: Files::new(needs),
            owners: HashMap::new(),
            regions: HashMap::new(),
            placed: HashMap::new(),
        }
    }

    /// Takes in what was asked for; services that are not named were not asked for.
    pub fn ask(&mut self, demand: &HashMap<ServiceId, Demand>) {
        for prepared in &mut self.needs {
            prepared.demand = demand.get(&prepared.need.service).copied().unwrap_or_default();
            let wanted = u64::from(prepared.need.target) * WANTED;
            prepared.weight = wanted.saturating_add(prepared.demand.weight()).min(HEAVIEST);
        }
    }

    /// Counts what a provision runs, in place of what was known of it.
    pub fn put(&mut self, offer: &Offer) {
        let running = offer.running.iter().filter_map(|one| self.place_of(&one.service)).collect();
        self.record(offer, running);
    }

    /// Forgets a provision.
    pub fn take(&mut self, provision: &ProvisionId) {
        let Some(placed) = self.placed.remove(provision) else { return };
        let less = |counts: &mut HashMap<usize, u64>, service: usize| {
            if let Some(count) = counts.get_mut(&service) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    counts.remove(&service);
                }
            }
        };
        let owner = self.owners.get_mut(&placed.owner);
        let mut owner = owner;
        let mut region = placed.region.as_ref().and_then(|region| self.regions.get_mut(region));
        for service in placed.services {
            self.supply[service] = self.supply[service].saturating_sub(1);
            if let Some(counts) = owner.as_deref_mut() {
                less(counts, service);
            }
            if let Some(counts) = region.as_deref_mut() {
                less(counts, service);
            }
        }
        if self.owners.get(&placed.owner).is_some_and(HashMap::is_empty) {
            self.owners.remove(&placed.owner);
        }
    }

    pub(super) fn record(&mut self, offer: &Offer, mut services: Vec<usize>) {
        self.take(&offer.provision);
        services.sort_unstable();
        services.dedup();
        if services.is_empty() {
            return;
        }
        let owner = self.owners.entry(offer.owner.clone()).or_default();
        for service in &services {
            self.supply[*service] += 1;
            *owner.entry(*service).or_default() += 1;
        }
        if let Some(region) = &offer.region {
            let region = self.regions.entry(region.clone()).or_default();
            for service in &services {
                *region.entry(*service).or_default() += 1;
            }
        }
        let placed = Placed { owner: offer.owner.clone(), region: offer.region.clone(), services };
        self.placed.insert(offer.provision.clone(), placed);
    }

    pub(super) fn place_of(&self, service: &ServiceId) -> Option<usize> {
        self.places.get(service).copied()
    }

    /// How many provisions serve a service.
    #[must_use]
    pub fn supply(&self, service: &ServiceId) -> u64 {
        self.place_of(service).map_or(0, |n| self.supply[n])
    }

    pub(super) fn supply_of(&self, n: usize) -> u64 {
        self.supply[n]
    }

    /// What one more provision is worth, wherever it is.
    pub(super) fn value(&self, n: usize) -> u64 {
        self.needs[n].weight * PARTS / (self.supply[n] + 1)
    }

    /// Values for one machine: less where its owner or its region serves much of it already, more where its files are.
    pub(super) fn scores(&self, offer: &Offer, at_hand: impl Fn(usize) -> bool) -> Vec<u64> {
        let mut scores: Vec<u64> = (0..self.needs.len()).map(|n| self.value(n)).collect();
        for (n, score) in scores.iter_mut().enumerate() {
            if at_hand(n) {
                *score = *score * 3 / 2;
            }
        }
        let mut lower = |counts: Option<&HashMap<usize, u64>>, share: u64| {
            for (n, count) in counts.into_iter().flatten() {
                let all = share * (self.supply[*n] + 1);
                // Multiplied first, in 128 bits, so that equal shares stay equal.
                let lowered = u128::from(scores[*n]) * u128::from(all) / u128::from(all + count);
                scores[*n] = u64::try_from(lowered).unwrap_or(u64::MAX);
            }
        };
        lower(self.owners.get(&offer.owner), 1);
        // Half as much: a region is large, and an owner is one cable.
        lower(offer.region.as_ref().and_then(|region| self.regions.get(region)), 2);
        scores
    }

    /// For each need the engines of a machine that hold its model.
    pub(super) fn held(&self, offer: &Offer) -> Vec<EngineSet> {
        let mut held = vec![EngineSet::default(); self.needs.len()];
        for (engine, models) in &offer.engines {
            for model in models {
                // Ollama adds the tag that it takes when there is none.
                let plain = model.strip_suffix(":latest").unwrap_or(model);
                for n in self.names.get(plain).into_iter().flatten() {
                    held[*n] = held[*n].with(*engine);
                }
                // Or by the service it is.
                let service = model.parse::<ServiceId>().ok().and_then(|service| self.place_of(&service));
                if let Some(n) = service {
                    held[n] = held[n].with(*engine);
                }
            }
        }
        held
    }
}
