//! One errand from its hold to its settlement: select → the node → check → settle → the client. It runs in a task of its
//! own, not in the client's connection, so that whatever the client does, the money moves exactly once (MR28).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_market::ledger::End;
use cxmpute_market::price::Units;
use cxmpute_runtime::{CancellationToken, random};
use cxmpute_store::AttemptRecord;
use cxmpute_tunnel::{OpenError, WorkHead};
use cxmpute_wire::{Code, Millis, UserId};
use tokio::time::Instant;

use super::super::delivery::Undelivered;
use super::super::forward;
use super::super::retry::{Fault, Next, Trail};
use super::super::run::{Head, Meta, end_attempt};
use super::super::select::{NoSeat, Seeker, Until, find_seat};
use super::super::settle::{count_aside, exhausted_error, in_stream_text, late_error, settle, store_error};
use super::{Errand, Incoming, Job, Misread, Outflow};
use crate::app::App;
use crate::error::ApiError;
use crate::fleet::{RunningRequest, Seat};
use crate::meter::{Hold, Settlement};
use crate::rates::Permit;
use crate::room::Share;
use crate::trace::{Key, Open, Phase};

/// One errand on its way.
pub(super) struct Carry<E> {
    app: Arc<App>,
    user: UserId,
    permit: Option<Arc<Permit>>,
    job: Arc<Job<E>>,
    body: Bytes,
    gone: CancellationToken,
    total: Instant,
    trail: Trail,
    attempts: Vec<AttemptRecord>,
    node_time: Duration,
    /// Who accepted the attempt that is running.
    accepted: std::sync::OnceLock<(cxmpute_wire::ProvisionId, UserId)>,
    phase: Open,
    _running: RunningRequest,
}

enum Stop {
    Fault(Fault),
    Client(Undelivered),
    Deadline,
    Draining,
    Internal(ApiError),
}

enum Ended<A> {
    Finished(Seat, A, Share),
    /// The client left or stopped reading, or the deadline that it set passed, of which it is told.
    Abandoned(Undelivered, Option<ApiError>),
    Failed(End, ApiError),
}

impl<E: Errand> Carry<E> {
    pub(super) fn new(
        app: Arc<App>,
        user: UserId,
        permit: Option<Arc<Permit>>,
        job: Arc<Job<E>>,
        body: Bytes,
        gone: CancellationToken,
        total: Instant,
    ) -> Self {
        Self {
            _running: app.fleet.begin_request(),
            app,
            user,
            permit,
            job,
            body,
            gone,
            total,
            trail: Trail::default(),
            attempts: Vec::new(),
            node_time: Duration::ZERO,
            accepted: std::sync::OnceLock::new(),
            phase: Open::default(),
        }
    }

    pub(super) async fn run(mut self, hold: Hold, exact: Option<Units>, mut out: Outflow) {
        let ended = match self.work(&hold, &mut out).await {
            // What the client did not take yet is not delivered.
            Ended::Finished(seat, answer, share) if out.begun().is_some() => {
                let hard = self.app.tasks.hard();
                tokio::select! {
                    biased;
                    drained = out.drained() => match drained {
                        Ok(()) => Ended::Finished(seat, answer, share),
                        Err(undelivered) => Ended::Abandoned(undelivered, None),
                    },
                    () = hard.cancelled() => Ended::Failed(End::GatewayFault, ApiError::draining()),
                }
            }
            ended => ended,
        };
        let first = out.begun().map(|at| self.since_arrival(at));
        let latency = self.app.clock.mono().saturating_sub(self.job.ticket.arrived);
        let watch = self.job.ticket.watch.clone();
        watch.describe(|fields| fields.set(Key::Attempts, self.attempts.len() as u64));
        let mut settlement = Settlement {
            attempts: std::mem::take(&mut self.attempts),
            first_token: first.map(Millis::from),
            latency: Some(Millis::from(latency)),
            ..Settlement::none(End::Refused)
        };
        let (seat, answer, share) = match ended {
            Ended::Finished(seat, answer, share) => (seat, answer, share),
            Ended::Abandoned(why, late) => return self.abandon((hold, out), settlement, why, late).await,
            Ended::Failed(end, error) => return self.fail((hold, out), settlement, (end, error)).await,
        };
        let exact = match exact {
            Some(units) => Ok(units),
            None => {
                let job = self.job.clone();
                count_aside(move || job.errand.count()).await
            }
        };
        let exact = match exact {
            Ok(units) => units,
            Err(error) => return self.fail((hold, out), settlement, (End::GatewayFault, error)).await,
        };
        let errand = &self.job.errand;
        let counted = errand.delivered(exact, &answer);
        settlement.end = End::Finished;
        settlement.counted = counted;
        settlement.claimed = errand.claimed(&counted, &answer);
        settlement.provision_id = Some(seat.provision().clone());
        settlement.provider = Some(seat.owner().clone());
        let meta = self.meta(&seat);
        drop(seat);
        let tokens = errand.tokens(&counted);
        if tokens > 0 {
            watch.describe(|fields| fields.set(Key::InputTokens, tokens));
        }
        let settled = settle(&watch, hold, settlement).await;
        if let Some(permit) = self.permit.take() {
            permit.use_tokens(tokens);
        }
        let answer = match settled {
            Ok(settled) => {
                let printed = errand.print(&self.job.ticket, answer, &counted, &settled);
                Head::Whole(printed.holding(share), meta)
            }
            Err(error) => Head::Failed(store_error(error)),
        };
        out.conclude(answer, &self.job.ticket.request_id).await;
    }

    /// How long after its arrival something of the request happened.
    fn since_arrival(&self, at: Instant) -> Duration {
        let now = self.app.clock.mono().saturating_sub(self.job.ticket.arrived);
        now.saturating_sub(at.elapsed())
    }

    /// Puts what the accepted input is worth into the settlement, where it is what is priced; false where nothing is.
    fn owe(&self, settlement: &mut Settlement) -> bool {
        let input = self.job.errand.abandoned();
        let Some((provision, owner)) = self.accepted.get().filter(|_| input != Units::default()) else {
            return false;
        };
        settlement.counted = input;
        settlement.provision_id = Some(provision.clone());
        settlement.provider = Some(owner.clone());
        true
    }

    /// Nothing to pay; the client is told why.
    async fn fail(
        mut self,
        (hold, out): (Hold, Outflow),
        mut settlement: Settlement,
        (end, error): (End, ApiError),
    ) {
        settlement.end = end;
        if end == End::GatewayFault && out.begun().is_some() {
            self.owe(&mut settlement);
        }
        if let Err(cause) = settle(&self.job.ticket.watch, hold, settlement).await {
            let request_id = &self.job.ticket.request_id;
            tracing::error!(%request_id, error = %cause, "a failed request was not settled");
        }
        drop(self.permit.take());
        out.conclude(Head::Failed(error), &self.job.ticket.request_id).await;
    }

    /// The client left, or did not want to wait any longer. What is priced by its input is paid once a node had accepted
    /// it; the rest pays only what is delivered, and nothing was (MR31).
    async fn abandon(
        mut self,
        (hold, out): (Hold, Outflow),
        mut settlement: Settlement,
        why: Undelivered,
        late: Option<ApiError>,
    ) {
        settlement.end = match (self.owe(&mut settlement), why) {
            (true, Undelivered::Gone) => End::ClientGone,
            (true, Undelivered::Stalled) => End::StalledReader,
            (false, _) if late.is_some() => End::ProviderFailed,
            (false, _) => End::ClientGoneBeforeAccept,
        };
        #[cfg(feature = "sabotage")]
        self.bill_undelivered(&mut settlement);
        if let Err(error) = settle(&self.job.ticket.watch, hold, settlement).await {
            let request_id = &self.job.ticket.request_id;
            tracing::error!(%request_id, %error, "an abandoned request was not settled");
        }
        drop(self.permit.take());
        if let Some(late) = late {
            out.conclude(Head::Failed(late), &self.job.ticket.request_id).await;
        }
    }

    #[cfg(feature = "sabotage")]
    fn bill_undelivered(&self, settlement: &mut Settlement) {
        if self.app.sabotage == Some(crate::sabotage::Sabotage::BillUndelivered)
            && let Some(attempt) = settlement.attempts.last()
        {
            settlement.end = End::ClientGone;
            settlement.counted = self.job.errand.count();
            settlement.provision_id = Some(attempt.provision_id.clone());
            settlement.provider = Some(self.user.clone());
        }
    }

    async fn work(&mut self, hold: &Hold, out: &mut Outflow) -> Ended<E::Answer> {
        let relay = self.app.config.relay.clone();
        self.app.fleet.count_request(&self.job.ticket.model.service);
        loop {
            let until = (Instant::now() + relay.queue()).min(self.total);
            let seeker = Seeker::new(&self.job.ticket.model, &self.user, &self.job.ticket.wishes);
            let hard = self.app.tasks.hard();
            let until = Until { deadline: until, gone: &self.gone, hard: &hard };
            let mut phase = self.job.ticket.watch.open(Phase::Queue);
            let found = find_seat(&self.app.fleet, seeker, &mut self.trail, until).await;
            if let Err(NoSeat::Nobody(error)) = &found {
                phase.fail(error.code);
            }
            drop(phase);
            let mut seat = match found {
                Ok(seat) => seat,
                Err(NoSeat::Gone) => return Ended::Abandoned(Undelivered::Gone, None),
                Err(NoSeat::Draining) => return Ended::Failed(End::Refused, ApiError::draining()),
                Err(NoSeat::Nobody(error)) => {
                    return match self.trail.failure(&error) {
                        Some(fault) => Ended::Failed(End::ProviderFailed, exhausted_error(fault)),
                        None => Ended::Failed(End::Refused, error),
                    };
                }
            };
            let began = Instant::now();
            let number = u32::try_from(self.attempts.len()).unwrap_or(u32::MAX).saturating_add(1);
            self.phase = self.job.ticket.watch.open(Phase::Attempt);
            out.meta = self.meta(&seat);
            let outcome = Box::pin(self.attempt(&seat, number, hold, out)).await;
            self.node_time += began.elapsed();
            let now = self.app.clock.mono();
            let fault = match outcome {
                Ok((answer, share)) => {
                    let first =
                        out.begun().map_or_else(|| began.elapsed(), |at| at.saturating_duration_since(began));
                    seat.first_token(first, now);
                    seat.succeeded(now);
                    self.record(&seat, number, End::Finished, None, began);
                    return Ended::Finished(seat, answer, share);
                }
                Err(Stop::Fault(fault)) => fault,
                Err(Stop::Client(undelivered)) => {
                    self.record(&seat, number, End::ClientGone, Some(Code::ClientClosed), began);
                    return Ended::Abandoned(undelivered, None);
                }
                Err(Stop::Deadline) => {
                    let hurried = self.job.ticket.hurried && self.accepted.get().is_some();
                    let end = match out.begun() {
                        _ if hurried => End::ClientGone,
                        Some(_) => End::ProviderLost,
                        None => End::ProviderFailed,
                    };
                    self.record(&seat, number, end, Some(Code::DeadlineExceeded), began);
                    return match late_error(end) {
                        error if hurried => Ended::Abandoned(Undelivered::Gone, Some(error)),
                        error => Ended::Failed(end, error),
                    };
                }
                Err(Stop::Draining) => {
                    let end = if out.begun().is_some() { End::GatewayFault } else { End::Refused };
                    return Ended::Failed(end, ApiError::draining());
                }
                Err(Stop::Internal(error)) => {
                    let end = if out.begun().is_some() { End::GatewayFault } else { End::Refused };
                    return Ended::Failed(end, error);
                }
            };
            // Who failed is owed nothing, also when the client leaves before the next attempt.
            self.accepted = std::sync::OnceLock::new();
            if fault == Fault::Lost {
                seat.lost(now);
            } else if fault.blames_node() {
                seat.failed(now);
            } else if fault.rests_node() {
                seat.rests(now);
            }
            self.record(&seat, number, fault.end(), Some(fault.code()), began);
            // What has left cannot be said again by another node.
            if out.begun().is_some() {
                let code = fault.code_in_stream();
                return Ended::Failed(End::ProviderLost, ApiError::new(code, in_stream_text(code)));
            }
            let chance = u64::from_le_bytes(random::bytes::<8>());
            let next = self.trail.fail(seat.provision(), seat.epoch(), fault, relay.retries, chance, || {
                self.app.fleet.take_retry(&self.job.ticket.model.service)
            });
            drop(seat);
            match next {
                Next::Now => {}
                Next::After(wait) => tokio::select! {
                    () = self.gone.cancelled() => return Ended::Abandoned(Undelivered::Gone, None),
                    () = tokio::time::sleep(wait) => {}
                },
                Next::GiveUp => return Ended::Failed(End::ProviderFailed, exhausted_error(fault)),
            }
        }
    }

    /// What is known of the way before a node has answered.
    fn meta(&self, seat: &Seat) -> Meta {
        let so_far = self.app.clock.mono().saturating_sub(self.job.ticket.arrived);
        Meta {
            provider: Some(seat.slug()),
            overhead: so_far.saturating_sub(self.node_time),
            #[cfg(feature = "sabotage")]
            headers: http::HeaderMap::new(),
        }
    }

    async fn attempt(
        &self,
        seat: &Seat,
        number: u32,
        hold: &Hold,
        out: &mut Outflow,
    ) -> Result<(E::Answer, Share), Stop> {
        let max_bytes = self.job.errand.max_bytes();
        let head = WorkHead {
            request_id: self.job.ticket.request_id.clone(),
            attempt: number,
            epoch: seat.epoch(),
            service: seat.service().clone(),
            generation: seat.generation(),
            path: self.job.errand.path(),
            deadline: Millis::from(self.total.saturating_duration_since(Instant::now())),
            max_tokens: 0,
            max_bytes,
        };
        let mut stream = seat.link().open(&head, self.body.clone()).map_err(|error| match error {
            OpenError::Closed(_) | OpenError::Draining => Stop::Fault(Fault::Lost),
            OpenError::Full => Stop::Fault(Fault::Refused(Some(Code::CapacityFull))),
            OpenError::Head(_) => Stop::Internal(ApiError::internal(error)),
        })?;
        let hard = self.app.tasks.hard();
        let exchange = async {
            let accepted = match tokio::time::timeout(self.app.config.relay.accept(), stream.accepted()).await
            {
                Ok(Ok(accepted)) => accepted,
                Ok(Err(error)) => return Err(Stop::Fault(forward::before_accept(&error))),
                Err(_) => {
                    return Err(Stop::Fault(forward::not_accepted(seat, self.app.config.relay.accept())));
                }
            };
            let ours =
                accepted.request_id == head.request_id && accepted.epoch == head.epoch && seat.is_current();
            #[cfg(feature = "sabotage")]
            let ours = ours || self.app.sabotage == Some(crate::sabotage::Sabotage::NoOwnerCheck);
            if !ours {
                tracing::warn!(request_id = %head.request_id, provision = %seat.provision(),
                    "an acceptance of other work, or of an older tunnel, was dropped");
                metrics::counter!("cxmpute_foreign_frames_total").increment(1);
                return Err(Stop::Fault(Fault::Foreign));
            }
            hold.accepted(seat.provision(), seat.owner(), number);
            let _ = self.accepted.set((seat.provision().clone(), seat.owner().clone()));
            let mut node = Incoming::new(&mut stream, max_bytes, &self.app.room);
            match self.job.errand.receive(&self.app, &mut node, out).await {
                Ok(answer) => Ok((answer, node.share())),
                Err(Misread::Node(fault)) => Err(Stop::Fault(fault)),
                Err(Misread::Ours(error)) => Err(Stop::Internal(error)),
                Err(Misread::Client(undelivered)) => Err(Stop::Client(undelivered)),
            }
        };
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(Stop::Client(Undelivered::Gone)),
            () = hard.cancelled() => Err(Stop::Draining),
            () = tokio::time::sleep_until(self.total) => {
                forward::count_late("total");
                Err(Stop::Deadline)
            }
            outcome = exchange => outcome,
        }
    }

    fn record(&mut self, seat: &Seat, number: u32, outcome: End, code: Option<Code>, began: Instant) {
        self.app.telemetry.work.attempt(outcome);
        end_attempt(&mut self.phase, seat, number, outcome, code);
        self.attempts.push(AttemptRecord {
            attempt: number,
            provision_id: seat.provision().clone(),
            epoch: seat.epoch(),
            outcome,
            code: code.map(|code| code.as_str().to_owned()),
            accept: None,
            first_token: None,
            total: Some(Millis::from(began.elapsed())),
        });
    }
}
