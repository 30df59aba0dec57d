//! Choosing a node: filter, score, pick. Arguments in, value out; the caller brings the time and the chance.

use cxmpute_wire::UserId;

use crate::health::Gate;

/// Most requests at a time that a node's own word is believed for (GR23).
pub const SLOTS_CAP: u32 = 64;
/// Most of a model's nodes that breakers may keep away at once, in percent (GR27).
pub const EJECTED_PERCENT_CAP: usize = 50;

/// One node as the choice sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Who owns the node.
    pub owner: UserId,
    /// Whether the request already lost or failed on this node.
    pub tried: bool,
    /// Whether its link answers, its service is ready and it passed its check.
    pub ready: bool,
    /// Its breaker.
    pub gate: Gate,
    /// Time to first token in milliseconds; `None` when nothing was measured.
    pub latency_ms: Option<f64>,
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

/// Whether a request may run on nodes of its own payer (MR48: such work earns nothing, so it runs only when asked).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OwnNodes {
    /// Never.
    #[default]
    Never,
    /// Own nodes are as good as others.
    Allow,
    /// Only own nodes.
    Only,
}

/// Why nobody is left, named by the filter that emptied the set (GR19).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nobody {
    /// No node serves the model.
    Ready,
    /// Every node that serves it was tried by this request.
    Tried,
    /// Only nodes of the payer serve it, or none of them.
    OwnNodes,
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
            Self::Tried => "untried",
            Self::OwnNodes => "own_nodes",
            Self::Ejected => "breaker",
            Self::Capacity => "capacity",
        }
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

/// Chooses a node for work paid by `payer`. `chance` are two numbers drawn uniformly from all of `u64`.
///
/// # Errors
/// The filter that left nobody.
pub fn choose(
    candidates: &[Candidate],
    payer: &UserId,
    own_nodes: OwnNodes,
    chance: [u64; 2],
) -> Result<Choice, Nobody> {
    let mut left: Vec<usize> = (0..candidates.len()).filter(|i| candidates[*i].ready).collect();
    if left.is_empty() {
        return Err(Nobody::Ready);
    }
    left.retain(|i| match own_nodes {
        OwnNodes::Never => candidates[*i].owner != *payer,
        OwnNodes::Allow => true,
        OwnNodes::Only => candidates[*i].owner == *payer,
    });
    if left.is_empty() {
        return Err(Nobody::OwnNodes);
    }
    let allowed = pass_breakers(candidates, &left);
    let allowed: Vec<Fit> = allowed.into_iter().filter(|fit| !candidates[fit.index].tried).collect();
    if allowed.is_empty() {
        let all_tried = left.iter().all(|i| candidates[*i].tried);
        return Err(if all_tried { Nobody::Tried } else { Nobody::Ejected });
    }
    let free: Vec<Fit> = allowed.into_iter().filter(|fit| has_room(&candidates[fit.index])).collect();
    if free.is_empty() {
        return Err(Nobody::Capacity);
    }
    // A breaker that may try gets its one request, else nobody would ever come back.
    let fit = free.iter().find(|fit| fit.trial).copied().unwrap_or_else(|| {
        let median = median_ms(candidates);
        let [first, second] = two_of(free.len(), chance);
        let (a, b) = (free[first], free[second]);
        if cost(&candidates[b.index], median) < cost(&candidates[a.index], median) { b } else { a }
    });
    Ok(Choice { index: fit.index, trial: fit.trial, degraded: fit.degraded })
}

/// The cost of one more request on a node (GR22), in milliseconds of expected wait.
#[must_use]
pub fn cost(candidate: &Candidate, median_ms: f64) -> f64 {
    let latency = candidate.latency_ms.unwrap_or(median_ms).max(0.1);
    let waiting = f64::from(candidate.in_flight) + f64::from(candidate.queued) + 1.0;
    let capacity = f64::from(candidate.slots.clamp(1, SLOTS_CAP));
    latency * waiting / capacity / candidate.reliability.max(0.01) / candidate.ramp.max(0.01)
}

/// The median of the measured latencies; 100 ms while nothing is measured (all nodes are equal then).
#[must_use]
pub fn median_ms(candidates: &[Candidate]) -> f64 {
    let mut known: Vec<f64> = candidates.iter().filter_map(|c| c.latency_ms).collect();
    known.sort_by(f64::total_cmp);
    if known.is_empty() { 100.0 } else { known[known.len() / 2] }
}

fn has_room(candidate: &Candidate) -> bool {
    candidate.in_flight < candidate.slots.clamp(1, SLOTS_CAP)
}

/// Who may work in spite of the breakers: the closed ones, one trial each of those that may try, and, so that at most
/// half are away and the last never is, those that would return first, marked as degraded.
fn pass_breakers(candidates: &[Candidate], left: &[usize]) -> Vec<Fit> {
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
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn node(owner: &str) -> Candidate {
        Candidate {
            owner: UserId::from_tail(owner),
            tried: false,
            ready: true,
            gate: Gate::Closed,
            latency_ms: Some(100.0),
            in_flight: 0,
            queued: 0,
            slots: 4,
            reliability: 1.0,
            ramp: 1.0,
        }
    }

    fn payer() -> UserId {
        UserId::from_tail("payer")
    }

    const OPEN: Gate = Gate::Open { until: Duration::from_secs(99) };

    #[test]
    fn each_filter_that_empties_the_set_is_named() {
        let away = Candidate { ready: false, ..node("a") };
        let tried = Candidate { tried: true, ..node("a") };
        let full = Candidate { in_flight: 4, ..node("a") };
        let table = [
            (vec![], OwnNodes::Never, Nobody::Ready),
            (vec![away], OwnNodes::Never, Nobody::Ready),
            (vec![node("payer")], OwnNodes::Never, Nobody::OwnNodes),
            (vec![node("a")], OwnNodes::Only, Nobody::OwnNodes),
            (vec![tried], OwnNodes::Never, Nobody::Tried),
            (vec![full.clone(), full], OwnNodes::Never, Nobody::Capacity),
        ];
        for (nodes, own, nobody) in table {
            assert_eq!(choose(&nodes, &payer(), own, [0, 0]), Err(nobody));
        }
    }

    #[test]
    fn own_nodes_serve_only_when_asked() {
        let nodes = [node("payer"), node("a")];
        for chance in 0..20u64 {
            let chance = [chance << 60, chance << 59];
            assert_eq!(choose(&nodes, &payer(), OwnNodes::Never, chance).map(|c| c.index), Ok(1));
            assert_eq!(choose(&nodes, &payer(), OwnNodes::Only, chance).map(|c| c.index), Ok(0));
        }
        assert!(choose(&nodes[..1], &payer(), OwnNodes::Allow, [0, 0]).is_ok());
    }

    #[test]
    fn the_last_node_stays_and_is_marked() {
        let alone = [Candidate { gate: OPEN, ..node("a") }];
        assert_eq!(
            choose(&alone, &payer(), OwnNodes::Never, [0, 0]),
            Ok(Choice { index: 0, trial: false, degraded: true })
        );
        let two = [Candidate { gate: OPEN, ..node("a") }, node("b")];
        for chance in [0, u64::MAX / 2, u64::MAX] {
            assert_eq!(choose(&two, &payer(), OwnNodes::Never, [chance, chance]).map(|c| c.index), Ok(1));
        }
    }

    #[test]
    fn when_all_are_open_half_come_back_the_earliest_first() {
        let open = |s| Gate::Open { until: Duration::from_secs(s) };
        let nodes: Vec<_> = [40, 10, 30, 20].map(|s| Candidate { gate: open(s), ..node("a") }).to_vec();
        for a in 0..8u64 {
            let choice = choose(&nodes, &payer(), OwnNodes::Never, [a << 61, a << 60]).unwrap();
            assert!(choice.degraded && [1, 3].contains(&choice.index), "{choice:?}");
        }
    }

    #[test]
    fn a_breaker_that_may_try_gets_the_request() {
        let nodes = [node("a"), Candidate { gate: Gate::Trial, latency_ms: Some(9000.0), ..node("b") }];
        let choice = choose(&nodes, &payer(), OwnNodes::Never, [0, 0]).unwrap();
        assert_eq!((choice.index, choice.trial), (1, true));
    }

    #[test]
    fn an_unknown_node_counts_as_the_median() {
        let known = node("a");
        let unknown = Candidate { latency_ms: None, ..node("b") };
        let median = median_ms(&[known.clone(), unknown.clone()]);
        assert!((cost(&known, median) - cost(&unknown, median)).abs() < 1e-9);
    }

    #[test]
    fn a_claim_of_a_thousand_slots_counts_as_sixty_four() {
        let boast = Candidate { slots: 1000, in_flight: 64, ..node("a") };
        assert_eq!(choose(&[boast], &payer(), OwnNodes::Never, [0, 0]), Err(Nobody::Capacity));
    }

    fn any_node() -> impl Strategy<Value = Candidate> {
        let gate = prop_oneof![Just(Gate::Closed), Just(Gate::Trial), Just(Gate::Trying), Just(OPEN)];
        let load = (0u32..80, 0u32..10, 0u32..100);
        let speed = (proptest::option::of(0.1f64..60_000.0), 0.01f64..1.0, 0.1f64..1.0);
        (any::<bool>(), any::<bool>(), gate, load, speed, 0u32..4).prop_map(
            |(tried, ready, gate, load, speed, who)| Candidate {
                owner: UserId::from_tail(if who == 0 { "payer" } else { "other" }),
                tried,
                ready,
                gate,
                latency_ms: speed.0,
                in_flight: load.0,
                queued: load.1,
                slots: load.2,
                reliability: speed.1,
                ramp: speed.2,
            },
        )
    }

    proptest! {
        #[test]
        fn the_choice_passes_every_filter(
            nodes in proptest::collection::vec(any_node(), 0..12),
            chance in any::<[u64; 2]>(),
        ) {
            let fits = |c: &Candidate| c.ready && !c.tried && has_room(c) && c.owner != payer();
            match choose(&nodes, &payer(), OwnNodes::Never, chance) {
                Ok(choice) => prop_assert!(fits(&nodes[choice.index])),
                // With nobody away there is a choice whenever anybody fits.
                Err(_) => prop_assert!(!nodes.iter().any(|c| fits(c) && c.gate == Gate::Closed)),
            }
        }

        #[test]
        fn of_two_nodes_the_cheaper_is_taken(a in 1.0f64..5000.0, b in 1.0f64..5000.0, chance in any::<[u64; 2]>()) {
            prop_assume!((a - b).abs() > 1e-6);
            let nodes = [Candidate { latency_ms: Some(a), ..node("x") }, Candidate { latency_ms: Some(b), ..node("y") }];
            let choice = choose(&nodes, &payer(), OwnNodes::Never, chance).unwrap();
            prop_assert_eq!(choice.index, usize::from(b < a));
        }

        #[test]
        fn two_of_gives_two_different_places(count in 2usize..50, chance in any::<[u64; 2]>()) {
            let [a, b] = two_of(count, chance);
            prop_assert!(a != b && a < count && b < count);
        }
    }
}
