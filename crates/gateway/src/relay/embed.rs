//! Embeddings: one JSON body each way, checked number by number, settled before the answer.

use std::sync::Arc;
use std::time::Duration;

use axum::response::Response;
use bytes::Bytes;
use cxmpute_market::catalogue::ModelEntry;
use cxmpute_market::ledger::End;
use cxmpute_market::price::Units;
use cxmpute_market::wish::Wishes;
use cxmpute_runtime::{CancellationToken, random};
use cxmpute_store::AttemptRecord;
use cxmpute_tokens::TokenCounter;
use cxmpute_tunnel::{OpenError, WorkHead, WorkPath};
use cxmpute_wire::openai::{EmbeddingInput, EmbeddingRequest, EncodingFormat};
use cxmpute_wire::{Code, Millis, RequestId, Tokens, UserId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::{price_of, refusal};
use super::respond::{lost_task, whole};
use super::retry::{Fault, Next, Trail};
use super::run::{Head, Meta, end_attempt};
use super::select::{NoSeat, Seeker, Until, find_seat};
use super::settle::{exhausted_error, settle, store_error, usage};
use super::vectors::{Vectors, print, read};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, ApiResult};
use crate::fleet::{RunningRequest, Seat};
use crate::limits::INPUT_TOKENS;
use crate::meter::{Admission, AdmitError, Hold, Settlement};
use crate::rates::Permit;
use crate::trace::{Key, Open, Phase, Watch};

/// Bytes that one number of a vector may take in JSON.
const PER_NUMBER: u64 = 32;
/// Bytes around the vectors.
const ENVELOPE: u64 = 64 * 1024;

/// A checked request for embeddings.
#[derive(Debug)]
pub struct EmbedJob {
    /// Made at the edge.
    pub request_id: RequestId,
    /// The request's trace.
    pub watch: Watch,
    /// When the request arrived.
    pub arrived: Duration,
    /// The request.
    pub request: EmbeddingRequest,
    /// The model that answers.
    pub model: Arc<ModelEntry>,
    /// What is wished for of the nodes.
    pub wishes: Arc<Wishes>,
    /// The model's tokenizer.
    pub counter: Option<TokenCounter>,
    /// Label of the calling application.
    pub title: Option<String>,
    /// Address of the calling application.
    pub referer: Option<String>,
    /// The time the client gives the request, if it is shorter than ours.
    pub timeout: Option<Duration>,
}

impl EmbedJob {
    fn texts(&self) -> &[String] {
        self.request.input.texts()
    }

    /// At most so many units, without tokenizing: a token is at least one byte, and a few marks stand around a text.
    fn bound(&self) -> Units {
        const MARKS: usize = 8;
        let context = self.model.context_length.0;
        let of_text = |text: &String| {
            let bytes = (text.len() + MARKS) as u64;
            if context > 0 { bytes.min(context) } else { bytes }
        };
        self.units(self.texts().iter().map(of_text).sum())
    }

    fn units(&self, tokens: u64) -> Units {
        if self.counter.is_some() {
            return Units::embedding(Tokens(tokens));
        }
        let characters = self.texts().iter().map(|text| text.chars().count() as u64).sum();
        Units { characters, ..Units::default() }
    }

    /// The exact count; blocking work. A text that has no tokens counts nothing.
    fn count(&self) -> Units {
        let limit = match self.model.context_length {
            Tokens(0) => Tokens(u64::MAX),
            limit => limit,
        };
        let count = |text: &String| {
            let counter = self.counter.as_ref()?;
            counter.count_embedding_input(text, limit).ok().map(|tokens| tokens.0)
        };
        self.units(self.texts().iter().filter_map(count).sum())
    }
}

/// Answers one request for embeddings.
///
/// # Errors
/// The request is refused, or failed.
pub async fn run_embeddings(app: Arc<App>, caller: Caller, job: EmbedJob) -> ApiResult<Response> {
    caller.permit_model(&job.model)?;
    let (job, units, hold) = watched_admission(&app, &caller, job).await?;
    let body = node_body(&job)?;
    let (head, told) = oneshot::channel();
    let gone = CancellationToken::new();
    let run = Embed {
        user: caller.user_id,
        permit: caller.permit,
        body,
        head,
        gone: gone.clone(),
        total: Instant::now()
            + job.timeout.map_or(app.config.relay.embeddings_total(), |wanted| {
                wanted.min(app.config.relay.embeddings_total())
            }),
        trail: Trail::default(),
        attempts: Vec::new(),
        node_time: Duration::ZERO,
        phase: Open::default(),
        _running: app.fleet.begin_request(),
        job: job.clone(),
        app: app.clone(),
    };
    app.tasks.spawn("embedding", Box::pin(run.run(hold, units)));
    // Dropped with this future when the client leaves.
    let presence = gone.drop_guard();
    let told = told.await;
    let _ = presence.disarm();
    match told {
        Ok(Head::Whole(bytes, meta)) => Ok(whole(&app, job.request_id.as_str(), job.arrived, bytes, &meta)),
        Ok(Head::Failed(error)) => Err(error),
        Ok(Head::Stream(_)) | Err(_) => Err(lost_task()),
    }
}

/// Admission, as a phase of the request's trace.
async fn watched_admission(
    app: &App,
    caller: &Caller,
    job: EmbedJob,
) -> ApiResult<(Arc<EmbedJob>, Option<Units>, Hold)> {
    job.watch.describe(|fields| {
        fields.set(Key::Operation, "embeddings");
        fields.set(Key::ProviderName, "cxmpute");
        fields.set(Key::RequestModel, job.request.model.clone());
        fields.set(Key::ResponseModel, job.model.id.clone());
    });
    let mut phase = job.watch.open(Phase::Admission);
    let seeker = Seeker::new(&job.model, &caller.user_id, &job.wishes);
    let admitted = match seeker.check(&app.fleet, app.meter.stats().queue) {
        Ok(()) => admit(app, caller, job).await,
        Err(refused) => Err(refused),
    };
    admitted.inspect_err(|refused| phase.fail(refused.code))
}

async fn admit(app: &App, caller: &Caller, job: EmbedJob) -> ApiResult<(Arc<EmbedJob>, Option<Units>, Hold)> {
    let job = Arc::new(job);
    let mut units = job.bound();
    // About four bytes are a token; put right when the request ends.
    caller.reserve_tokens(units.embedding.0 / 4)?;
    let mut exact = None;
    loop {
        if units.embedding.0 > INPUT_TOKENS && exact.is_some() {
            let message = format!(
                "The inputs have {} tokens; at most {INPUT_TOKENS} fit one request.",
                units.embedding
            );
            return Err(ApiError::invalid_parameter("input", message));
        }
        if units.embedding.0 <= INPUT_TOKENS {
            let amount = price_of(&job.model.price, &units)?;
            let admission = Admission {
                request_id: job.request_id.clone(),
                user_id: caller.user_id.clone(),
                key_id: caller.key_id.clone(),
                route: "/embeddings".to_owned(),
                model: job.model.id.clone(),
                service: job.model.service.clone(),
                price: job.model.price.clone(),
                amount,
                streamed: false,
                title: job.title.clone(),
                referer: job.referer.clone(),
                created_at: app.clock.now(),
            };
            match app.meter.admit(admission).await {
                Ok(hold) => return Ok((job, exact, hold)),
                Err(AdmitError::Insufficient { .. } | AdmitError::Budget { .. }) if exact.is_none() => {}
                Err(other) => return Err(refusal(other)),
            }
        }
        let counting = job.clone();
        units = tokio::task::spawn_blocking(move || counting.count()).await.map_err(ApiError::internal)?;
        exact = Some(units);
    }
}

fn node_body(job: &EmbedJob) -> ApiResult<Bytes> {
    let mut request = job.request.clone();
    request.model.clone_from(&job.model.id);
    // Nodes always send numbers; the wanted print is made here.
    request.encoding_format = None;
    request.dimensions = None;
    request.input = EmbeddingInput::Many(job.texts().to_vec());
    serde_json::to_vec(&request).map(Bytes::from).map_err(ApiError::internal)
}

struct Embed {
    app: Arc<App>,
    user: UserId,
    permit: Option<Arc<Permit>>,
    job: Arc<EmbedJob>,
    body: Bytes,
    head: oneshot::Sender<Head>,
    gone: CancellationToken,
    total: Instant,
    trail: Trail,
    attempts: Vec<AttemptRecord>,
    node_time: Duration,
    phase: Open,
    _running: RunningRequest,
}

enum Stop {
    Fault(Fault),
    Gone,
    Deadline,
    Draining,
    Internal(ApiError),
}

enum Ended {
    Finished(Seat, Vectors),
    Gone,
    Failed(End, ApiError),
}

impl Embed {
    async fn run(mut self, hold: Hold, exact: Option<Units>) {
        let ended = self.work(&hold).await;
        let latency = self.app.clock.mono().saturating_sub(self.job.arrived);
        let watch = self.job.watch.clone();
        watch.describe(|fields| fields.set(Key::Attempts, self.attempts.len() as u64));
        let mut settlement = Settlement {
            end: End::Refused,
            counted: Units::default(),
            claimed: None,
            provision_id: None,
            provider: None,
            finish_reason: None,
            attempts: std::mem::take(&mut self.attempts),
            first_token: None,
            latency: Some(Millis::from(latency)),
        };
        let (seat, vectors) = match ended {
            Ended::Finished(seat, vectors) => (seat, vectors),
            Ended::Gone => {
                // Embeddings pay only for what was delivered (MR31), and nothing was.
                settlement.end = End::ClientGoneBeforeAccept;
                #[cfg(feature = "sabotage")]
                self.bill_undelivered(&mut settlement);
                if let Err(error) = settle(&watch, hold, settlement).await {
                    tracing::error!(request_id = %self.job.request_id, %error, "an abandoned request was not settled");
                }
                return;
            }
            Ended::Failed(end, error) => {
                settlement.end = end;
                if let Err(cause) = settle(&watch, hold, settlement).await {
                    tracing::error!(request_id = %self.job.request_id, error = %cause, "a failed request was not settled");
                }
                drop(self.permit.take());
                let _ = self.head.send(Head::Failed(error));
                return;
            }
        };
        let counted = match exact {
            Some(units) => units,
            None => {
                let job = self.job.clone();
                tokio::task::spawn_blocking(move || job.count()).await.unwrap_or_default()
            }
        };
        settlement.end = End::Finished;
        settlement.counted = counted;
        settlement.claimed = vectors.claim.map(|tokens| self.job.units(tokens));
        settlement.provision_id = Some(seat.provision().clone());
        settlement.provider = Some(seat.owner().clone());
        let meta = Meta {
            provider: Some(seat.slug()),
            overhead: latency.saturating_sub(self.node_time),
            #[cfg(feature = "sabotage")]
            headers: http::HeaderMap::new(),
        };
        drop(seat);
        watch.describe(|fields| fields.set(Key::InputTokens, counted.embedding.0));
        let settled = settle(&watch, hold, settlement).await;
        if let Some(permit) = self.permit.take() {
            permit.use_tokens(counted.embedding.0);
        }
        let answer = match settled {
            Ok(settled) => {
                let base64 = self.job.request.encoding_format == Some(EncodingFormat::Base64);
                let usage = usage(&counted, &self.job.model.price, &settled, false);
                let bytes = print(&self.job.request.model, base64, vectors.vectors, usage);
                Head::Whole(bytes, meta)
            }
            Err(error) => Head::Failed(store_error(error)),
        };
        let _ = self.head.send(answer);
    }

    #[cfg(feature = "sabotage")]
    fn bill_undelivered(&self, settlement: &mut Settlement) {
        if self.app.sabotage == Some(crate::sabotage::Sabotage::BillUndelivered)
            && let Some(attempt) = settlement.attempts.last()
        {
            settlement.end = End::ClientGone;
            settlement.counted = self.job.count();
            settlement.provision_id = Some(attempt.provision_id.clone());
            settlement.provider = Some(self.user.clone());
        }
    }

    async fn work(&mut self, hold: &Hold) -> Ended {
        let relay = self.app.config.relay.clone();
        self.app.fleet.count_request(&self.job.model.service);
        loop {
            let until = (Instant::now() + relay.queue()).min(self.total);
            let seeker = Seeker::new(&self.job.model, &self.user, &self.job.wishes);
            let hard = self.app.tasks.hard();
            let until = Until { deadline: until, gone: &self.gone, hard: &hard };
            let mut phase = self.job.watch.open(Phase::Queue);
            let found = find_seat(&self.app.fleet, seeker, &mut self.trail, until).await;
            if let Err(NoSeat::Nobody(error)) = &found {
                phase.fail(error.code);
            }
            drop(phase);
            let mut seat = match found {
                Ok(seat) => seat,
                Err(NoSeat::Gone) => return Ended::Gone,
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
            self.phase = self.job.watch.open(Phase::Attempt);
            let outcome = Box::pin(self.attempt(&seat, number, hold)).await;
            self.node_time += began.elapsed();
            let now = self.app.clock.mono();
            let fault = match outcome {
                Ok(vectors) => {
                    seat.first_token(began.elapsed(), now);
                    seat.succeeded(now);
                    self.record(&seat, number, End::Finished, None, began);
                    return Ended::Finished(seat, vectors);
                }
                Err(Stop::Fault(fault)) => fault,
                Err(Stop::Gone) => {
                    self.record(&seat, number, End::ClientGone, Some(Code::ClientClosed), began);
                    return Ended::Gone;
                }
                Err(Stop::Deadline) => {
                    let error = ApiError::new(Code::DeadlineExceeded, "The request took longer than it may.");
                    self.record(&seat, number, End::ProviderFailed, Some(Code::DeadlineExceeded), began);
                    return Ended::Failed(End::ProviderFailed, error);
                }
                Err(Stop::Draining) => return Ended::Failed(End::Refused, ApiError::draining()),
                Err(Stop::Internal(error)) => return Ended::Failed(End::Refused, error),
            };
            if fault == Fault::Lost {
                seat.lost(now);
            } else if fault.blames_node() {
                seat.failed(now);
            } else if fault.is_lack_of_room() {
                seat.refused_for_room(now);
            }
            self.record(&seat, number, fault.end(), Some(fault.code()), began);
            let chance = u64::from_le_bytes(random::bytes::<8>());
            let next = self.trail.fail(seat.provision(), seat.epoch(), fault, relay.retries, chance, || {
                self.app.fleet.take_retry(&self.job.model.service)
            });
            drop(seat);
            match next {
                Next::Now => {}
                Next::After(wait) => tokio::select! {
                    () = self.gone.cancelled() => return Ended::Gone,
                    () = tokio::time::sleep(wait) => {}
                },
                Next::GiveUp => return Ended::Failed(End::ProviderFailed, exhausted_error(fault)),
            }
        }
    }

    async fn attempt(&self, seat: &Seat, number: u32, hold: &Hold) -> Result<Vectors, Stop> {
        let dimensions = self.job.model.dimensions.unwrap_or(4096);
        let max_bytes = ENVELOPE + self.job.texts().len() as u64 * dimensions * PER_NUMBER;
        let head = WorkHead {
            request_id: self.job.request_id.clone(),
            attempt: number,
            epoch: seat.epoch(),
            service: seat.service().clone(),
            generation: seat.generation(),
            path: WorkPath::Embeddings,
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
                Ok(Err(error)) => return Err(Stop::Fault(super::forward::before_accept(&error))),
                Err(_) => {
                    return Err(Stop::Fault(super::forward::not_accepted(
                        seat,
                        self.app.config.relay.accept(),
                    )));
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
            let mut whole = Vec::new();
            while let Some(chunk) = stream.chunk().await {
                let chunk = chunk.map_err(|error| Stop::Fault(super::forward::after_accept(&error)))?;
                if (whole.len() + chunk.len()) as u64 > max_bytes {
                    return Err(Stop::Fault(Fault::Protocol));
                }
                whole.extend_from_slice(&chunk);
            }
            read(&whole, self.job.texts().len(), self.job.model.dimensions).map_err(Stop::Fault)
        };
        tokio::select! {
            biased;
            () = self.gone.cancelled() => Err(Stop::Gone),
            () = hard.cancelled() => Err(Stop::Draining),
            () = tokio::time::sleep_until(self.total) => {
                super::forward::count_late("total");
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
