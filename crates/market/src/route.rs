//! Choosing a node: filter, score, pick. Arguments in, value out; the caller brings the time and the chance.

use cxmpute_wire::UserId;
use cxmpute_wire::openai::{OwnNodes, SortBy};

use crate::health::Gate;
use crate::price::PriceRow;
use crate::wish::{Traits, Wishes, is_quantization};

/// Most requests at a time that a node's own word is believed for (GR23).
pub const SLOTS_CAP: u32 = 64;
/// Most of a model's nodes that breakers may keep away at once, in percent (GR27).
pub const EJECTED_PERCENT_CAP: usize = 50;

/// One node as the choice sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate<'a> {
    /// What is known of it beside its load.
    pub traits: &'a Traits,
    /// Whether the request already lost or failed on this node.
    pub tried: bool,
    /// Whether its link answers, its service is ready and it passed its check.
    pub ready: bool,
    /// Its breaker.
    pub gate: Gate,
    /// Time to first token in milliseconds; `None` when nothing was measured.
    pub latency_ms: Option<f64>,
    /// Tokens per second of one request; `None` when nothing was measured.
    pub rate: Option<f64>,
    /// Whether it is known to miss a preferred bound of the request ([`Wishes::is_missed_by`]).
    pub slow: bool,
    /// Requests this gateway has on it now, for this service.
    pub in_flight: u32,
    /// Requests it says are waiting for a slot.
    pub queued: u32,
    /// Requests it says it can take at a time; clamped to [`SLOTS_CAP`].
    pub slots: u32,
    /// Share of successes, over 0 to 1.
    pub reliability: f64,
    /// Slow start, 0.1 to 1.
    pub ramp: f64,
}

/// Who asks for what.
#[derive(Debug, Clone, Copy)]
pub struct Seeker<'a> {
    /// Who pays.
    pub payer: &'a UserId,
    /// What is wished for.
    pub wishes: &'a Wishes,
    /// The model's price; every node of a model has the same.
    pub price: &'a PriceRow,
}

/// Why nobody is left, named by the filter that emptied the set (GR19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nobody {
    /// No node serves the model.
    Ready,
    /// The model costs more than the request allows.
    MaxPrice,
    /// Only nodes of the payer serve it, or none of them (MR48: such work earns nothing, so it runs only when asked).
    OwnNodes,
    /// None of the named nodes.
    Only,
    /// All are to be ignored.
    Ignore,
    /// None of the ordered nodes, and no others may serve.
    Order,
    /// None with such a quantisation.
    Quantizations,
    /// None in these countries.
    Region,
    /// None with that much evidence.
    Evidence,
    /// None that is known to keep nothing, asked for as `data_collection`.
    DataCollection,
    /// None that is known to keep nothing, asked for as `zdr`.
    Zdr,
    /// Every node that serves it was tried by this request.
    Tried,
    /// The breakers keep all of them away.
    Ejected,
    /// All are full.
    Capacity,
}

impl Nobody {
    /// The name of the filter, for the answer's text.
    #[must_use]
    pub const fn filter(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::MaxPrice => "max_price",
            Self::OwnNodes => "own_nodes",
            Self::Only => "only",
            Self::Ignore => "ignore",
            Self::Order => "order",
            Self::Quantizations => "quantizations",
            Self::Region => "region",
            Self::Evidence => "evidence",
            Self::DataCollection => "data_collection",
            Self::Zdr => "zdr",
            Self::Tried => "untried",
            Self::Ejected => "breaker",
            Self::Capacity => "capacity",
        }
    }

    /// Whether the request's own wishes left nobody, so that waiting for load to go down helps nobody.
    #[must_use]
    pub const fn is_wish(self) -> bool {
        !matches!(self, Self::Ready | Self::Tried | Self::Ejected | Self::Capacity)
    }
}

/// The node that was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// Position among the candidates.
    pub index: usize,
    /// The request is the trial of a breaker.
    pub trial: bool,
    /// The node would be away if enough others were there; an alert is due.
    pub degraded: bool,
}

#[derive(Debug, Clone, Copy)]
struct Fit {
    index: usize,
    trial: bool,
    degraded: bool,
}

/// Chooses a node. `chance` are two numbers drawn uniformly from all of `u64`.
///
/// # Errors
/// The filter that left nobody.
pub fn choose(candidates: &[Candidate<'_>], seeker: &Seeker<'_>, chance: [u64; 2]) -> Result<Choice, Nobody> {
    let left = filter(candidates, seeker)?;
    let allowed = pass_breakers(candidates, &left);
    let allowed: Vec<Fit> = allowed.into_iter().filter(|fit| !candidates[fit.index].tried).collect();
    if allowed.is_empty() {
        let all_tried = left.iter().all(|i| candidates[*i].tried);
        return Err(if all_tried { Nobody::Tried } else { Nobody::Ejected });
    }
    let mut free: Vec<Fit> = allowed.into_iter().filter(|fit| has_room(&candidates[fit.index])).collect();
    let Some(best) = free.iter().map(|fit| tier(&candidates[fit.index], seeker.wishes)).min() else {
        return Err(Nobody::Capacity);
    };
    free.retain(|fit| tier(&candidates[fit.index], seeker.wishes) == best);
    // A breaker that may try gets its one request, else nobody would ever come back.
    let trial = free.iter().find(|fit| fit.trial).copied();
    let median = median_ms(candidates);
    let fit = match (trial, seeker.wishes.sort) {
        (Some(trial), _) => trial,
        (None, None) => {
            let [first, second] = two_of(free.len(), chance);
            let (a, b) = (free[first], free[second]);
            if cost(&candidates[b.index], median) < cost(&candidates[a.index], median) { b } else { a }
        }
        (None, Some(by)) => first_by(candidates, &free, by, median),
    };
    Ok(Choice { index: fit.index, trial: fit.trial, degraded: fit.degraded })
}

/// The ready nodes that every wish leaves.
///
/// # Errors
/// The filter that emptied the set.
pub fn filter(candidates: &[Candidate<'_>], seeker: &Seeker<'_>) -> Result<Vec<usize>, Nobody> {
    let wishes = seeker.wishes;
    // The price is the model's, so no node can change what this filter says.
    if !wishes.max_price.admits(seeker.price) {
        return Err(Nobody::MaxPrice);
    }
    let mut left: Vec<usize> = (0..candidates.len()).filter(|i| candidates[*i].ready).collect();
    if left.is_empty() {
        return Err(Nobody::Ready);
    }
    let mut pass = |filter: Nobody, keeps: &dyn Fn(&Traits) -> bool| {
        left.retain(|i| keeps(candidates[*i].traits));
        if left.is_empty() { Err(filter) } else { Ok(()) }
    };
    pass(Nobody::OwnNodes, &|node| match wishes.own_nodes {
        None | Some(OwnNodes::Never) => node.owner != *seeker.payer,
        Some(OwnNodes::Allow) => true,
        Some(OwnNodes::Only) => node.owner == *seeker.payer,
    })?;
    if wishes.is_plain() {
        return Ok(left);
    }
    pass(Nobody::Only, &|node| wishes.only.is_empty() || wishes.only.contains(&node.slug))?;
    pass(Nobody::Ignore, &|node| !wishes.ignore.contains(&node.slug))?;
    pass(Nobody::Order, &|node| {
        !wishes.no_fallbacks || wishes.order.is_empty() || wishes.order.contains(&node.slug)
    })?;
    pass(Nobody::Quantizations, &|node| {
        let have = node.quantization.as_deref();
        wishes.quantizations.is_empty()
            || wishes.quantizations.iter().any(|asked| is_quantization(asked, have))
    })?;
    pass(Nobody::Region, &|node| {
        wishes.region.is_empty() || node.region.as_ref().is_some_and(|region| wishes.region.contains(region))
    })?;
    pass(Nobody::Evidence, &|node| node.evidence >= wishes.evidence)?;
    pass(Nobody::DataCollection, &|node| !wishes.deny_collection || node.keeps_nothing)?;
    pass(Nobody::Zdr, &|node| !wishes.zdr || node.keeps_nothing)?;
    Ok(left)
}

/// Where a node stands in the request's own order: first by name, then those that keep the preferred bounds. Smaller is
/// better; equal ones are chosen among by load, or as sorted.
fn tier(candidate: &Candidate<'_>, wishes: &Wishes) -> (usize, bool) {
    let place = wishes.order.iter().position(|name| *name == candidate.traits.slug);
    (place.unwrap_or(wishes.order.len()), candidate.slow)
}

/// The first by the request's own measure. What was not measured comes last; equal ones are told apart by their cost.
fn first_by(candidates: &[Candidate<'_>], free: &[Fit], by: SortBy, median_ms: f64) -> Fit {
    let key = |fit: &Fit| {
        let candidate = &candidates[fit.index];
        let first = match by {
            // All nodes of a model have its price.
            SortBy::Price => 0.0,
            SortBy::Throughput => -candidate.rate.unwrap_or(0.0),
            SortBy::Latency => candidate.latency_ms.unwrap_or(f64::INFINITY),
        };
        (first, cost(candidate, median_ms))
    };
    let order = |a: &Fit, b: &Fit| {
        let (a, b) = (key(a), key(b));
        a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))
    };
    free.iter().copied().min_by(order).unwrap_or(free[0])
}

/// The cost of one more request on a node (GR22), in milliseconds of expected wait.
#[must_use]
pub fn cost(candidate: &Candidate<'_>, median_ms: f64) -> f64 {
    let latency = candidate.latency_ms.unwrap_or(median_ms).max(0.1);
    let waiting = f64::from(candidate.in_flight) + f64::from(candidate.queued) + 1.0;
    let capacity = f64::from(candidate.slots.clamp(1, SLOTS_CAP));
    latency * waiting / capacity / candidate.reliability.max(0.01) / candidate.ramp.max(0.01)
}

/// The median of the measured latencies; 100 ms while nothing is measured (all nodes are equal then).
#[must_use]
pub fn median_ms(candidates: &[Candidate<'_>]) -> f64 {
    let mut known: Vec<f64> = candidates.iter().filter_map(|c| c.latency_ms).collect();
    known.sort_by(f64::total_cmp);
    if known.is_empty() { 100.0 } else { known[known.len() / 2] }
}

/// What the latency of a node without work drifts to: the median, and of two in the middle the lower, so that of two nodes
/// the worse one drifts towards the better one. Towards itself it would stay away for ever after one bad moment.
pub fn lower_median(numbers: impl Iterator<Item = f64>) -> Option<f64> {
    let mut known: Vec<f64> = numbers.collect();
    known.sort_by(f64::total_cmp);
    known.get(known.len().saturating_sub(1) / 2).copied()
}

fn has_room(candidate: &Candidate<'_>) -> bool {
    candidate.in_flight < candidate.slots.clamp(1, SLOTS_CAP)
}

/// Who may work in spite of the breakers: the closed ones, one trial each of those that may try, and, so that at most
/// half are away and the last never is, those that would return first, marked as degraded.
fn pass_breakers(candidates: &[Candidate<'_>], left: &[usize]) -> Vec<Fit> {
    let mut fits = Vec::with_capacity(left.len());
    let mut away = Vec::new();
    for &index in left {
        match candidates[index].gate {
            Gate::Closed => fits.push(Fit { index, trial: false, degraded: false }),
            Gate::Trial => fits.push(Fit { index, trial: true, degraded: false }),
            Gate::Trying => away.push((std::time::Duration::ZERO, index)),
            Gate::Open { until } => away.push((until, index)),
        }
    }
    let most_away = left.len() * EJECTED_PERCENT_CAP / 100;
    let back = away.len().saturating_sub(most_away);
    away.sort_unstable();
    fits.extend(away.into_iter().take(back).map(|(_, index)| Fit { index, trial: false, degraded: true }));
    fits
}

/// Two different positions below `count` (the same one twice when there is only one).
fn two_of(count: usize, chance: [u64; 2]) -> [usize; 2] {
    let below = |random: u64, bound: usize| {
        // Multiply-shift keeps the draw uniform enough without a division's bias.
        usize::try_from((u128::from(random) * bound as u128) >> 64).unwrap_or(0)
    };
    let first = below(chance[0], count);
    if count < 2 {
        return [first, first];
    }
    let second = below(chance[1], count - 1);
    [first, if second >= first { second + 1 } else { second }]
}

#[cfg(test)]
mod tests;
