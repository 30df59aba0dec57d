//! All nodes that serve one service, and the choice among them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cxmpute_market::health::Gate;
use cxmpute_market::route::{Candidate, Nobody, OwnNodes, choose};
use cxmpute_wire::control::ServiceState;
use cxmpute_wire::{Epoch, ProvisionId, UserId};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::node::Member;
use super::seat::Seat;

/// A tunnel that owes an answer to a ping for this long gets no new work: it is probably gone, and the verdict will
/// come soon (NR14).
const DOUBTFUL: Duration = Duration::from_millis(1500);

/// What a request wants of a node.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// Who pays.
    pub payer: &'a UserId,
    /// Whether nodes of the payer may serve.
    pub own_nodes: OwnNodes,
    /// Nodes that failed for this request: all their tunnels, or only the named one.
    pub tried: &'a [(ProvisionId, Option<Epoch>)],
}

/// The nodes of one service.
#[derive(Debug, Default)]
pub(super) struct Pool {
    members: Mutex<Vec<Arc<Member>>>,
    /// Woken when a seat becomes free, and for all when a node becomes routable.
    pub changed: Arc<Notify>,
    pub waiting: AtomicUsize,
    /// When a node of this service was attached last, in time since the process started.
    pub last_seen: Mutex<Option<Duration>>,
}

impl Pool {
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
    pub(super) fn take(
        self: &Arc<Self>,
        wanted: &Wanted<'_>,
        now: Duration,
        slots_cap: u32,
        chance: [u64; 2],
    ) -> Result<Seat, Nobody> {
        let members = self.members.lock();
        let mut known: Vec<f64> =
            members.iter().filter_map(|m| m.health.lock().latency.measured_ms()).collect();
        known.sort_by(f64::total_cmp);
        let median_ms = known.get(known.len() / 2).copied();
        let candidates: Vec<Candidate> =
            members.iter().map(|member| candidate(member, wanted, now, slots_cap, median_ms)).collect();
        let choice = choose(&candidates, wanted.payer, wanted.own_nodes, chance)?;
        let member = members[choice.index].clone();
        if choice.trial && !member.health.lock().breaker.begin_trial(now) {
            return Err(Nobody::Ejected);
        }
        if choice.degraded {
            metrics::counter!("cxmpute_degraded_picks_total", "service" => member.service.as_str().to_owned())
                .increment(1);
            tracing::warn!(provision = %member.node.session.provision_id, service = %member.service,
                "the last nodes of a service are faulty; work goes to one of them");
        }
        member.in_flight.fetch_add(1, Ordering::AcqRel);
        drop(members);
        Ok(Seat::new(member, self.clone(), choice.trial))
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

fn candidate(
    member: &Member,
    wanted: &Wanted<'_>,
    now: Duration,
    slots_cap: u32,
    median_ms: Option<f64>,
) -> Candidate {
    let session = &member.node.session;
    let tried = wanted.tried.iter().any(|(provision, epoch)| {
        *provision == session.provision_id && epoch.is_none_or(|epoch| epoch == session.epoch)
    });
    let ready = member.routable() && member.node.link.quiet() < DOUBTFUL;
    let (slots, foreign) = {
        let state = member.state.lock();
        (state.slots.min(slots_cap), state.foreign)
    };
    let health = member.health.lock();
    let gate: Gate = health.breaker.gate(now);
    let measured = health.latency.measured_ms().is_some();
    let latency_ms = median_ms.filter(|_| measured).map(|median| health.latency.value_ms(now, median));
    Candidate {
        owner: session.owner.clone(),
        tried,
        ready,
        gate,
        latency_ms,
        in_flight: member.in_flight.load(Ordering::Acquire),
        queued: foreign,
        slots,
        reliability: health.breaker.reliability(now),
        ramp: health.breaker.ramp(now),
    }
}
