//! The routes and what they share.

use std::sync::{Arc, OnceLock};

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use cxmpute_runtime::{Clock, Secret, random};
use cxmpute_wire::Code;
use http_body_util::BodyExt;
use serde_json::json;

use crate::embed::Embedder;
use crate::generate::Event;
use crate::llm::Llm;
use crate::refusal::Refusal;
use crate::{chat, completion, embedding};

/// Largest request body: a full context of the largest supported models is far below.
const MAX_BODY_BYTES: usize = 8 << 20;
/// Most of a refused body that is read so that its sender hears the refusal.
const DRAINED_BYTES: usize = 64 << 20;
/// The header that carries the secret.
pub const SECRET_HEADER: &str = "x-cxmpute-engine-secret";

/// What all requests share.
pub struct Engine {
    /// The time.
    pub clock: Clock,
    /// What every request must carry, if anything.
    pub secret: Option<Secret<String>>,
    /// Set when everything is loaded.
    pub models: OnceLock<Models>,
}

/// The loaded models.
pub struct Models {
    /// The chat model.
    pub llm: Option<Llm>,
    /// The embedding model.
    pub embedder: Option<Embedder>,
}

impl Engine {
    fn models(&self) -> Result<&Models, Refusal> {
        self.models.get().ok_or_else(|| Refusal::new(Code::ModelLoading, "The model is being loaded."))
    }

    /// The chat model, if it is the one that is asked for.
    ///
    /// # Errors
    /// While loading, and when the name is another one.
    pub fn llm(&self, name: &str) -> Result<&Llm, Refusal> {
        self.models()?.llm.as_ref().filter(|llm| llm.name == name).ok_or_else(|| unknown_model(name))
    }

    /// The embedding model, if it is the one that is asked for.
    ///
    /// # Errors
    /// While loading, and when the name is another one.
    pub fn embedder(&self, name: &str) -> Result<&Embedder, Refusal> {
        self.models()?
            .embedder
            .as_ref()
            .filter(|embedder| embedder.name == name)
            .ok_or_else(|| unknown_model(name))
    }
}

fn unknown_model(name: &str) -> Refusal {
    let shown: String = name.chars().take(100).collect();
    Refusal::new(Code::ModelNotFound, format!("The model `{shown}` is not loaded for this route."))
        .at("model")
}

/// All routes.
pub fn router(engine: Arc<Engine>) -> Router {
    let guarded = Router::new()
        .route("/slots", get(show_slots))
        .route("/v1/models", get(list_models))
        .route("/v1/chat/completions", post(chat::complete_chat))
        .route("/v1/completions", post(completion::complete_text))
        .route("/v1/embeddings", post(embedding::embed_texts))
        .layer(middleware::from_fn_with_state(engine.clone(), check_secret))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(refuse_large_bodies));
    Router::new()
        .route("/health", get(show_health))
        .merge(guarded)
        .fallback(async || Refusal::new(Code::NotFound, "There is no such route."))
        .method_not_allowed_fallback(async || {
            Refusal::new(Code::MethodNotAllowed, "The route has another method.")
        })
        .with_state(engine)
}

/// Reads a body that is announced as too large to its end before refusing it: a caller that is still writing when the
/// connection closes would see a broken pipe instead of the refusal.
async fn refuse_large_bodies(request: Request, next: Next) -> Response {
    let length = request.headers().get(http::header::CONTENT_LENGTH);
    let announced = length.and_then(|value| value.to_str().ok()?.parse::<usize>().ok()).unwrap_or(0);
    if announced <= MAX_BODY_BYTES {
        return next.run(request).await;
    }
    let mut body = request.into_body();
    let mut left = DRAINED_BYTES;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            break;
        }
    }
    Refusal::new(Code::BodyTooLarge, format!("A request has at most {MAX_BODY_BYTES} bytes.")).into_response()
}

async fn check_secret(State(engine): State<Arc<Engine>>, request: Request, next: Next) -> Response {
    if let Some(secret) = &engine.secret {
        let headers = request.headers();
        let bearer = headers.get(http::header::AUTHORIZATION).map(|value| value.as_bytes());
        let bearer = bearer.and_then(|value| value.strip_prefix(b"Bearer "));
        let given = headers.get(SECRET_HEADER).map(|value| value.as_bytes()).or(bearer);
        if !given.is_some_and(|given| same_bytes(given, secret.expose().as_bytes())) {
            return Refusal::new(Code::InvalidApiKey, "The engine's secret is missing or wrong.")
                .into_response();
        }
    }
    next.run(request).await
}

/// Compares without telling by its time how much is right.
fn same_bytes(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

async fn show_health(State(engine): State<Arc<Engine>>) -> Response {
    match engine.models() {
        Ok(_) => Json(json!({ "status": "ok" })).into_response(),
        Err(loading) => loading.into_response(),
    }
}

async fn show_slots(State(engine): State<Arc<Engine>>) -> Result<Response, Refusal> {
    let models = engine.models()?;
    let llm = models.llm.as_ref().map(|llm| llm.pool.load());
    let embeddings = models.embedder.as_ref().map(|embedder| embedder.pool.load());
    let mut shown = json!(llm.or(embeddings));
    if let (Some(_), Some(embeddings), Some(fields)) = (llm, embeddings, shown.as_object_mut()) {
        fields.insert("embeddings".into(), json!(embeddings));
    }
    Ok(Json(shown).into_response())
}

async fn list_models(State(engine): State<Arc<Engine>>) -> Result<Response, Refusal> {
    let models = engine.models()?;
    let mut list = Vec::new();
    let object = |name: &str, kind: &str, context: usize, digest: &str| {
        json!({"id": name, "object": "model", "created": 0, "owned_by": "cxmpute-engine", "kind": kind,
            "context_length": context, "digest": digest})
    };
    if let Some(llm) = &models.llm {
        list.push(object(&llm.name, "llm", llm.context, &llm.digest));
    }
    if let Some(embedder) = &models.embedder {
        let mut shown = object(&embedder.name, "embeddings", embedder.limit, &embedder.digest);
        shown["dimensions"] = embedder.dimensions.into();
        list.push(shown);
    }
    Ok(Json(json!({ "object": "list", "data": list })).into_response())
}

/// Runs a computation of some milliseconds where it holds up no other request.
///
/// # Errors
/// When it panics.
pub async fn in_background<T, F>(work: F) -> Result<T, Refusal>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "a preparation failed");
        Refusal::new(Code::EngineFailed, "The request could not be prepared.")
    })
}

/// A fresh id such as `chatcmpl-0123…`.
pub fn fresh_id(prefix: &str) -> String {
    format!("{prefix}{}", data_encoding::HEXLOWER.encode(&random::bytes::<12>()))
}

/// One server-sent event.
pub fn event(data: &impl serde::Serialize) -> Bytes {
    // The types that go out have text keys only, so they always serialise.
    let json = serde_json::to_string(data).unwrap_or_default();
    format!("data: {json}\n\n").into()
}

/// The event that ends a complete stream.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// A stream of server-sent events.
pub fn event_stream<S>(events: S) -> Response
where
    S: futures_util::Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + 'static,
{
    let headers =
        [(http::header::CONTENT_TYPE, "text/event-stream"), (http::header::CACHE_CONTROL, "no-cache")];
    (headers, axum::body::Body::from_stream(events)).into_response()
}

/// What a generation that ends before its time means for the caller.
pub fn broken(last: Option<Event>) -> Refusal {
    match last {
        Some(Event::Failed { code, message }) => Refusal::new(code, message),
        _ => Refusal::new(Code::EngineFailed, "the computation failed"),
    }
}
