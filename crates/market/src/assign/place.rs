//! Fills one machine.

use std::cmp::Reverse;
use std::collections::HashMap;

use cxmpute_wire::{MicroCredits, Millis, ServiceId, Timestamp};

use super::board::{Board, Prepared};
use super::room::{Claim, Lack, Room};
use super::terms::least_price;
use super::verdict::{Kind, Verdict};
use super::{DWELL, Need, NodePlan, Offer, Planned, WORTH_A_SWITCH};
use crate::catalogue::{Engine, EngineSet};

/// Why a need is out of the question for a machine, whatever runs there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Barred {
    NotOffered,
    Denied,
    OthersAllowed,
    TooCheap { least: MicroCredits },
    NoEngine,
    NotHeld(Engine),
}

/// One machine while it is filled.
struct Filling<'b> {
    board: &'b Board,
    offer: &'b Offer,
    now: Timestamp,
    /// Needs that were found to be larger on this machine.
    raised: HashMap<usize, Need>,
    barred: Vec<Option<Barred>>,
    /// What its files add to the disk: nothing where they are.
    disk: Vec<u64>,
    scores: Vec<u64>,
    room: Room,
    chosen: Vec<Option<Chosen>>,
    /// What ended for something better, and for what.
    replaced: Vec<usize>,
}

#[derive(Clone)]
struct Chosen {
    since: Timestamp,
    claim: Claim,
    how: How,
}

#[derive(Clone)]
enum How {
    Kept,
    Added,
    Instead { out: Vec<usize>, lost: u64 },
}

impl Board {
    /// Plans one provision while all others stay as they are, and counts the result. Nothing that runs gives way to
    /// something better unless `may_switch`.
    pub fn place(&mut self, offer: &Offer, now: Timestamp, may_switch: bool) -> NodePlan {
        self.take(&offer.provision);
        let filling = Filling::fill(self, offer, now, may_switch);
        let chosen: Vec<(usize, Chosen)> =
            filling.chosen.into_iter().enumerate().filter_map(|(n, chosen)| Some((n, chosen?))).collect();
        let planned = |(n, chosen): &(usize, Chosen)| Planned {
            service: self.needs[*n].need.service.clone(),
            since: chosen.since,
            claim: chosen.claim.clone(),
        };
        let services = chosen.iter().map(planned).collect();
        self.record(offer, chosen.iter().map(|(n, _)| *n).collect());
        NodePlan { provision: offer.provision.clone(), services }
    }

    /// Says for each service, in the catalogue's order, why [`Board::place`] would choose it or not. Counts nothing.
    #[must_use]
    pub fn explain(&self, offer: &Offer, now: Timestamp, may_switch: bool) -> Vec<(ServiceId, Verdict)> {
        let mut board = self.clone();
        board.take(&offer.provision);
        let filling = Filling::fill(&board, offer, now, may_switch);
        let empty = Room::of(offer);
        (0..board.needs.len())
            .map(|n| (board.needs[n].need.service.clone(), filling.verdict(n, &empty)))
            .collect()
    }
}

impl<'b> Filling<'b> {
    fn fill(board: &'b Board, offer: &'b Offer, now: Timestamp, may_switch: bool) -> Self {
        let held = board.held(offer);
        let present: EngineSet =
            offer.engines.iter().map(|(engine, _)| *engine).chain([Engine::Builtin]).collect();
        let barred: Vec<Option<Barred>> = board
            .needs
            .iter()
            .zip(&held)
            .map(|(prepared, held)| barred(prepared, offer, present, *held))
            .collect();
        let mut disk: Vec<u64> = board.needs.iter().map(|prepared| prepared.need.disk.0).collect();
        for (n, held) in held.iter().enumerate() {
            if !held.and(board.needs[n].engines).is_empty() {
                disk[n] = 0;
            }
        }
        for (n, here, whole) in board.files.of(&offer.held) {
            disk[n] = if whole { 0 } else { disk[n].saturating_sub(here) };
        }
        for running in offer.running.iter().filter(|running| running.stored) {
            if let Some(n) = board.place_of(&running.service) {
                disk[n] = 0;
            }
        }
        let mut scores = board.scores(offer, |n| disk[n] == 0 && board.needs[n].need.disk.0 > 0);
        let chosen = vec![None; board.needs.len()];
        let room = Room::of(offer);
        for (score, prepared) in scores.iter_mut().zip(&board.needs) {
            // Slow work is worth less than the same where an accelerator does it.
            if prepared.need.vram.0 > 0 && !room.accelerates(&prepared.need) {
                *score /= 2;
            }
        }
        let raised = offer.floors.iter().filter_map(|floor| {
            let n = board.place_of(&floor.service)?;
            Some((n, board.needs[n].need.with_floor(floor.memory)?))
        });
        let raised = raised.collect();
        let mut filling =
            Self { board, offer, now, raised, barred, disk, scores, room, chosen, replaced: Vec::new() };
        filling.keep();
        filling.add();
        if may_switch && filling.switch() {
            filling.add();
        }
        filling
    }

    fn need(&self, n: usize) -> &Need {
        self.raised.get(&n).unwrap_or(&self.board.needs[n].need)
    }

    /// What runs stays where it is; if the machine has become too small for all of it, what is worth most.
    fn keep(&mut self) {
        let mut kept: Vec<(usize, usize)> = Vec::new();
        for (at, running) in self.offer.running.iter().enumerate() {
            let Some(n) = self.board.place_of(&running.service) else { continue };
            if self.barred[n].is_none() && kept.iter().all(|(other, _)| *other != n) {
                kept.push((n, at));
            }
        }
        kept.sort_by_key(|(n, _)| (Reverse(self.board.value(*n)), *n));
        let (mut moved, offer) = (Vec::new(), self.offer);
        for (n, at) in kept {
            match self.room.same_claim(self.need(n), &offer.running[at].gpus) {
                Some(claim) => self.choose(n, claim, offer.running[at].since, How::Kept),
                None => moved.push((n, at)),
            }
        }
        for (n, at) in moved {
            // Its disk is taken or promised: that alone ends nothing.
            if let Ok(claim) = self.room.claim(self.need(n), 0) {
                self.choose(n, claim, offer.running[at].since, How::Kept);
            }
        }
    }

    fn choose(&mut self, n: usize, claim: Claim, since: Timestamp, how: How) {
        self.room.take(&claim, self.disk[n]);
        self.chosen[n] = Some(Chosen { since, claim, how });
    }

    /// Everything else that fits, what is worth most first, to the end of the list.
    fn add(&mut self) {
        let mut order: Vec<usize> = (0..self.chosen.len())
            .filter(|n| self.barred[*n].is_none() && self.chosen[*n].is_none() && !self.replaced.contains(n))
            .collect();
        // At equal value the small services of the processor, which leave room for each other, and then the largest
        // model that the accelerators hold, because few machines do.
        let size = |n: usize| {
            let need = self.need(n);
            match self.room.accelerates(need) {
                true => (1, u64::MAX - need.vram.0),
                false => (0, need.cpu_memory.unwrap_or(need.memory).0),
            }
        };
        order.sort_by_cached_key(|n| (Reverse(self.scores[*n]), size(*n), *n));
        for n in order {
            if let Ok(claim) = self.room.claim(self.need(n), self.disk[n]) {
                self.choose(n, claim, self.now, How::Added);
            }
        }
    }

    /// Lets one service that is worth much more take the place of others that have had their time.
    fn switch(&mut self) -> bool {
        let rested = self.kept(|minutes| minutes == 0);
        let Some((least, _)) = rested.first() else { return false };
        let worth = least.saturating_mul(WORTH_A_SWITCH).max(1);
        let mut order: Vec<usize> = (0..self.chosen.len())
            .filter(|n| {
                self.barred[*n].is_none() && self.chosen[*n].is_none() && self.board.value(*n) >= worth
            })
            .collect();
        order.sort_by_key(|n| (Reverse(self.board.value(*n)), *n));
        for n in order {
            let Some((out, lost, room, claim)) = self.instead(n, &rested) else { continue };
            self.room = room;
            for old in &out {
                self.chosen[*old] = None;
                self.replaced.push(*old);
            }
            self.choose(n, claim, self.now, How::Instead { out, lost });
            return true;
        }
        false
    }

    /// What runs and may end, by the minutes that each still has to stay: its value and which, the cheapest first.
    fn kept(&self, may: impl Fn(u64) -> bool) -> Vec<(u64, usize)> {
        let mut kept: Vec<(u64, usize)> = (0..self.chosen.len())
            .filter(|old| self.minutes_left(*old).is_some_and(&may))
            .map(|old| (self.board.value(old), old))
            .collect();
        kept.sort_unstable();
        kept
    }

    /// Which of what may end would have to so that a service fits, if that is worth it.
    fn instead(&self, n: usize, kept: &[(u64, usize)]) -> Option<(Vec<usize>, u64, Room, Claim)> {
        let gain = self.board.value(n);
        let worth = |lost: u64| gain >= lost.saturating_mul(WORTH_A_SWITCH).max(1);
        let (mut room, mut out) = (self.room.clone(), Vec::new());
        let mut lost = 0_u64;
        for (value, old) in kept {
            let lack = room.claim(self.need(n), self.disk[n]).err()?;
            let chosen = self.chosen[*old].as_ref()?;
            if !lack.is_eased_by(&chosen.claim, self.disk[*old]) {
                continue;
            }
            lost = lost.saturating_add(*value);
            if !worth(lost) {
                return None;
            }
            // Files that have arrived stay until the node deletes them, which is its own decision.
            room.give_back(&chosen.claim, self.disk[*old]);
            out.push((*value, *old));
            if room.claim(self.need(n), self.disk[n]).is_err() {
                continue;
            }
            // A larger one that came later may make an earlier one unnecessary.
            for (value, spared) in out.clone().into_iter().rev() {
                let Some(chosen) = &self.chosen[spared] else { continue };
                let mut less = room.clone();
                less.take(&chosen.claim, self.disk[spared]);
                if less.claim(self.need(n), self.disk[n]).is_ok() {
                    room = less;
                    lost -= value;
                    out.retain(|(_, old)| *old != spared);
                }
            }
            let claim = room.claim(self.need(n), self.disk[n]).ok()?;
            return Some((out.into_iter().map(|(_, old)| old).collect(), lost, room, claim));
        }
        None
    }

    /// Minutes that a service that ran before still has to stay; `None` for one that did not.
    fn minutes_left(&self, n: usize) -> Option<u64> {
        let chosen = self.chosen[n].as_ref().filter(|chosen| matches!(chosen.how, How::Kept))?;
        let ran = u64::try_from(self.now.0.saturating_sub(chosen.since.0)).unwrap_or(0);
        Some(DWELL.saturating_sub(Millis(ran)).0.div_ceil(60_000))
    }

    fn verdict(&self, n: usize, empty: &Room) -> Verdict {
        let prepared = &self.board.needs[n];
        let others = self.board.supply_of(n);
        let names = |list: &[usize]| -> Vec<ServiceId> {
            list.iter().map(|other| self.need(*other).service.clone()).collect()
        };
        if let Some(chosen) = &self.chosen[n] {
            return match &chosen.how {
                How::Kept => {
                    let ran = u64::try_from(self.now.0.saturating_sub(chosen.since.0)).unwrap_or(0);
                    Verdict::Stays { minutes: ran / 60_000, others }
                }
                How::Added => Verdict::Added {
                    value: self.scores[n],
                    others,
                    target: prepared.need.target,
                    demand: prepared.demand,
                    stored: self.disk[n] == 0 && prepared.need.disk.0 > 0,
                },
                How::Instead { out, lost } => {
                    Verdict::Replaces { out: names(out), value: self.board.value(n), lost: *lost }
                }
            };
        }
        match self.barred[n] {
            Some(Barred::NotOffered) => return Verdict::NotOffered,
            Some(Barred::Denied) => return Verdict::OwnerDenies,
            Some(Barred::OthersAllowed) => return Verdict::OwnerAllowsOthers,
            Some(Barred::TooCheap { least }) => {
                return Verdict::BelowLeastPrice { least, price: prepared.need.price };
            }
            Some(Barred::NoEngine) => return Verdict::NoEngine { engines: prepared.need.engines.clone() },
            Some(Barred::NotHeld(engine)) => return Verdict::NotHeld { engine },
            None => {}
        }
        if self.replaced.contains(&n) {
            return Verdict::Replaced;
        }
        let sized = |lack: Lack| match lack {
            Lack::Vram { needs, left } => Some((Kind::Vram, needs, left)),
            Lack::Memory { needs, left } => Some((Kind::Memory, needs, left)),
            Lack::Disk { needs, left } => Some((Kind::Disk, needs, left)),
            Lack::Accelerator { .. } | Lack::Places => None,
        };
        match empty.claim(self.need(n), self.disk[n]) {
            Err(Lack::Accelerator { needs }) => return Verdict::NoAccelerator { needs },
            Err(lack) => {
                if let Some((kind, needs, has)) = sized(lack) {
                    let learned = kind == Kind::Memory && self.raised.contains_key(&n);
                    return Verdict::TooLarge { kind, needs, has, learned };
                }
            }
            Ok(_) => {}
        }
        if let Some((out, ..)) = self.instead(n, &self.kept(|_| true)) {
            let minutes = out.iter().filter_map(|old| self.minutes_left(*old)).max().unwrap_or(0);
            if minutes > 0 {
                return Verdict::Waits { instead_of: names(&out), minutes };
            }
        }
        match self.room.claim(self.need(n), self.disk[n]).err().and_then(sized) {
            Some((kind, needs, left)) => Verdict::NoRoom { kind, needs, left, value: self.scores[n] },
            None => Verdict::Full,
        }
    }
}

fn barred(prepared: &Prepared, offer: &Offer, present: EngineSet, held: EngineSet) -> Option<Barred> {
    let need = &prepared.need;
    if need.target == 0 {
        return Some(Barred::NotOffered);
    }
    if names(&offer.deny, &need.service) {
        return Some(Barred::Denied);
    }
    if !offer.allow.is_empty() && !names(&offer.allow, &need.service) {
        return Some(Barred::OthersAllowed);
    }
    if let Some(least) = least_price(&offer.least_prices, &need.service).filter(|least| need.price < *least) {
        return Some(Barred::TooCheap { least });
    }
    let here = present.and(prepared.engines);
    if here.is_empty() {
        return Some(Barred::NoEngine);
    }
    if here.and(prepared.without).is_empty() && here.and(held).is_empty() {
        let own = |engine: &&Engine| here.has(**engine) && !engine.keeps_own_models();
        return Some(match need.engines.iter().find(own) {
            Some(engine) => Barred::NotHeld(*engine),
            None => Barred::NoEngine,
        });
    }
    None
}

/// Whether an owner's list names a service: by its id, its model or its kind.
fn names(list: &[String], service: &ServiceId) -> bool {
    list.iter().any(|name| {
        name == service.as_str() || Some(&**name) == service.model() || name == service.kind().as_str()
    })
}
