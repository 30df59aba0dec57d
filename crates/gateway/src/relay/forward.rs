//! One attempt: the work goes to a node, its events come back, are checked and sent on.

use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::time::Duration;

use cxmpute_tunnel::{Accepted, OpenError, WorkError, WorkHead, WorkStream};
use cxmpute_wire::openai::FinishReason;
use cxmpute_wire::{Code, Millis};
use tokio::time::Instant;

use super::bound::Bound;
use super::delivery::{Chunk, Undelivered};
use super::events::{EventCutter, EventReader, Piece};
use super::logprobs::Logprobs;
use super::retry::Fault;
use super::run::{Run, Served, Stop};
use super::watchdog::{Late, Watchdog};
use crate::error::ApiError;
use crate::fleet::Seat;
use crate::trace::Phase;

impl Run {
    /// Sends the work to the node of `seat` and relays its answer to the end.
    ///
    /// # Errors
    /// Why it stopped before the end.
    pub(super) async fn attempt(&mut self, seat: &mut Seat, number: u32) -> Result<(), Stop> {
        let began = self.app.clock.mono();
        self.so_far = self.job.nothing_yet();
        self.bound = Bound::new(self.job.choices);
        self.checkpoints.restart();
        self.cut_off = false;
        let outcome = Box::pin(self.exchange(seat, number, began)).await;
        if self.first_token.is_none() {
            self.node_time += self.app.clock.mono().saturating_sub(began);
        }
        outcome
    }

    async fn exchange(&mut self, seat: &mut Seat, number: u32, began: Duration) -> Result<(), Stop> {
        let head = self.work_head(seat, number);
        let mut stream = seat.link().open(&head, self.body.clone()).map_err(|error| match error {
            OpenError::Closed(_) | OpenError::Draining => Stop::Fault(Fault::Lost),
            OpenError::Full => Stop::Fault(Fault::Refused(Some(Code::CapacityFull))),
            OpenError::Head(_) => Stop::Internal(ApiError::internal(error)),
        })?;
        let (app, gone) = (self.app.clone(), self.gone.clone());
        let mut ended = pin!(async {
            tokio::select! {
                biased;
                () = gone.cancelled() => Stop::Client(Undelivered::Gone),
                () = app.tasks.hard_token().cancelled() => Stop::Draining,
            }
        });
        let accepted = self.accepted(seat, &mut stream, ended.as_mut()).await?;
        self.check_owner(seat, &head, &accepted)?;
        self.served = Some(Served {
            provision: seat.provision().clone(),
            owner: seat.owner().clone(),
            slug: seat.slug(),
            #[cfg(feature = "sabotage")]
            headers: match self.app.sabotage {
                Some(crate::sabotage::Sabotage::ProxyHeaders) => accepted.headers.clone(),
                _ => http::HeaderMap::new(),
            },
        });
        self.hold.accepted(seat.provision(), seat.owner(), number);
        self.pump(seat, stream, ended, began, head.max_bytes).await?;
        // Another tunnel may have taken over meanwhile; what came through this one late is not settled.
        self.check_owner(seat, &head, &accepted)
    }

    fn work_head(&self, seat: &Seat, number: u32) -> WorkHead {
        /// Bytes of content per token (GR section 9); the content itself is held to it in `SoFar`.
        const PER_TOKEN: u64 = 64;
        /// Tokens' worth of bytes that every answer may have.
        const BASE_TOKENS: u64 = 256;
        let tokens = self.job.limit.saturating_mul(self.job.choices as u64);
        // A token with its probability, as text and as a list of bytes; each likely token beside it takes as much.
        const PER_LOGPROB: u64 = 256;
        let listed = self.job.rules.logprobs.map_or(0, |top| (top as u64).saturating_add(2));
        // On the tunnel an event repeats id, model and field names around each token, about 250 bytes with our engines:
        // so many times the bound on content is the bound on bytes of the stream.
        const ENVELOPE: u64 = 8;
        WorkHead {
            request_id: self.job.request_id.clone(),
            attempt: number,
            epoch: seat.epoch(),
            service: seat.service().clone(),
            generation: seat.generation(),
            path: self.job.path(),
            deadline: Millis::from(self.total.saturating_duration_since(Instant::now())),
            max_tokens: self.job.limit,
            max_bytes: tokens
                .saturating_add(BASE_TOKENS)
                .saturating_mul(PER_TOKEN * ENVELOPE + listed * PER_LOGPROB),
        }
    }

    async fn accepted(
        &self,
        seat: &Seat,
        stream: &mut WorkStream,
        ended: Pin<&mut impl Future<Output = Stop>>,
    ) -> Result<Accepted, Stop> {
        let accept = self.app.config.relay.accept();
        // One timer for both deadlines.
        let until = (Instant::now() + accept).min(self.total);
        let answer = tokio::select! {
            biased;
            stop = ended => return Err(stop),
            answer = tokio::time::timeout_at(until, stream.accepted()) => answer,
        };
        match answer {
            Ok(Ok(accepted)) => Ok(accepted),
            Ok(Err(error)) => Err(Stop::Fault(before_accept(&error))),
            Err(_) if until == self.total => {
                count_late(Late::Total.label());
                Err(Stop::Deadline)
            }
            Err(_) => Err(Stop::Fault(not_accepted(seat, accept))),
        }
    }

    /// The acceptance must name this request and this tunnel, and the tunnel must still be the provision's newest;
    /// anything else is dropped and never settled, and an acceptance of other work is flagged.
    fn check_owner(&self, seat: &Seat, head: &WorkHead, accepted: &Accepted) -> Result<(), Stop> {
        #[cfg(feature = "sabotage")]
        if self.app.sabotage == Some(crate::sabotage::Sabotage::NoOwnerCheck) {
            return Ok(());
        }
        if accepted.request_id == head.request_id && accepted.epoch == head.epoch {
            // A tunnel that the provision replaced by a newer one is a lost tunnel, not a lie.
            return if seat.is_current() { Ok(()) } else { Err(Stop::Fault(Fault::Lost)) };
        }
        tracing::warn!(request_id = %head.request_id, provision = %seat.provision(), epoch = %head.epoch,
            named_epoch = %accepted.epoch, "an acceptance of other work was dropped");
        metrics::counter!("cxmpute_foreign_frames_total").increment(1);
        Err(Stop::Fault(Fault::Foreign))
    }

    async fn pump(
        &mut self,
        seat: &mut Seat,
        mut stream: WorkStream,
        mut ended: Pin<&mut impl Future<Output = Stop>>,
        began: Duration,
        max_bytes: u64,
    ) -> Result<(), Stop> {
        let relay = &self.app.config.relay;
        let first_token = relay.first_token_of(&self.job.model, || self.job.prompt_bound());
        let mut watchdog = Watchdog::new(first_token, relay.gap(), self.total);
        let mut cutter = EventCutter::new(relay.event_bytes);
        let mut pieces = VecDeque::new();
        let mut bytes = 0u64;
        let mut reader = EventReader::new(self.job.asked());
        #[cfg(feature = "sabotage")]
        let mut collected = Vec::new();
        loop {
            let next = tokio::select! {
                biased;
                stop = ended.as_mut() => return Err(stop),
                next = watchdog.guard(stream.chunk()) => next,
            };
            if let Err(late) = &next {
                count_late(late.label());
            }
            let chunk = match next {
                Err(Late::FirstToken) => return Err(Stop::Fault(Fault::FirstTokenTimeout)),
                Err(Late::Gap | Late::Rate) => return Err(Stop::Fault(Fault::Stalled)),
                Err(Late::Total) => return Err(Stop::Deadline),
                // All choices have ended, so nothing is missing but the end marker and the claim.
                Ok(Some(Err(_)) | None) if self.so_far.is_complete() => return Ok(()),
                Ok(Some(Err(error))) => return Err(Stop::Fault(after_accept(&error))),
                Ok(None) => return Err(Stop::Fault(Fault::Protocol)),
                Ok(Some(Ok(chunk))) => chunk,
            };
            #[cfg(feature = "sabotage")]
            let chunk = if self.app.sabotage == Some(crate::sabotage::Sabotage::CollectedEvents) {
                collected.extend_from_slice(&chunk);
                if collected.len() < 1024 && !collected.ends_with(b"data: [DONE]\n\n") {
                    continue;
                }
                std::mem::take(&mut collected).into()
            } else {
                chunk
            };
            bytes = bytes.saturating_add(chunk.len() as u64);
            if bytes > max_bytes {
                return self.cut_off(seat).await;
            }
            #[cfg(feature = "sabotage")]
            if self.app.sabotage == Some(crate::sabotage::Sabotage::BytePassThrough) && self.job.streamed() {
                self.announce();
                self.send(Chunk { bytes: chunk, mark: None }).await?;
                continue;
            }
            let read = cutter.push(&chunk, |data| reader.read(data, &mut pieces));
            while let Some(piece) = pieces.pop_front() {
                let done = matches!(piece, Piece::Done);
                if self.take(piece, seat, &mut watchdog, began).await? {
                    if done {
                        // The frame that ends the stream comes right behind the marker; dropped before it, the stream
                        // would be reset, which costs both ends more than to let it end.
                        stream.complete();
                        self.finished = Some(stream);
                    }
                    return Ok(());
                }
            }
            // Only now: what comes after the end must not matter, whether or not it comes in the same read (GR15).
            read.map_err(|_| Stop::Fault(Fault::Protocol))?;
            if self.job.streamed() && self.served.is_some() {
                self.checkpoints.look(&self.job, &self.so_far, &self.outlet, &self.hold).await;
            }
        }
    }

    /// Takes one piece in; true when the answer is complete.
    async fn take(
        &mut self,
        piece: Piece,
        seat: &mut Seat,
        watchdog: &mut Watchdog,
        began: Duration,
    ) -> Result<bool, Stop> {
        match piece {
            Piece::Text { choice, .. } | Piece::Tools { choice, .. } | Piece::Finish { choice, .. }
                if self.so_far.is_finished(choice) => {}
            Piece::Text { choice, text, logprobs } => {
                if self.is_ended_by(choice, &text, seat, began).await? {
                    return Ok(true);
                }
                self.take_text(choice, text, logprobs, seat, began).await?;
                watchdog.content();
                return self.check_length(choice, seat).await;
            }
            Piece::Tools { choice, calls } => {
                let said =
                    calls.iter().flat_map(|part| [part.name.as_deref().unwrap_or(""), &part.arguments]);
                if self.is_ended_by(choice, &said.collect::<String>(), seat, began).await? {
                    return Ok(true);
                }
                let keep = !self.job.streamed();
                let (job, so_far) = (&self.job, &mut self.so_far);
                let (calls, upto) = so_far
                    .add_calls(choice, calls, &job.rules, &job.request_id, keep)
                    .map_err(Stop::Fault)?;
                self.first_content(seat, began);
                if !keep {
                    self.open_choice(choice).await?;
                    let bytes = self.writer.tools(choice, calls);
                    self.send(Chunk { bytes, mark: Some((choice, upto)) }).await?;
                }
                watchdog.content();
                return self.check_length(choice, seat).await;
            }
            Piece::Finish { choice, reason } => {
                let reason = self.check_finish(choice, reason).await?;
                self.first_content(seat, began);
                self.finish_choice(choice, reason).await?;
                watchdog.content();
            }
            Piece::Claim(claim) => self.so_far.claim = Some(claim),
            Piece::Failed { code } => {
                // What the engine took and answered is not wrong any more.
                let code = code.filter(|code| code.status() != 400 || !self.so_far.has_content());
                return Err(Stop::Fault(Fault::reported(code)));
            }
            Piece::Done if self.so_far.is_complete() => return Ok(true),
            Piece::Done if self.so_far.has_content() => return Err(Stop::Fault(Fault::Protocol)),
            Piece::Done => return Err(Stop::Fault(Fault::Empty)),
        }
        Ok(false)
    }

    async fn take_text(
        &mut self,
        choice: usize,
        text: String,
        logprobs: Option<Box<Logprobs>>,
        seat: &Seat,
        began: Duration,
    ) -> Result<(), Stop> {
        let keep = !self.job.streamed();
        let mut logprobs = logprobs;
        if let Some(logprobs) = &mut logprobs {
            self.so_far.add_logprobs(choice, &text, logprobs, self.job.limit, keep).map_err(Stop::Fault)?;
        }
        // Probabilities without text are no content: nothing of them is billed.
        let upto = if text.is_empty() {
            None
        } else {
            self.first_content(seat, began);
            Some(self.so_far.add_text(choice, &text, keep))
        };
        if keep {
            return Ok(());
        }
        if upto.is_none() {
            self.first_content(seat, began);
        }
        self.open_choice(choice).await?;
        let bytes = match logprobs {
            None => self.writer.text(choice, &text),
            Some(logprobs) => self.writer.text_with(choice, text, *logprobs),
        };
        self.send(Chunk { bytes, mark: upto.map(|upto| (choice, upto)) }).await
    }

    /// Why a choice ended, in our words, after a look at what it came to (GR7).
    async fn check_finish(&mut self, choice: usize, reason: FinishReason) -> Result<FinishReason, Stop> {
        #[cfg(feature = "sabotage")]
        if self.app.sabotage == Some(crate::sabotage::Sabotage::UncheckedShape) {
            return Ok(reason);
        }
        let (text, calls) = self.so_far.made(choice);
        let reason = self.job.rules.finish(reason, !calls.is_empty()).map_err(Stop::Fault)?;
        if !matches!(reason, FinishReason::Length | FinishReason::ContentFilter) {
            self.job.rules.judge(text, calls).await.map_err(Stop::Fault)?;
        }
        Ok(reason)
    }

    fn first_content(&mut self, seat: &Seat, began: Duration) {
        if self.first_token.is_none() || (!self.relayed && !self.so_far.has_content()) {
            let now = self.app.clock.mono();
            let after = now.saturating_sub(began);
            seat.first_token(after, now);
            self.node_time += after;
            let since_arrival = now.saturating_sub(self.job.arrived);
            self.first_token = Some(since_arrival);
            self.app.telemetry.work.first_token(&self.job.model.id, since_arrival);
            self.phase.mark(Phase::FirstToken);
        }
        if self.job.streamed() && !self.relayed {
            self.announce();
        }
    }

    async fn open_choice(&mut self, choice: usize) -> Result<(), Stop> {
        if !self.so_far.open(choice) {
            return Ok(());
        }
        let repeated = self.job.repeated(choice).map(|prompt| self.writer.text(choice, prompt));
        if let Some(bytes) = self.writer.opening(choice).or(repeated) {
            self.send(Chunk { bytes, mark: None }).await?;
        }
        Ok(())
    }

    async fn finish_choice(&mut self, choice: usize, reason: FinishReason) -> Result<(), Stop> {
        if self.so_far.finish(choice, reason) && self.job.streamed() {
            self.open_choice(choice).await?;
            let bytes = self.writer.finish(choice, reason);
            self.send(Chunk { bytes, mark: None }).await?;
        }
        Ok(())
    }

    async fn send(&mut self, chunk: Chunk) -> Result<(), Stop> {
        self.outlet.send(chunk).await.map_err(Stop::Client)
    }

    /// Ends the answer before a piece that would make a choice longer than was asked for, or longer than the hold
    /// covers (MR14, P1); true when it did.
    async fn is_ended_by(
        &mut self,
        choice: usize,
        more: &str,
        seat: &mut Seat,
        began: Duration,
    ) -> Result<bool, Stop> {
        if self.bound.exceeded(&self.job, &self.so_far, choice, more) {
            self.cut_off(seat).await?;
            return Ok(true);
        }
        let extend = |more| super::admission::extend(&self.job, &self.hold, more);
        if self.bound.cover(&self.job, &self.so_far, (choice, more), &mut self.cover, extend).await {
            return Ok(false);
        }
        self.first_content(seat, began);
        self.end_all().await?;
        Ok(true)
    }

    /// Ends an answer that has come to as much as was asked for, or as the hold covers, in pieces; true when it did.
    async fn check_length(&mut self, choice: usize, seat: &mut Seat) -> Result<bool, Stop> {
        if self.so_far.is_overlong(choice, self.job.limit) {
            self.cut_off(seat).await?;
            return Ok(true);
        }
        if self.cover.exhausted && self.so_far.longest() >= self.cover.tokens {
            self.end_all().await?;
            return Ok(true);
        }
        Ok(false)
    }

    /// The node sent more than it was asked for: the answer ends here, and it counts against the node.
    async fn cut_off(&mut self, seat: &mut Seat) -> Result<(), Stop> {
        if !self.so_far.has_content() {
            return Err(Stop::Fault(Fault::Protocol));
        }
        tracing::warn!(request_id = %self.job.request_id, provision = %seat.provision(),
            "a node sent more than it was asked for and was cut off");
        seat.failed(self.app.clock.mono());
        self.cut_off = true;
        self.end_all().await
    }

    async fn end_all(&mut self) -> Result<(), Stop> {
        for choice in self.so_far.unfinished() {
            self.finish_choice(choice, FinishReason::Length).await?;
        }
        Ok(())
    }
}

/// Counts a deadline that passed, by the phase it belongs to.
pub(super) fn count_late(phase: &'static str) {
    metrics::counter!("cxmpute_deadlines_total", "phase" => phase).increment(1);
}

/// The node neither accepted nor refused within `waited`. Work on a tunnel that has shown no life since the work was
/// sent counts as never arrived.
pub(super) fn not_accepted(seat: &Seat, waited: Duration) -> Fault {
    count_late("accept");
    if seat.link().answered_within(waited) { Fault::AcceptTimeout } else { Fault::Lost }
}

pub(super) fn after_accept(error: &WorkError) -> Fault {
    match error {
        WorkError::Lost => Fault::Lost,
        WorkError::Reset(_) => Fault::Engine,
        WorkError::Refused { .. } | WorkError::Protocol(_) => Fault::Protocol,
    }
}

pub(super) fn before_accept(error: &WorkError) -> Fault {
    match error {
        WorkError::Lost => Fault::Lost,
        WorkError::Protocol(_) => Fault::Protocol,
        WorkError::Reset(_) => Fault::Refused(None),
        WorkError::Refused { status, code, .. } => {
            let wrong_request = matches!(
                code,
                Some(
                    Code::InvalidJson
                        | Code::InvalidParameter
                        | Code::UnsupportedParameter
                        | Code::ContextLengthExceeded
                )
            );
            match code {
                Some(code) if wrong_request => Fault::BadRequest(*code),
                None if *status == 400 => Fault::BadRequest(Code::InvalidParameter),
                code => Fault::Refused(*code),
            }
        }
    }
}
