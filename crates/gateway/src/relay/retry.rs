//! What an attempt's failure means: whose fault it is, and whether another node is asked (GR28, GR31, DESIGN D14).

use std::time::Duration;

use cxmpute_market::ledger::End;
use cxmpute_wire::{Code, Epoch, ProvisionId};

/// How an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The tunnel ended.
    Lost,
    /// The node said no before it accepted.
    Refused(Option<Code>),
    /// The node says the request itself is wrong.
    BadRequest(Code),
    /// The node neither accepted nor refused in time.
    AcceptTimeout,
    /// No content came in time.
    FirstTokenTimeout,
    /// Content stopped coming.
    Stalled,
    /// The engine failed after the node had accepted.
    Engine,
    /// The node's owner took the machine back after the node had accepted.
    Withdrawn,
    /// The node broke the protocol.
    Protocol,
    /// The acceptance named another request or an older tunnel.
    Foreign,
    /// The answer had neither content nor a proper end.
    Empty,
    /// The answer is not of the shape that was asked for (GR7).
    Schema,
}

impl Fault {
    /// What a node means that reports `code` after it accepted: an error event of a stream, or an error as the whole body.
    /// Nodes of older versions say `draining` where the owner took the machine back.
    #[must_use]
    pub const fn reported(code: Option<Code>) -> Self {
        match code {
            Some(Code::OwnerWithdrew | Code::Draining) => Self::Withdrawn,
            Some(code) if code.status() == 400 => Self::BadRequest(code),
            _ => Self::Engine,
        }
    }

    /// Whether it counts against the node (GR28, NR48): never what the client, capacity or the node's owner caused.
    #[must_use]
    pub const fn blames_node(self) -> bool {
        match self {
            Self::BadRequest(_) | Self::Withdrawn => false,
            Self::Refused(code) => !matches!(
                code,
                Some(
                    Code::QueueFull
                        | Code::CapacityFull
                        | Code::RateLimited
                        | Code::Draining
                        | Code::NotReady
                        | Code::OwnerWithdrew
                )
            ),
            _ => true,
        }
    }

    /// Whether the node only had no room.
    #[must_use]
    pub const fn is_lack_of_room(self) -> bool {
        matches!(self, Self::Refused(Some(Code::QueueFull | Code::CapacityFull | Code::RateLimited)))
    }

    /// Whether the node is left alone for a moment, though it is not to blame.
    #[must_use]
    pub const fn rests_node(self) -> bool {
        self.is_lack_of_room() || matches!(self, Self::Withdrawn)
    }

    /// The row of the abort table for this attempt alone.
    #[must_use]
    pub const fn end(self) -> End {
        match self {
            Self::Refused(_) | Self::BadRequest(_) | Self::AcceptTimeout => End::Refused,
            Self::Engine | Self::Empty => End::EngineFailed,
            _ => End::ProviderLost,
        }
    }

    /// The code for a client that already got content.
    #[must_use]
    pub const fn code_in_stream(self) -> Code {
        match self {
            Self::Stalled | Self::FirstTokenTimeout => Code::ProviderStalled,
            Self::Protocol | Self::Foreign | Self::Empty | Self::Schema => Code::ProviderProtocolError,
            _ => Code::ProviderLost,
        }
    }

    /// The code of the attempt's record.
    #[must_use]
    pub const fn code(self) -> Code {
        match self {
            Self::Lost => Code::ProviderLost,
            Self::Refused(Some(code)) | Self::BadRequest(code) => code,
            Self::Refused(None) => Code::NotReady,
            Self::AcceptTimeout | Self::FirstTokenTimeout => Code::FirstTokenTimeout,
            Self::Stalled => Code::ProviderStalled,
            Self::Engine => Code::EngineFailed,
            Self::Withdrawn => Code::OwnerWithdrew,
            Self::Protocol | Self::Foreign | Self::Empty | Self::Schema => Code::ProviderProtocolError,
        }
    }

    /// The label in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Refused(_) => "refused",
            Self::BadRequest(_) => "bad_request",
            Self::AcceptTimeout => "accept_timeout",
            Self::FirstTokenTimeout => "first_token_timeout",
            Self::Stalled => "stalled",
            Self::Engine => "engine",
            Self::Withdrawn => "withdrawn",
            Self::Protocol => "protocol",
            Self::Foreign => "foreign",
            Self::Empty => "empty",
            Self::Schema => "schema",
        }
    }
}

/// The bounds of the full-jitter wait before a retry (GR31).
const WAIT_MS: (u64, u64) = (25, 250);
/// No request is sent out more often than this, whatever happens to its nodes.
const ATTEMPTS: u32 = 12;

/// What to do after a failure before the first content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Ask another node at once.
    Now,
    /// Ask another node after this time.
    After(Duration),
    /// Give up.
    GiveUp,
}

/// What one request went through.
#[derive(Debug, Default)]
pub struct Trail {
    /// Nodes that failed: all their tunnels, or only the named one.
    pub tried: Vec<(ProvisionId, Option<Epoch>)>,
    /// Nodes that refused for lack of room; they may be asked again while the request waits.
    full: Vec<ProvisionId>,
    lost: Vec<ProvisionId>,
    retries: u32,
    attempts: u32,
    /// The failure that counts in the end.
    pub last: Option<Fault>,
}

impl Trail {
    /// Notes a failure and decides. `limit` is the number of retries, `budget` takes one out of the common budget,
    /// `chance` is drawn uniformly from all of `u64`.
    pub fn fail(
        &mut self,
        provision: &ProvisionId,
        epoch: Epoch,
        fault: Fault,
        limit: u32,
        chance: u64,
        budget: impl FnOnce() -> bool,
    ) -> Next {
        self.last = Some(fault);
        // Waiting for room is bounded by the queue's deadline instead.
        if !fault.is_lack_of_room() {
            self.attempts += 1;
        }
        if matches!(fault, Fault::BadRequest(_)) || self.attempts >= ATTEMPTS {
            return Next::GiveUp;
        }
        if fault == Fault::Lost && !self.lost.contains(provision) {
            // A node that lost its tunnel may serve again through its next one.
            self.lost.push(provision.clone());
            self.tried.push((provision.clone(), Some(epoch)));
            return Next::Now;
        }
        if matches!(fault, Fault::Refused(_)) {
            if fault.is_lack_of_room() {
                self.full.push(provision.clone());
            }
            self.tried.push((provision.clone(), None));
            return Next::Now;
        }
        if fault == Fault::Withdrawn {
            // As a refusal, only later: it says nothing about the others, so it costs nothing of the common budget.
            self.tried.push((provision.clone(), None));
            return Next::Now;
        }
        let whole = if fault == Fault::Lost { Some(epoch) } else { None };
        self.tried.push((provision.clone(), whole));
        if self.retries >= limit || !budget() {
            return Next::GiveUp;
        }
        self.retries += 1;
        let (least, most) = WAIT_MS;
        let span = (u128::from(chance) * u128::from(most - least + 1)) >> 64;
        Next::After(Duration::from_millis(least + u64::try_from(span).unwrap_or(0)))
    }

    /// The failure to tell when nobody was free for another attempt; none when the others were only busy.
    #[must_use]
    pub fn failure(&self, refusal: &crate::error::ApiError) -> Option<Fault> {
        self.last.filter(|fault| !fault.is_lack_of_room() && refusal.code != Code::QueueFull)
    }

    /// Lets nodes that only lacked room be asked again; false when there are none.
    pub fn forgive_full(&mut self) -> bool {
        let full = std::mem::take(&mut self.full);
        for provision in &full {
            self.tried.retain(|(tried, epoch)| tried != provision || epoch.is_some());
        }
        !full.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> ProvisionId {
        ProvisionId::from_tail(name)
    }

    fn fail(trail: &mut Trail, name: &str, fault: Fault, budget: bool) -> Next {
        trail.fail(&node(name), Epoch(1), fault, 2, u64::MAX, || budget)
    }

    #[test]
    fn a_lost_tunnel_is_redispatched_once_per_node_outside_the_budget() {
        let mut trail = Trail::default();
        assert_eq!(fail(&mut trail, "a", Fault::Lost, false), Next::Now);
        assert_eq!(fail(&mut trail, "b", Fault::Lost, false), Next::Now);
        assert_eq!(fail(&mut trail, "a", Fault::Lost, false), Next::GiveUp, "the second loss is a retry");
        assert!(matches!(fail(&mut trail, "a", Fault::Lost, true), Next::After(_)));
        assert_eq!(trail.tried[0], (node("a"), Some(Epoch(1))), "its next tunnel may serve");
    }

    #[test]
    fn time_outs_and_engine_errors_are_retried_twice_within_the_budget() {
        for fault in
            [Fault::AcceptTimeout, Fault::FirstTokenTimeout, Fault::Engine, Fault::Protocol, Fault::Empty]
        {
            let mut trail = Trail::default();
            assert_eq!(fail(&mut trail, "a", fault, true), Next::After(Duration::from_millis(250)));
            assert!(matches!(fail(&mut trail, "b", fault, true), Next::After(_)));
            assert_eq!(fail(&mut trail, "c", fault, true), Next::GiveUp, "three attempts in all");
            let mut trail = Trail::default();
            assert_eq!(fail(&mut trail, "a", fault, false), Next::GiveUp, "no budget, no retry");
        }
    }

    #[test]
    fn the_wait_stays_between_its_bounds() {
        for chance in [0, 1 << 40, u64::MAX / 2, u64::MAX] {
            let mut trail = Trail::default();
            let next = trail.fail(&node("a"), Epoch(1), Fault::Engine, 2, chance, || true);
            let Next::After(wait) = next else { panic!("{next:?}") };
            assert!((25..=250).contains(&wait.as_millis()));
        }
    }

    #[test]
    fn a_request_that_is_wrong_is_not_tried_elsewhere() {
        let mut trail = Trail::default();
        assert_eq!(fail(&mut trail, "a", Fault::BadRequest(Code::ContextLengthExceeded), true), Next::GiveUp);
        assert!(!Fault::BadRequest(Code::ContextLengthExceeded).blames_node());
    }

    #[test]
    fn work_that_an_owner_ended_goes_elsewhere_at_once_and_blames_nobody() {
        for code in [Code::OwnerWithdrew, Code::Draining] {
            assert_eq!(Fault::reported(Some(code)), Fault::Withdrawn, "{code}");
        }
        assert_eq!(Fault::reported(Some(Code::EngineFailed)), Fault::Engine);
        assert_eq!(Fault::reported(None), Fault::Engine);
        let wrong = Code::ContextLengthExceeded;
        assert_eq!(Fault::reported(Some(wrong)), Fault::BadRequest(wrong));
        let mut trail = Trail::default();
        for name in ["a", "b", "c", "d", "e"] {
            assert_eq!(fail(&mut trail, name, Fault::Withdrawn, false), Next::Now, "no budget is asked");
        }
        assert_eq!(trail.tried.len(), 5, "none of them gets it again");
        assert!(!Fault::Withdrawn.blames_node() && Fault::Withdrawn.rests_node());
        assert!(!Fault::Refused(Some(Code::OwnerWithdrew)).blames_node());
        let rounds =
            (0..100).take_while(|n| fail(&mut trail, &n.to_string(), Fault::Withdrawn, true) == Next::Now);
        assert!(rounds.count() < 20, "and it does not go round for ever");
    }

    #[test]
    fn a_full_node_is_asked_again_and_not_blamed() {
        let mut trail = Trail::default();
        let fault = Fault::Refused(Some(Code::CapacityFull));
        assert!(!fault.blames_node());
        assert_eq!(fail(&mut trail, "a", fault, false), Next::Now);
        assert_eq!(fail(&mut trail, "b", Fault::Lost, false), Next::Now);
        trail.forgive_full();
        assert_eq!(trail.tried, [(node("b"), Some(Epoch(1)))]);
    }

    #[test]
    fn no_request_goes_round_for_ever() {
        let mut trail = Trail::default();
        let many = (0..100).take_while(|n| {
            fail(&mut trail, &format!("n{n}"), Fault::Refused(Some(Code::NotReady)), true) != Next::GiveUp
        });
        assert!(many.count() < 20);
    }
}
