//! A place on a node: booked when a request is routed, released when the attempt ends, exactly once (GR23).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cxmpute_tunnel::Link;
use cxmpute_wire::{Epoch, Generation, ProvisionId, ServiceId, UserId};

use super::node::Member;
use super::pool::Pool;

/// A booked place. Dropping it releases the load; what the attempt taught about the node is told before.
#[derive(Debug)]
pub struct Seat {
    member: Arc<Member>,
    pool: Arc<Pool>,
    trial: bool,
}

impl Seat {
    pub(super) fn new(member: Arc<Member>, pool: Arc<Pool>, trial: bool) -> Self {
        Self { member, pool, trial }
    }

    /// The tunnel.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.member.node.link
    }

    /// The provision.
    #[must_use]
    pub fn provision(&self) -> &ProvisionId {
        &self.member.node.session.provision_id
    }

    /// Its owner.
    #[must_use]
    pub fn owner(&self) -> &UserId {
        &self.member.node.session.owner
    }

    /// The tunnel's number.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.member.node.session.epoch
    }

    /// The desired state under which the service runs.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.member.node.generation()
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &ServiceId {
        &self.member.service
    }

    /// Whether this tunnel is still the provision's newest one: work of an older one is never settled.
    #[must_use]
    pub fn is_current(&self) -> bool {
        !self.member.node.superseded.is_cancelled()
    }

    /// The name of the node for clients: enough to tell nodes apart, useless to reach one.
    #[must_use]
    pub fn slug(&self) -> String {
        let id = self.provision().as_str();
        id.get(..13).unwrap_or(id).to_owned()
    }

    /// The first content came after this time.
    pub fn first_token(&self, after: Duration, now: Duration) {
        self.member.health.lock().latency.observe(after, now);
    }

    /// The attempt ended well.
    pub fn succeeded(&mut self, now: Duration) {
        self.member.health.lock().breaker.succeed(now);
        self.trial = false;
        self.show_breaker(now);
    }

    /// The attempt failed by the node's fault.
    pub fn failed(&mut self, now: Duration) {
        self.member.health.lock().breaker.fail(now);
        self.trial = false;
        self.show_breaker(now);
    }

    /// The tunnel was lost. All streams of one tunnel are one fault.
    pub fn lost(&mut self, now: Duration) {
        let epoch = self.epoch();
        let first = self.member.health.lock().lost_epoch.replace(epoch) != Some(epoch);
        if first {
            self.failed(now);
        }
    }

    fn show_breaker(&self, now: Duration) {
        use cxmpute_market::health::Gate;
        let open = match self.member.health.lock().breaker.gate(now) {
            Gate::Closed => 0.0,
            Gate::Trial | Gate::Trying => 0.5,
            Gate::Open { .. } => 1.0,
        };
        metrics::gauge!("cxmpute_breaker_open", "provision" => self.provision().as_str().to_owned(),
            "service" => self.service().as_str().to_owned())
        .set(open);
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.member.in_flight.fetch_sub(1, Ordering::AcqRel);
        if self.trial {
            // The attempt said nothing about the node: the client left, or capacity refused.
            self.member.health.lock().breaker.forget_trial(Duration::ZERO);
        }
        self.pool.changed.notify_one();
    }
}
