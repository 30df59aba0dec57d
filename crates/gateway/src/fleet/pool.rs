//! All nodes that serve one service, and the choice among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cxmpute_market::assign::{Demand, Window};
use cxmpute_market::health::{Gate, Sent};
use cxmpute_market::limit::{RetryBudget, least_retries};
use cxmpute_market::queue::FairQueue;
use cxmpute_market::route::{Candidate, Choice, Nobody, Seeker, choose, filter, lower_median};
use cxmpute_market::speed::Uptime;
use cxmpute_market::wish::Wishes;
use cxmpute_runtime::{Clock, random};
use cxmpute_wire::control::ServiceState;
use cxmpute_wire::{Epoch, ProvisionId};
use parking_lot::Mutex;

use super::line::Waiter;
use super::node::Member;
use super::registry::FleetParts;
use super::seat::Seat;

/// A tunnel that owes an answer to a ping for this long gets no new work: it is probably gone, and the verdict will
/// come soon (NR14).
const DOUBTFUL: Duration = Duration::from_millis(1500);

/// A warning that work goes to faulty nodes is given at most this often for one service.
const WARN_EVERY: Duration = Duration::from_secs(10);

/// What a request wants of a node.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Who asks for what.
    pub seeker: Seeker<'a>,
    /// Nodes that failed for this request: all their tunnels, or only the named one.
    pub tried: &'a [(ProvisionId, Option<Epoch>)],
}

/// The nodes of one service, and who waits for one.
#[derive(Debug)]
pub(super) struct Pool {
    members: Mutex<Vec<Arc<Member>>>,
    /// Who waits; locked before `members`.
    pub line: Mutex<FairQueue<Arc<Waiter>>>,
    /// Events that whoever hands out seats has to look at; 0 when nobody does.
    pub pumps: AtomicUsize,
    /// When it was looked for what nobody announces.
    pub looked: Mutex<Duration>,
    pub clock: Clock,
    slots_cap: u32,
    /// Requests and retries of this service: a model whose nodes all fail takes no retry away from another.
    retries: Mutex<RetryBudget>,
    /// Faults in a row that open a breaker.
    faults: u32,
    /// What was asked for lately.
    pub demand: Mutex<Window>,
    /// How often something happened within the last half hour.
    pub uptime: Mutex<Uptime>,
    /// The known-bad variant under test.
    #[cfg(feature = "sabotage")]
    pub sabotage: Option<crate::sabotage::Sabotage>,
    /// When a node of this service was attached last, in time since the process started.
    pub last_seen: Mutex<Option<Duration>>,
    /// When somebody was told last that only faulty nodes are left.
    warned: Mutex<Option<Duration>>,
}

impl Pool {
    pub(super) fn new(parts: &FleetParts) -> Self {
        let relay = &parts.relay;
        Self {
            members: Mutex::default(),
            line: Mutex::new(FairQueue::new(relay.queue_length, relay.queue())),
            pumps: AtomicUsize::new(0),
            looked: Mutex::default(),
            clock: parts.clock.clone(),
            slots_cap: relay.slots_cap,
            retries: Mutex::new(RetryBudget::new(u64::from(relay.retry_budget_percent))),
            faults: relay.breaker().consecutive_faults,
            demand: Mutex::default(),
            uptime: Mutex::default(),
            #[cfg(feature = "sabotage")]
            sabotage: parts.sabotage,
            last_seen: Mutex::default(),
            warned: Mutex::default(),
        }
    }

    pub(super) fn add(&self, member: Arc<Member>) {
        self.members.lock().push(member);
    }

    pub(super) fn remove(&self, provision: &ProvisionId, epoch: Epoch) {
        self.members.lock().retain(|member| {
            let session = &member.node.session;
            session.provision_id != *provision || session.epoch != epoch
        });
    }

    pub(super) fn members(&self) -> Vec<Arc<Member>> {
        self.members.lock().clone()
    }

    /// Chooses a node and books the request on it, in one step.
    pub(super) fn take(self: &Arc<Self>, wanted: &Wanted<'_>) -> Result<Seat, Nobody> {
        let now = self.clock.mono();
        let members = self.members.lock();
        let choice = self.choose(&members, wanted, now)?;
        let member = members[choice.index].clone();
        if choice.trial && !member.health.lock().breaker.begin_trial(now) {
            return Err(Nobody::Ejected);
        }
        member.in_flight.fetch_add(1, Ordering::AcqRel);
        drop(members);
        if choice.degraded {
            self.warn_degraded(&member, now);
        }
        Ok(Seat::new(member, self.clone(), sent(choice)))
    }

    /// Why there is no seat for this request, whoever else waits; [`Nobody::Capacity`] where it is only not its turn.
    pub(super) fn why_not(&self, wanted: &Wanted<'_>) -> Nobody {
        self.choose(&self.members.lock(), wanted, self.clock.mono()).err().unwrap_or(Nobody::Capacity)
    }

    fn choose(&self, members: &[Arc<Member>], wanted: &Wanted<'_>, now: Duration) -> Result<Choice, Nobody> {
        let chance = [random::quick::<8>(), random::quick::<8>()].map(u64::from_le_bytes);
        let median_ms = lower_median(members.iter().filter_map(|m| m.health.lock().latency.measured_ms()));
        let candidates: Vec<Candidate<'_>> =
            members.iter().map(|member| candidate(member, wanted, now, self.slots_cap, median_ms)).collect();
        #[cfg(feature = "sabotage")]
        let candidates = self.never_ejecting(candidates);
        choose(&candidates, &wanted.seeker, chance)
    }

    /// Counts a request towards the retry budget, and as demand.
    pub(super) fn count_request(&self) {
        self.retries.lock().request(self.clock.mono());
        self.count(&Demand { requests: 1, ..Demand::default() });
    }

    /// Counts what was asked for.
    pub(super) fn count(&self, more: &Demand) {
        self.demand.lock().add(more, self.clock.mono());
    }

    /// Takes one retry out of the budget (GR31).
    pub(super) fn take_retry(&self) -> bool {
        let nodes = self.members.lock().len();
        self.retries.lock().retry(least_retries(self.faults, nodes), self.clock.mono())
    }

    /// The wish that leaves none of the nodes that are here, if one does; load and breakers are not asked.
    pub(super) fn unfulfilled(&self, wanted: &Wanted<'_>) -> Option<Nobody> {
        let (now, slots_cap) = (self.clock.mono(), self.slots_cap);
        let members = self.members.lock();
        let candidates = members.iter().map(|member| candidate(member, wanted, now, slots_cap, None));
        // No wish looks at more than one node, and mostly the first one will do.
        if candidates.clone().any(|one| filter(&[one], &wanted.seeker).is_ok()) {
            return None;
        }
        let candidates: Vec<Candidate<'_>> = candidates.collect();
        filter(&candidates, &wanted.seeker).err().filter(|nobody| nobody.is_wish())
    }

    /// Whether any node could take one more request.
    pub(super) fn has_room(&self) -> bool {
        let now = self.clock.mono();
        self.members.lock().iter().any(|member| {
            let (slots, full) = {
                let state = member.state.lock();
                (state.slots.min(self.slots_cap), now < state.full_until)
            };
            !full && member.in_flight.load(Ordering::Acquire) < slots && member.routable()
        })
    }

    /// G5: whatever the breakers say, every node gets work.
    #[cfg(feature = "sabotage")]
    fn never_ejecting<'a>(&self, mut candidates: Vec<Candidate<'a>>) -> Vec<Candidate<'a>> {
        if self.sabotage == Some(crate::sabotage::Sabotage::NoEjection) {
            for candidate in &mut candidates {
                candidate.gate = Gate::Closed;
            }
        }
        candidates
    }

    /// The last nodes are never away silently (GR27).
    fn warn_degraded(&self, member: &Member, now: Duration) {
        metrics::counter!("cxmpute_degraded_picks_total", "service" => member.service.as_str().to_owned())
            .increment(1);
        let mut warned = self.warned.lock();
        if warned.is_none_or(|at| now.saturating_sub(at) >= WARN_EVERY) {
            *warned = Some(now);
            tracing::warn!(provision = %member.node.session.provision_id, service = %member.service,
                "the last nodes of a service are faulty; work goes to one of them");
        }
    }

    /// The state that is nearest to ready, of nodes that do not take work yet.
    pub(super) fn loading(&self) -> Option<ServiceState> {
        let members = self.members.lock();
        members.iter().map(|member| member.state.lock().state).find(|state| {
            matches!(
                state,
                ServiceState::Queued
                    | ServiceState::Downloading
                    | ServiceState::Verifying
                    | ServiceState::Loading
            )
        })
    }
}

fn sent(choice: Choice) -> Sent {
    match choice {
        Choice { trial: true, .. } => Sent::Trial,
        Choice { degraded: true, .. } => Sent::Degraded,
        Choice { .. } => Sent::Ordinary,
    }
}

fn candidate<'a>(
    member: &'a Member,
    wanted: &Wanted<'_>,
    now: Duration,
    slots_cap: u32,
    median_ms: Option<f64>,
) -> Candidate<'a> {
    let session = &member.node.session;
    let tried = wanted.tried.iter().any(|(provision, epoch)| {
        *provision == session.provision_id && epoch.is_none_or(|epoch| epoch == session.epoch)
    });
    let ready = member.routable() && member.node.link.quiet() < DOUBTFUL;
    let (slots, foreign, full) = {
        let state = member.state.lock();
        (state.slots.min(slots_cap), state.foreign, now < state.full_until)
    };
    let health = member.health.lock();
    let gate: Gate = health.breaker.gate(now);
    let measured = health.latency.measured_ms().is_some();
    let wishes: &Wishes = wanted.seeker.wishes;
    let slow = wishes.has_bounds() && wishes.is_missed_by(&health.latencies, &health.rates);
    let latency_ms = median_ms.filter(|_| measured).map(|median| health.latency.value_ms(now, median));
    Candidate {
        traits: &member.traits,
        tried,
        ready,
        gate,
        latency_ms,
        rate: health.rate.per_second(),
        slow,
        // A node that says that it is full is as full as one with no slot left.
        in_flight: if full { u32::MAX } else { member.in_flight.load(Ordering::Acquire) },
        queued: foreign,
        slots,
        reliability: health.breaker.reliability(now),
        ramp: health.breaker.ramp(now),
    }
}
