//! The end of a request: count once over what was relayed, settle, wait until that is durable, and only then let the
//! client see the end (MR24, GR12, DESIGN D3 and D5).

use std::time::Duration;

use bytes::Bytes;
use cxmpute_market::ledger::End;
use cxmpute_market::price::Units;
use cxmpute_store::Settled;
use cxmpute_wire::openai::{CompletionDetails, PromptDetails};
use cxmpute_wire::{Code, Millis};

use super::answer::{DONE, error_event};
use super::delivery::{Chunk, Undelivered};
use super::errand::Printed;
use super::retry::Fault;
use super::run::{Ended, Head, Run};
use super::usage::usage;
use crate::error::{ApiError, ApiResult};
use crate::meter::{Hold, MeterError, Settlement};
use crate::trace::{Key, Phase, Watch, reasons};

/// Time for the last words to a slow client once the process stops without waiting.
const LAST_WORDS: Duration = Duration::from_millis(250);

impl Run {
    /// Settles the request and tells the client how it ended.
    pub(super) async fn conclude(self, ended: Ended) {
        let ended = match ended {
            // What the client did not take yet, it must not pay for: wait until all of it is handed out.
            Ended::Finished { exhausted } if self.job.streamed() => {
                let hard = self.app.tasks.hard();
                tokio::select! {
                    biased;
                    drained = self.outlet.drained() => match drained {
                        Ok(()) => Ended::Finished { exhausted },
                        Err(undelivered) => Ended::Client(undelivered),
                    },
                    () = hard.cancelled() => Ended::Draining,
                }
            }
            Ended::Finished { .. } if self.gone.is_cancelled() => Ended::Client(Undelivered::Gone),
            other => other,
        };
        match ended {
            Ended::Finished { exhausted } => self.finish(exhausted).await,
            Ended::Client(undelivered) => self.abandon(undelivered).await,
            Ended::InStream(fault) => {
                let error = ApiError::new(fault.code_in_stream(), in_stream_text(fault.code_in_stream()));
                self.fail(End::ProviderLost, error).await;
            }
            Ended::Exhausted(fault) => {
                let error = exhausted_error(fault);
                self.fail(End::ProviderFailed, error).await;
            }
            Ended::Refused(error) => self.fail(End::Refused, error).await,
            Ended::Deadline => {
                let end = self.end_at_deadline();
                if end == End::ClientGone {
                    // What it has not got by now it does not get, and does not pay for.
                    self.outlet.withhold();
                }
                self.fail(end, late_error(end)).await;
            }
            Ended::Draining => {
                if self.relayed {
                    let text = "The gateway is shutting down; this answer is incomplete and costs nothing.";
                    self.fail(End::GatewayFault, ApiError::new(Code::GatewayDraining, text)).await;
                } else {
                    self.fail(End::Refused, ApiError::draining()).await;
                }
            }
        }
    }

    /// A complete answer.
    async fn finish(mut self, exhausted: bool) {
        let end = if exhausted { End::CreditsExhausted } else { End::Finished };
        let texts = self.so_far.take_billed();
        let units = match self.count(texts).await {
            Ok(units) => units,
            Err(error) => return self.fail(End::GatewayFault, error).await,
        };
        let meta = self.meta();
        let settlement = self.settlement(end, units);
        let Self { hold, head, mut outlet, writer, job, mut so_far, permit, .. } = self;
        let settled = settle(&job.watch, hold, settlement).await;
        drop(permit);
        match settled {
            Ok(settled) => {
                let mut usage = usage(&units, &job.model.price, &settled, exhausted);
                // The node's word, within what is possible; it changes no price.
                let cached = so_far.claim.map_or(0, |claim| claim.cached.min(units.prompt.0));
                usage.prompt_tokens_details = Some(PromptDetails {
                    cached_tokens: cached,
                    image_tokens: (job.pictures.count > 0 && job.counter.is_some())
                        .then_some(job.pictures.tokens),
                });
                usage.completion_tokens_details = Some(CompletionDetails::default());
                if job.streamed() {
                    if let Some(bytes) = writer.usage(usage) {
                        let _ = outlet.send(Chunk { bytes, mark: None }).await;
                    }
                    let _ = outlet.send(Chunk { bytes: Bytes::from_static(DONE), mark: None }).await;
                } else if let Some(head) = head {
                    let mut outputs = so_far.take_outputs();
                    for (choice, output) in outputs.iter_mut().enumerate() {
                        output.text.insert_str(0, job.repeated(choice).unwrap_or_default());
                    }
                    let printed =
                        Printed { bytes: writer.whole(outputs, usage), content_type: "application/json" };
                    let _ = head.send(Head::Whole(printed, meta));
                }
            }
            Err(error) => {
                tell(head, &mut outlet, &job.request_id, store_error(error)).await;
            }
        }
    }

    /// The client left, or was cut off: it pays for what its socket took, if a node had accepted the work.
    async fn abandon(mut self, undelivered: Undelivered) {
        #[cfg(feature = "sabotage")]
        if self.app.sabotage == Some(crate::sabotage::Sabotage::MeterAtStreamEnd) {
            return;
        }
        let end = match (&self.served, undelivered) {
            (None, _) => End::ClientGoneBeforeAccept,
            (Some(_), Undelivered::Gone) => End::ClientGone,
            (Some(_), Undelivered::Stalled) => End::StalledReader,
        };
        let counted = match end {
            End::ClientGoneBeforeAccept => Ok(Units::default()),
            #[cfg(feature = "sabotage")]
            _ if self.bills_undelivered() => {
                let texts = self.so_far.take_billed();
                self.count(texts).await
            }
            _ if !self.job.streamed() => self.count(Vec::new()).await,
            _ => self.count(self.so_far.billed(|choice| self.outlet.handed(choice))).await,
        };
        let (end, units) = match counted {
            Ok(units) => (end, units),
            Err(_) => (End::GatewayFault, Units::default()),
        };
        metrics::counter!("cxmpute_clients_gone_total", "end" => end.as_str()).increment(1);
        let settlement = self.settlement(end, units);
        if let Err(error) = settle(&self.job.watch, self.hold, settlement).await {
            tracing::error!(request_id = %self.job.request_id, %error, "an abandoned request was not settled");
        }
    }

    #[cfg(feature = "sabotage")]
    fn bills_undelivered(&self) -> bool {
        self.app.sabotage == Some(crate::sabotage::Sabotage::BillUndelivered)
    }

    /// Whose end a deadline is. One that the client set is like its leaving: what was handed to it is paid, and the prompt
    /// once a node had accepted it (MR30); else it could have any answer for nothing.
    pub(super) fn end_at_deadline(&self) -> End {
        if self.served.is_some() && self.job.hurries(self.app.config.relay.total()) {
            End::ClientGone
        } else if self.relayed {
            End::ProviderLost
        } else {
            End::ProviderFailed
        }
    }

    /// Nothing to pay, except after the client's own deadline; the client is told why.
    async fn fail(mut self, end: End, error: ApiError) {
        #[cfg(feature = "sabotage")]
        let end = if end == End::ProviderLost && self.bills_undelivered() { End::ClientGone } else { end };
        let counted = match end {
            // The provider is paid by the platform for what it delivered.
            #[cfg(feature = "sabotage")]
            End::ClientGone if self.bills_undelivered() => {
                let texts = self.so_far.take_billed();
                self.count(texts).await
            }
            End::GatewayFault | End::ClientGone => {
                self.count(self.so_far.billed(|choice| self.outlet.handed(choice))).await
            }
            _ => Ok(Units::default()),
        };
        let (end, units) = match counted {
            Ok(units) => (end, units),
            Err(_) => (End::GatewayFault, Units::default()),
        };
        let settlement = self.settlement(end, units);
        let Self { hold, head, mut outlet, job, app, permit, .. } = self;
        job.watch.fail(error.code);
        if let Err(cause) = settle(&job.watch, hold, settlement).await {
            tracing::error!(request_id = %job.request_id, error = %cause, "a failed request was not settled");
        }
        drop(permit);
        // The last words are for who listens; a process that stops does not wait for who does not.
        let hard = app.tasks.hard();
        tokio::select! {
            biased;
            () = tell(head, &mut outlet, &job.request_id, error) => {}
            () = async { hard.cancelled().await; tokio::time::sleep(LAST_WORDS).await } => {}
        }
    }

    /// Counts, long texts off the async threads.
    async fn count(&self, texts: Vec<String>) -> ApiResult<Units> {
        /// A text this short is counted sooner than another thread is woken for it.
        const SHORT: usize = 2 * 1024;
        let (job, prompt, covered) = (self.job.clone(), self.checkpoints.prompt(), self.cover.tokens);
        if self.body.len() + texts.iter().map(String::len).sum::<usize>() <= SHORT {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            return Ok(job.count(prompt, &texts, covered));
        }
        count_aside(move || {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            job.count(prompt, &texts, covered)
        })
        .await
    }

    fn settlement(&mut self, end: End, units: Units) -> Settlement {
        let claimed = self.so_far.claim.filter(|_| matches!(end, End::Finished | End::CreditsExhausted));
        let latency = self.app.clock.mono().saturating_sub(self.job.arrived);
        self.app.telemetry.work.ended(end, latency, &units);
        self.job.watch.describe(|fields| {
            fields.set(Key::Attempts, self.attempts.len() as u64);
            // Of an answer that nobody pays for, nothing was counted.
            if units != Units::default() {
                fields.set(Key::InputTokens, units.prompt.0);
                fields.set(Key::OutputTokens, units.completion.0);
            }
            if let Some(reason) = self.so_far.finish_reason() {
                fields.set(Key::FinishReasons, reasons(std::iter::once(reason.as_str())));
            }
        });
        if let Some(permit) = &self.permit {
            permit.use_tokens(units.prompt.0.saturating_add(units.completion.0));
        }
        Settlement {
            end,
            counted: units,
            claimed: claimed.and_then(|claim| self.job.claimed(claim.prompt, claim.completion, &units)),
            provision_id: self.served.as_ref().map(|served| served.provision.clone()),
            provider: self.served.as_ref().map(|served| served.owner.clone()),
            finish_reason: self.so_far.finish_reason().map(|reason| reason.as_str().to_owned()),
            attempts: std::mem::take(&mut self.attempts),
            first_token: self.first_token.map(Millis::from),
            latency: Some(Millis::from(latency)),
        }
    }
}

/// Counts off the async threads. What cannot be counted is not sold for nothing: it is a fault of ours, and it is said so
/// (MR58).
///
/// # Errors
/// The count panicked.
pub(super) async fn count_aside(count: impl FnOnce() -> Units + Send + 'static) -> ApiResult<Units> {
    tokio::task::spawn_blocking(count).await.map_err(|panic| {
        tracing::error!(%panic, "an answer could not be counted");
        ApiError::internal(panic)
    })
}

/// Resolves a hold, as a phase of the request's trace.
pub(super) async fn settle(watch: &Watch, hold: Hold, settlement: Settlement) -> Result<Settled, MeterError> {
    watch.describe(|fields| fields.set(Key::Outcome, settlement.end.as_str()));
    let mut phase = watch.open(Phase::Settle);
    let settled = hold.settle(settlement).await;
    if settled.is_err() {
        phase.fail(Code::StoreUnavailable);
    }
    settled
}

/// Tells the client of a failure: as a status while that is possible, else as the last event of its stream.
async fn tell(
    head: Option<tokio::sync::oneshot::Sender<Head>>,
    outlet: &mut super::delivery::Outlet,
    request_id: &cxmpute_wire::RequestId,
    error: ApiError,
) {
    let error = match head {
        Some(head) => match head.send(Head::Failed(error)) {
            Ok(()) => return,
            Err(Head::Failed(error)) => error,
            Err(_) => return,
        },
        None => error,
    };
    let bytes = error_event(&error.envelope(Some(request_id)));
    let _ = outlet.send(Chunk { bytes, mark: None }).await;
}

pub(super) fn store_error(error: MeterError) -> ApiError {
    ApiError::store_unavailable(error)
}

pub(super) fn in_stream_text(code: Code) -> &'static str {
    match code {
        Code::ProviderStalled => "The node stopped sending; this answer is incomplete and costs nothing.",
        Code::ProviderProtocolError => {
            "The node broke the protocol; this answer is incomplete and costs nothing."
        }
        _ => "The node was lost; this answer is incomplete and costs nothing.",
    }
}

/// The request's time was over.
pub(super) fn late_error(end: End) -> ApiError {
    ApiError::new(
        Code::DeadlineExceeded,
        match end {
            End::ClientGone => {
                "The request took longer than X-Cxmpute-Timeout-Ms; what was delivered until then is charged."
            }
            _ => "The request took longer than it may.",
        },
    )
}

/// Every attempt failed before the first content.
pub(super) fn exhausted_error(fault: Fault) -> ApiError {
    match fault {
        Fault::BadRequest(Code::ContextLengthExceeded) => {
            ApiError::new(Code::ContextLengthExceeded, "Prompt and answer do not fit the model's context.")
                .param("messages")
        }
        Fault::BadRequest(_) => {
            ApiError::new(Code::InvalidParameter, "The engine does not take this request.")
        }
        Fault::AcceptTimeout | Fault::FirstTokenTimeout | Fault::Stalled => {
            ApiError::new(Code::FirstTokenTimeout, "No node answered in time.").retry_after(1)
        }
        Fault::Withdrawn => {
            ApiError::no_provider("The owner of the node that served this took the machine back.")
        }
        _ => ApiError::new(Code::ProviderError, "Every node that was asked failed before it answered.")
            .retry_after(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_count_that_panics_is_a_fault_and_not_zero_units() {
        let counted = count_aside(|| panic!("a tokenizer broke")).await;
        assert_eq!(counted.unwrap_err().code.status(), 500);
        let units = Units { urls: 3, ..Units::default() };
        assert_eq!(count_aside(move || units).await.unwrap(), units);
    }
}
