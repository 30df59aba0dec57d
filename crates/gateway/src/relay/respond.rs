//! The client's side of a request: the head of the answer, held back until the first content so that early failures
//! keep their status (GR13), and the body.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::admission::{Admitted, admit};
use super::bound::{Bound, Cover};
use super::checkpoint::Checkpoints;
use super::delivery::{ClientPresence, DeliveryBody, attendance, delivery};
use super::errand::Printed;
use super::job::Job;
use super::retry::Trail;
use super::run::{Head, Meta, Run};
use super::select::Seeker;
use super::so_far::SoFar;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, ApiResult};
use crate::trace::{Open, Phase};

const X_GENERATION_ID: HeaderName = HeaderName::from_static("x-generation-id");
const X_PROVIDER: HeaderName = HeaderName::from_static("x-cxmpute-provider");
const X_OVERHEAD: HeaderName = HeaderName::from_static("x-cxmpute-overhead-us");
const X_EVIDENCE: HeaderName = HeaderName::from_static("x-cxmpute-model-evidence");
const X_PROCESSING: HeaderName = HeaderName::from_static("openai-processing-ms");
const X_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Every request ends so long after its deadline at the latest (GR section 11); until then a client may take its last event.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(5);

/// The type of a stream of events.
pub(super) const EVENTS: &str = "text/event-stream; charset=utf-8";

/// Answers one request for text.
///
/// # Errors
/// The request is refused, or failed before the first content.
pub async fn run_llm(app: Arc<App>, caller: Caller, job: Job) -> ApiResult<Response> {
    caller.permit_model(&job.model)?;
    for alternative in &job.alternatives {
        caller.permit_model(&alternative.model)?;
    }
    let (mut job, Admitted { hold, covered, prompt }) = watched_admission(&app, &caller, job).await?;
    let body = Arc::make_mut(&mut job).node_body(&app.cache_salt(&caller.user_id))?;
    #[cfg(feature = "sabotage")]
    let body = with_extra_body(&app, &job, body)?;
    let relay = &app.config.relay;
    let total = Instant::now() + job.timeout.map_or(relay.total(), |wanted| wanted.min(relay.total()));
    let (outlet, client) = if job.streamed() {
        let write_stall = Duration::from_millis(app.config.server.write_stall_ms);
        let (outlet, body) = delivery(Some(relay.headers_held()), write_stall, total + LAST_WORDS);
        (outlet, Client::Reads(body))
    } else {
        let (outlet, presence) = attendance();
        (outlet, Client::Waits(presence))
    };
    let (head, told) = oneshot::channel();
    let run = Run {
        user: caller.user_id,
        permit: caller.permit,
        hold,
        body,
        gone: outlet.gone(),
        outlet,
        writer: job.writer(),
        head: Some(head),
        total,
        trail: Trail::default(),
        attempts: Vec::new(),
        so_far: SoFar::default(),
        bound: Bound::default(),
        checkpoints: Checkpoints::new(job.choices, prompt),
        served: None,
        relayed: false,
        first_token: None,
        node_time: Duration::ZERO,
        cover: Cover { tokens: covered, exhausted: false },
        cut_off: false,
        finished: None,
        phase: Open::default(),
        _running: app.fleet.begin_request(),
        job: job.clone(),
        app: app.clone(),
    };
    app.tasks.spawn("request", Box::pin(run.run()));
    match client {
        Client::Reads(body) => answer_stream(&app, &job, told, body).await,
        Client::Waits(presence) => answer_whole(&app, &job, told, presence).await,
    }
}

/// The client's end of a delivery.
enum Client {
    Reads(DeliveryBody),
    Waits(ClientPresence),
}

/// Admission, as a phase of the request's trace.
async fn watched_admission(app: &App, caller: &Caller, job: Job) -> ApiResult<(Arc<Job>, Admitted)> {
    job.describe();
    let mut phase = job.watch.open(Phase::Admission);
    let admitted = match first_servable(app, caller, job) {
        Ok(job) => admit(app, caller, job).await,
        Err(refused) => Err(refused),
    };
    admitted.inspect_err(|refused| phase.fail(refused.code))
}

/// What the known-bad variant sends to a node: the names of unknown fields, too.
#[cfg(feature = "sabotage")]
fn with_extra_body(app: &App, job: &Job, body: bytes::Bytes) -> ApiResult<bytes::Bytes> {
    if app.sabotage != Some(crate::sabotage::Sabotage::ExtraBody) {
        return Ok(body);
    }
    let mut value: serde_json::Value = serde_json::from_slice(&body).map_err(ApiError::internal)?;
    for name in &job.extra {
        value[name] = serde_json::Value::Bool(true);
    }
    Ok(value.to_string().into())
}

/// Goes on to the first model of the request that is not refused before anything is bound; the refusal of the first
/// model is the one to tell when there is none.
fn first_servable(app: &App, caller: &Caller, job: Job) -> ApiResult<Job> {
    let admissions = app.meter.stats().queue;
    let check =
        |job: &Job| Seeker::new(&job.model, &caller.user_id, &job.wishes).check(&app.fleet, admissions);
    let refused = match check(&job) {
        Ok(()) => return Ok(job),
        Err(refused) => refused,
    };
    let mut job = job;
    while let Some(next) = job.next_model() {
        if check(&next).is_ok() {
            return Ok(next);
        }
        job = next;
    }
    Err(refused)
}

async fn answer_stream(
    app: &App,
    job: &Job,
    mut told: oneshot::Receiver<Head>,
    body: DeliveryBody,
) -> ApiResult<Response> {
    let head = match tokio::time::timeout(app.config.relay.headers_held(), &mut told).await {
        Ok(head) => head.ok(),
        Err(_) => {
            // From here on the request's task finds the channel closed and writes errors into the stream.
            told.close();
            told.try_recv().ok().or(Some(Head::Stream(Meta::default())))
        }
    };
    let meta = match head {
        Some(Head::Stream(meta)) => meta,
        Some(Head::Failed(error)) => return Err(error),
        Some(Head::Whole(..)) | None => return Err(lost_task()),
    };
    Ok(live(app, &job.answer_id(), job.arrived, body, EVENTS, &meta))
}

async fn answer_whole(
    app: &App,
    job: &Job,
    told: oneshot::Receiver<Head>,
    presence: ClientPresence,
) -> ApiResult<Response> {
    // Dropped with this future when the client leaves.
    let head = told.await;
    presence.end();
    match head {
        Ok(Head::Whole(printed, meta)) => Ok(whole(app, &job.answer_id(), job.arrived, printed, &meta)),
        Ok(Head::Failed(error)) => Err(error),
        Ok(Head::Stream(_)) | Err(_) => Err(lost_task()),
    }
}

/// A whole answer.
pub(super) fn whole(app: &App, id: &str, arrived: Duration, printed: Printed, meta: &Meta) -> Response {
    let mut response = Response::new(Body::from(printed.bytes));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(printed.content_type));
    describe(headers, app, id, arrived, meta);
    response
}

/// An answer that is handed on while it is made.
pub(super) fn live(
    app: &App,
    id: &str,
    arrived: Duration,
    body: DeliveryBody,
    content_type: &'static str,
    meta: &Meta,
) -> Response {
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(X_BUFFERING, HeaderValue::from_static("no"));
    describe(headers, app, id, arrived, meta);
    response
}

fn describe(headers: &mut HeaderMap, app: &App, id: &str, arrived: Duration, meta: &Meta) {
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let mut text = |name: HeaderName, value: String| {
        // Takes the text over, without a copy.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    text(X_GENERATION_ID, id.to_owned());
    if let Some(provider) = &meta.provider {
        text(X_PROVIDER, provider.clone());
        text(X_OVERHEAD, meta.overhead.as_micros().to_string());
    }
    #[cfg(feature = "sabotage")]
    for (name, value) in &meta.headers {
        text(name.clone(), String::from_utf8_lossy(value.as_bytes()).into_owned());
    }
    text(X_PROCESSING, app.clock.mono().saturating_sub(arrived).as_millis().to_string());
    if meta.provider.is_some() {
        // Only nodes whose canary passed through this very tunnel get work (D14).
        headers.insert(X_EVIDENCE, HeaderValue::from_static("canary-passed"));
    }
}

/// The request's task ended without a word: it panicked.
pub(super) fn lost_task() -> ApiError {
    ApiError::internal(anyhow::anyhow!("the task of a request ended without an answer"))
}
