//! A place on a node: booked when a request is routed, released when the attempt ends, exactly once (GR23).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cxmpute_market::assign::Demand;
use cxmpute_market::health::Sent;
use cxmpute_tunnel::Link;
use cxmpute_wire::{Epoch, Generation, ProvisionId, ServiceId, UserId};

use super::node::Member;
use super::pool::Pool;

/// A booked place. Dropping it releases the load; what the attempt taught about the node is told before.
#[derive(Debug)]
pub struct Seat {
    member: Arc<Member>,
    pool: Arc<Pool>,
    sent: Sent,
}

impl Seat {
    pub(super) fn new(member: Arc<Member>, pool: Arc<Pool>, sent: Sent) -> Self {
        Self { member, pool, sent }
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
        self.member.traits.slug.clone()
    }

    /// The first content came after this time.
    pub fn first_token(&self, after: Duration, now: Duration) {
        let mut health = self.member.health.lock();
        health.latency.observe(after, now);
        health.latencies.add(after.as_secs_f64() * 1000.0);
    }

    /// So many tokens of one answer came within this time.
    pub fn came(&self, tokens: u64, within: Duration, now: Duration) {
        self.pool.count(&Demand { units: tokens, ..Demand::default() });
        let mut health = self.member.health.lock();
        if let Some(rate) = health.rate.observe(tokens, within, now) {
            health.rates.add(rate);
        }
    }

    /// The attempt ended well.
    pub fn succeeded(&mut self, now: Duration) {
        let sent = self.told();
        {
            let mut health = self.member.health.lock();
            health.breaker.succeed(sent, now);
            health.last_good = Some(now);
        }
        self.member.show_breaker(now);
    }

    /// The attempt failed by the node's fault.
    pub fn failed(&mut self, now: Duration) {
        // P6: only probes decide.
        #[cfg(feature = "sabotage")]
        if self.pool.sabotage == Some(crate::sabotage::Sabotage::ProbeOnlyRouting) {
            return;
        }
        let sent = self.told();
        let opened = self.member.health.lock().breaker.fail(sent, now);
        if opened {
            metrics::counter!("cxmpute_ejections_total", "service" => self.service().as_str().to_owned())
                .increment(1);
            tracing::warn!(provision = %self.provision(), service = %self.service(),
                "a node failed too often and gets no work for a while");
        }
        self.member.show_breaker(now);
    }

    /// The node says that it has no room, or that its owner took it back: it is asked again a moment later, not by the next
    /// request. Its heartbeat will have told by then how it is.
    pub fn rests(&self, now: Duration) {
        /// A fraction of what a waiting request has.
        const FULL_FOR: Duration = Duration::from_millis(250);
        self.member.state.lock().full_until = now + FULL_FOR;
    }

    /// On which terms the work was sent; the outcome is told once.
    fn told(&mut self) -> Sent {
        std::mem::replace(&mut self.sent, Sent::Ordinary)
    }

    /// The tunnel was lost. All streams of one tunnel are one fault.
    pub fn lost(&mut self, now: Duration) {
        let epoch = self.epoch();
        let first = self.member.health.lock().lost_epoch.replace(epoch) != Some(epoch);
        if first {
            self.failed(now);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.member.in_flight.fetch_sub(1, Ordering::AcqRel);
        if self.sent == Sent::Trial {
            // The attempt said nothing about the node: the client left, or capacity refused.
            self.member.health.lock().breaker.forget_trial(Duration::ZERO);
        }
        self.pool.pump();
    }
}
