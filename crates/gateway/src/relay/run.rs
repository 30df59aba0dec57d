//! One request for text from its hold to its settlement: select → forward → events → retry, then count and settle.
//! It runs in a task of its own, not in the client's connection, so that whatever the client does, the money moves
//! exactly once (MR28).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_market::ledger::End;
use cxmpute_runtime::{CancellationToken, random};
use cxmpute_store::AttemptRecord;
use cxmpute_tunnel::WorkStream;
use cxmpute_wire::{Code, Epoch, Millis, ProvisionId, UserId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::move_over;
use super::answer::Writer;
use super::bound::{Bound, Cover};
use super::checkpoint::Checkpoints;
use super::delivery::{Outlet, Undelivered};
use super::errand::Printed;
use super::job::Job;
use super::retry::{Fault, Next, Trail};
use super::select::{NoSeat, Seeker, Until, find_seat};
use super::so_far::SoFar;
use crate::app::App;
use crate::error::ApiError;
use crate::fleet::{RunningRequest, Seat};
use crate::meter::Hold;
use crate::rates::Permit;
use crate::trace::{Key, Open, Phase};

/// What the request's task tells the client's connection, once.
#[derive(Debug)]
pub(super) enum Head {
    /// Content comes: answer 200 and stream.
    Stream(Meta),
    /// The whole answer, settled.
    Whole(Printed, Meta),
    /// Nothing was delivered.
    Failed(ApiError),
}

/// What the answer's headers say.
#[derive(Debug, Clone, Default)]
pub(super) struct Meta {
    /// Public name of the node.
    pub provider: Option<String>,
    /// Time the gateway itself took so far.
    pub overhead: Duration,
    /// The node's headers, for the known-bad variant that passes them on.
    #[cfg(feature = "sabotage")]
    pub headers: http::HeaderMap,
}

/// Who serves, or served, the attempt that counts.
#[derive(Debug, Clone)]
pub(super) struct Served {
    pub provision: ProvisionId,
    pub owner: UserId,
    pub slug: String,
    #[cfg(feature = "sabotage")]
    pub headers: http::HeaderMap,
}

/// Why an attempt stopped before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// The node failed.
    Fault(Fault),
    /// The client left or stopped reading.
    Client(Undelivered),
    /// The request's whole time is over.
    Deadline,
    /// This process stops now.
    Draining,
    /// A fault of our own.
    Internal(ApiError),
}

impl From<Undelivered> for Stop {
    fn from(undelivered: Undelivered) -> Self {
        Self::Client(undelivered)
    }
}

/// How a request ended, before it is settled.
#[derive(Debug)]
pub(super) enum Ended {
    /// The answer is complete; `exhausted` when the hold could not be extended any more.
    Finished {
        exhausted: bool,
    },
    Client(Undelivered),
    /// Every attempt failed before the first content.
    Exhausted(Fault),
    /// The node failed after content had been relayed.
    InStream(Fault),
    Refused(ApiError),
    Deadline,
    Draining,
}

/// One request on its way.
pub(super) struct Run {
    pub app: Arc<App>,
    pub user: UserId,
    /// Given back before the client hears of the end, so that its next request finds the place free.
    pub permit: Option<Arc<Permit>>,
    pub job: Arc<Job>,
    pub hold: Hold,
    pub body: Bytes,
    pub outlet: Outlet,
    pub gone: CancellationToken,
    pub writer: Writer,
    pub head: Option<oneshot::Sender<Head>>,
    /// End of the request's whole time.
    pub total: Instant,
    pub trail: Trail,
    pub attempts: Vec<AttemptRecord>,
    pub so_far: SoFar,
    pub bound: Bound,
    pub checkpoints: Checkpoints,
    /// The attempt that was accepted last, if it has not failed.
    pub served: Option<Served>,
    /// Content was sent on its way to a client that reads a stream.
    pub relayed: bool,
    pub first_token: Option<Duration>,
    /// Time spent waiting for nodes.
    pub node_time: Duration,
    pub cover: Cover,
    /// The attempt ended because its node sent more than it was asked for.
    pub cut_off: bool,
    /// The stream whose answer is complete, until the request is settled.
    pub finished: Option<WorkStream>,
    /// The attempt that runs, in the request's trace.
    pub phase: Open,
    pub _running: RunningRequest,
}

impl Run {
    /// Runs the request to its end, whatever that is.
    pub async fn run(mut self) {
        let ended = self.work().await;
        self.conclude(ended).await;
    }

    /// Serves the request by the first of its models that can.
    async fn work(&mut self) -> Ended {
        loop {
            self.app.fleet.count_request(&self.job.model.service);
            let ended = self.serve().await;
            let has_failed = match &ended {
                Ended::Exhausted(fault) => !matches!(fault, Fault::BadRequest(_)),
                Ended::Refused(error) => {
                    matches!(error.code, Code::NoProvider | Code::QueueFull | Code::ModelLoading)
                }
                _ => false,
            };
            if self.relayed || !has_failed || !self.fall_back().await {
                return ended;
            }
        }
    }

    /// Goes on to the next model of the request that fits and can be paid for; false when there is none. The hold is
    /// moved before any node hears of it.
    async fn fall_back(&mut self) -> bool {
        let mut job = self.job.clone();
        while let Some(mut next) = job.next_model() {
            job = Arc::new(next.clone());
            let Ok(body) = next.node_body(&self.app.cache_salt(&self.user)) else { continue };
            match move_over(next, &mut self.hold).await {
                Ok((moved, covered, prompt)) => {
                    metrics::counter!("cxmpute_fallbacks_total", "model" => moved.model.id.clone())
                        .increment(1);
                    self.checkpoints = Checkpoints::new(moved.choices, prompt);
                    self.so_far = moved.nothing_yet();
                    self.writer = moved.writer();
                    self.cover = Cover { tokens: covered, exhausted: false };
                    self.body = body;
                    self.trail = Trail::default();
                    self.job = moved;
                    return true;
                }
                Err(error) => {
                    tracing::debug!(request_id = %self.job.request_id, %error, "a model of the list was left out");
                }
            }
        }
        false
    }

    /// Serves the request by nodes of its model.
    async fn serve(&mut self) -> Ended {
        let relay = self.app.config.relay.clone();
        let mut queue_until = None;
        loop {
            let until = *queue_until.get_or_insert_with(|| (Instant::now() + relay.queue()).min(self.total));
            let mut seat = match self.find_seat(until).await {
                Ok(seat) => seat,
                Err(NoSeat::Gone) => return Ended::Client(Undelivered::Gone),
                Err(NoSeat::Draining) => return Ended::Draining,
                Err(NoSeat::Nobody(error)) => {
                    return match self.trail.failure(&error) {
                        Some(fault) => Ended::Exhausted(fault),
                        None => Ended::Refused(error),
                    };
                }
            };
            let began = Instant::now();
            let number = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX).saturating_add(1);
            self.phase = self.job.watch.open(Phase::Attempt);
            let outcome = self.attempt(&mut seat, number).await;
            if self.served.is_some() {
                queue_until = None;
            }
            let fault = match outcome {
                Ok(()) => {
                    if !self.cut_off {
                        let now = self.app.clock.mono();
                        seat.succeeded(now);
                        self.measure(&seat, now);
                    }
                    self.record(&seat, number, End::Finished, None, began);
                    return Ended::Finished { exhausted: self.cover.exhausted };
                }
                Err(Stop::Fault(fault)) => fault,
                Err(Stop::Client(undelivered)) => {
                    self.record(&seat, number, End::ClientGone, Some(Code::ClientClosed), began);
                    return Ended::Client(undelivered);
                }
                Err(Stop::Deadline) => {
                    let end = match self.end_at_deadline() {
                        End::ClientGone => End::ClientGone,
                        _ => End::ProviderLost,
                    };
                    self.record(&seat, number, end, Some(Code::DeadlineExceeded), began);
                    return Ended::Deadline;
                }
                Err(Stop::Draining) => {
                    self.record(&seat, number, End::GatewayFault, Some(Code::Draining), began);
                    return Ended::Draining;
                }
                Err(Stop::Internal(error)) => return Ended::Refused(error),
            };
            self.blame(&mut seat, fault);
            self.record(&seat, number, fault.end(), Some(fault.code()), began);
            let (provision, epoch) = (seat.provision().clone(), seat.epoch());
            drop(seat);
            if self.relayed {
                return Ended::InStream(fault);
            }
            // A failed attempt costs nobody anything, so what follows counts from nothing.
            self.served = None;
            match self.decide(&provision, epoch, fault) {
                Next::Now => {}
                Next::After(wait) => {
                    tokio::select! {
                        () = self.gone.cancelled() => return Ended::Client(Undelivered::Gone),
                        () = tokio::time::sleep_until((Instant::now() + wait).min(self.total)) => {}
                    }
                }
                Next::GiveUp => return Ended::Exhausted(fault),
            }
            if Instant::now() >= self.total {
                return Ended::Deadline;
            }
        }
    }

    async fn find_seat(&mut self, until: Instant) -> Result<Seat, NoSeat> {
        let seeker = Seeker::new(&self.job.model, &self.user, &self.job.wishes)
            .with_alternative(!self.job.alternatives.is_empty());
        let until = Until { deadline: until, gone: &self.gone, hard: self.app.tasks.hard_token() };
        let mut phase = self.job.watch.open(Phase::Queue);
        let found = find_seat(&self.app.fleet, seeker, &mut self.trail, until).await;
        if let Err(NoSeat::Nobody(error)) = &found {
            phase.fail(error.code);
        }
        found
    }

    fn decide(&mut self, provision: &ProvisionId, epoch: Epoch, fault: Fault) -> Next {
        let chance = u64::from_le_bytes(random::bytes::<8>());
        // Without fallbacks, and without an order of nodes, the first node is the only one.
        let wishes = &self.job.wishes;
        let only_one = wishes.no_fallbacks && wishes.order.is_empty();
        let limit = if only_one { 0 } else { self.app.config.relay.retries };
        let budget = || self.app.fleet.take_retry(&self.job.model.service);
        let next = self.trail.fail(provision, epoch, fault, limit, chance, budget);
        let kind = match next {
            Next::Now => "redispatch",
            Next::After(_) => "retry",
            Next::GiveUp => "give_up",
        };
        metrics::counter!("cxmpute_attempts_failed_total", "fault" => fault.label(), "next" => kind)
            .increment(1);
        next
    }

    /// Tokens per second of a complete answer. A piece is at least a token, and time in which the client was waited for
    /// is not the node's.
    fn measure(&self, seat: &Seat, now: Duration) {
        let Some(first) = self.first_token else { return };
        let since_first = now.saturating_sub(self.job.arrived).saturating_sub(first);
        let within = since_first.saturating_sub(self.outlet.waited());
        seat.came(self.so_far.longest().saturating_sub(1), within, now);
    }

    fn blame(&self, seat: &mut Seat, fault: Fault) {
        let now = self.app.clock.mono();
        tracing::debug!(request_id = %self.job.request_id, provision = %seat.provision(), fault = fault.label(),
            "an attempt failed");
        if fault == Fault::Lost {
            seat.lost(now);
        } else if fault.blames_node() {
            seat.failed(now);
        } else if fault.rests_node() {
            seat.rests(now);
        }
    }

    fn record(&mut self, seat: &Seat, number: u32, outcome: End, code: Option<Code>, began: Instant) {
        self.app.telemetry.work.attempt(outcome);
        end_attempt(&mut self.phase, seat, number, outcome, code);
        let total = Some(Millis::from(began.elapsed()));
        self.attempts.push(AttemptRecord {
            attempt: number,
            provision_id: seat.provision().clone(),
            epoch: seat.epoch(),
            outcome,
            code: code.map(|code| code.as_str().to_owned()),
            accept: None,
            first_token: self.first_token.map(Millis::from).filter(|_| outcome == End::Finished),
            total,
        });
    }

    /// Tells the client's connection to answer 200, at the first content of a stream.
    pub(super) fn announce(&mut self) {
        self.relayed = true;
        let meta = self.meta();
        if let Some(head) = self.head.take() {
            // A connection that did not want to wait any longer has answered by itself.
            let _ = head.send(Head::Stream(meta));
        }
    }

    pub(super) fn meta(&self) -> Meta {
        let since = self.app.clock.mono().saturating_sub(self.job.arrived);
        Meta {
            provider: self.served.as_ref().map(|served| served.slug.clone()),
            overhead: since.saturating_sub(self.node_time),
            #[cfg(feature = "sabotage")]
            headers: self.served.as_ref().map(|served| served.headers.clone()).unwrap_or_default(),
        }
    }
}

/// Ends the attempt in the request's trace.
pub(super) fn end_attempt(phase: &mut Open, seat: &Seat, number: u32, outcome: End, code: Option<Code>) {
    phase.describe(|fields| {
        fields.set(Key::AttemptNumber, u64::from(number));
        fields.set(Key::Provision, seat.provision().as_str().to_owned());
        fields.set(Key::Outcome, outcome.as_str());
    });
    if let Some(code) = code {
        phase.fail(code);
    }
    phase.end();
}
