//! The edge of the API: every request gets its id, its row of the route table and its limits here, and every answer
//! leaves with the same headers, one error envelope, one count and (if wanted) one log line.

mod address;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::response::IntoResponse;
use cxmpute_market::queue::Class;
use cxmpute_wire::{Code, RequestId};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use tower::Service;

pub use address::{Peer, client_of};

use crate::app::App;
use crate::config::Origin;
use crate::error::{ApiError, Failed};
use crate::framing::Refusal;
use crate::limits;
use crate::rates::Standing;
use crate::relay::overloaded;
use crate::request_id;
use crate::room::Share;
use crate::router::{Access, Cost, ROUTES, Route};
use crate::trace::{Key, Watch};

/// Limits of GR section 9.
const URI_LIMIT: usize = limits::URI;
const HEAD_LIMIT: usize = limits::HEAD;
const FIELDS_LIMIT: usize = limits::FIELDS;

const ALLOWED_HEADERS: &str = "authorization, content-type, idempotency-key, x-title, http-referer, x-user-id, \
     x-cxmpute-strict, x-cxmpute-timeout-ms, traceparent, tracestate, openai-organization, openai-project, \
     openai-beta, x-api-key, anthropic-version, anthropic-beta, anthropic-dangerous-direct-browser-access, x-stainless-arch, x-stainless-lang, x-stainless-os, \
     x-stainless-package-version, x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, \
     x-stainless-timeout, x-stainless-helper-method";
const EXPOSED_HEADERS: &str = "x-request-id, x-generation-id, retry-after, x-cxmpute-ignored, x-cxmpute-provider, \
     x-cxmpute-overhead-us, x-cxmpute-model-evidence, openai-processing-ms, idempotent-replayed, \
     x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
     x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What the edge knows of a request; an extractor.
#[derive(Debug, Clone)]
pub struct Edge {
    /// The request's id, made here (MR35): ordering only, never a secret.
    pub request_id: RequestId,
    /// When the head was complete, on the clock of the app.
    pub arrived: Duration,
    /// The request's trace.
    pub watch: Watch,
    notes: Arc<Notes>,
}

/// What becomes known of a request on its way.
#[derive(Debug, Default)]
struct Notes {
    /// Where the caller stands with its limits, once the key is known.
    standing: OnceLock<Arc<Standing>>,
    /// Room that a large body takes.
    body: OnceLock<Share>,
}

impl FromRequestParts<Arc<App>> for Edge {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        Ok(parts.extensions.get().cloned().unwrap_or_else(|| Self::new(app)))
    }
}

impl Edge {
    /// A request that arrives now.
    #[must_use]
    pub fn new(app: &App) -> Self {
        Self {
            request_id: request_id::fresh(&app.clock),
            arrived: app.clock.mono(),
            watch: Watch::default(),
            notes: Arc::default(),
        }
    }

    /// Notes the limits that the answer's head reports.
    pub(crate) fn stands(&self, standing: Arc<Standing>) {
        let _ = self.notes.standing.set(standing);
    }

    /// Keeps the room of the request's body until its answer begins.
    pub(crate) fn takes(&self, share: Share) {
        let _ = self.notes.body.set(share);
    }
}

/// The row of the route table that a request belongs to.
#[derive(Debug, Clone, Copy)]
pub struct Matched(usize);

impl Matched {
    /// The row.
    #[must_use]
    pub fn route(self) -> &'static Route {
        &ROUTES[self.0]
    }
}

/// Answers one request.
pub async fn answer(app: &Arc<App>, router: &mut Router, mut request: Request<Body>) -> Response<Body> {
    let mut edge = Edge::new(app);
    let method = request.method().clone();
    let found = app.routes.find(&method, request.uri().path());
    if let Some(traces) = &app.traces {
        edge.watch = traces.begin(&edge, &method, found, request.headers());
    }
    let browsable = is_browsable(request.uri().path(), found);
    let origin = if browsable { app.config.server.allowed_origin(request.headers()) } else { Origin::Nobody };
    let mut response = match refuse_early(app, &request, found) {
        Some(response) => response,
        None => {
            request.extensions_mut().insert(edge.clone());
            if let Some(at) = found {
                request.extensions_mut().insert(Matched(at));
            }
            match router.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    };
    let failed = response.extensions_mut().remove::<Failed>().map(|Failed(error)| error);
    if let Some(error) = &failed {
        // The same answer again, with the request id; what was added to it (`Allow`, `Upgrade`) stays.
        let mut headers = std::mem::take(response.headers_mut());
        headers.remove(header::CONTENT_LENGTH);
        let shape = found.map_or(error.shape, |at| ROUTES[at].operation.refusals.shape(error.shape));
        response = error.render_as(shape, Some(&edge.request_id));
        headers.extend(std::mem::take(response.headers_mut()));
        *response.headers_mut() = headers;
    }
    #[cfg(feature = "sabotage")]
    if app.sabotage == Some(crate::sabotage::Sabotage::UndocumentedStatus)
        && failed.as_ref().is_some_and(|error| error.code == Code::InvalidParameter)
    {
        *response.status_mut() = StatusCode::UNPROCESSABLE_ENTITY;
    }
    edge.watch.describe(|fields| fields.set(Key::HttpStatus, u64::from(response.status().as_u16())));
    if let Some(error) = &failed {
        edge.watch.fail(error.code);
    }
    finish_headers(response.headers_mut(), &edge, origin);
    let took = app.clock.mono().saturating_sub(edge.arrived);
    let name = found.map_or("none", |at| ROUTES[at].path);
    app.telemetry.requests.record(found, response.status(), took);
    note(app, &method, name, &response, failed.as_deref(), &edge.request_id, took);
    response
}

/// A refusal of the framing, ready for the wire: there is no request that could be answered, so it is printed here.
#[must_use]
pub fn print_refusal(app: &App, refusal: &Refusal) -> Vec<u8> {
    let edge = Edge::new(app);
    let error = ApiError::new(refusal.code, refusal.message.clone());
    let mut response = error.render(Some(&edge.request_id));
    finish_headers(response.headers_mut(), &edge, Origin::Nobody);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    app.telemetry.requests.record(None, response.status(), Duration::ZERO);
    note(app, &Method::GET, "none", &response, Some(&error), &edge.request_id, Duration::ZERO);
    let body = serde_json::to_vec(&error.envelope(Some(&edge.request_id))).unwrap_or_default();
    let mut out =
        format!("HTTP/1.1 {}\r\ncontent-length: {}\r\n", response.status(), body.len()).into_bytes();
    for (name, value) in response.headers() {
        out.extend_from_slice(name.as_str().as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(&body);
    out
}

/// Whether scripts of other sites may read the answer: everything that is opened by a bearer token or by nothing.
fn is_browsable(path: &str, found: Option<usize>) -> bool {
    match found {
        Some(at) => matches!(ROUTES[at].access, Access::Key | Access::Public) && ROUTES[at].prefixed,
        None => path.starts_with("/v1/") || path.starts_with("/api/v1/"),
    }
}

/// What can be refused from the head alone, and the answers to preflights.
fn refuse_early(app: &App, request: &Request<Body>, found: Option<usize>) -> Option<Response<Body>> {
    if let Err(error) = check_head(request.uri(), request.headers()) {
        return Some(error.into_response());
    }
    if request.method() == Method::OPTIONS && is_browsable(request.uri().path(), found) {
        return Some(preflight());
    }
    if found.is_some_and(|at| ROUTES[at].cost == Cost::Work) && app.tasks.is_stopping() {
        return Some(ApiError::draining().into_response());
    }
    let work = found.is_some_and(|at| ROUTES[at].cost == Cost::Work);
    if work && app.fleet.overload(app.meter.stats().queue, Class::Paid).is_some() {
        return Some(overloaded().into_response());
    }
    None
}

fn check_head(uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
    let address = uri.path_and_query().map_or(0, |text| text.as_str().len());
    if address > URI_LIMIT {
        return Err(ApiError::new(
            Code::UriTooLong,
            format!("The address is longer than {URI_LIMIT} bytes."),
        ));
    }
    if headers.len() > FIELDS_LIMIT {
        return Err(ApiError::new(
            Code::HeadTooLarge,
            format!("The head has more than {FIELDS_LIMIT} fields."),
        ));
    }
    let size: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if size + address > HEAD_LIMIT {
        return Err(ApiError::new(
            Code::HeadTooLarge,
            format!("The head is larger than {HEAD_LIMIT} bytes."),
        ));
    }
    Ok(())
}

/// The methods and headers that scripts may use; whether theirs is an origin that may is said with every answer.
fn preflight() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(
        header::ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, POST, PUT, DELETE, OPTIONS"),
    );
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(ALLOWED_HEADERS));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    response
}

fn finish_headers(headers: &mut HeaderMap, edge: &Edge, origin: Origin) {
    if let Ok(id) = HeaderValue::from_str(edge.request_id.as_str()) {
        headers.insert(X_REQUEST_ID, id);
    }
    if let Some(standing) = edge.notes.standing.get() {
        standing.print(headers);
    }
    // Never with credentials: keys are bearer tokens, so whoever may hold one needs no cookie (GR section 5).
    let allowed = match origin {
        Origin::Everybody => Some(HeaderValue::from_static("*")),
        Origin::Listed(origin) => {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
            Some(origin)
        }
        Origin::Other => {
            headers.append(header::VARY, HeaderValue::from_static("origin"));
            None
        }
        Origin::Nobody => None,
    };
    if let Some(origin) = allowed {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED_HEADERS));
    }
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// The one place where a failed request is logged. Route template instead of path, and never a body or a query.
fn note(
    app: &App,
    method: &Method,
    route: &'static str,
    response: &Response<Body>,
    failed: Option<&ApiError>,
    request_id: &RequestId,
    took: Duration,
) {
    let status = response.status().as_u16();
    let code = failed.map_or("", |error| error.code.as_str());
    if let Some(cause) = failed.and_then(|error| error.cause.as_ref()).filter(|_| status >= 500) {
        tracing::warn!(%method, route, status, code, %request_id, cause = %format_args!("{cause:#}"), "request failed");
    }
    if app.config.log.requests {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(%method, route, status, ms, code, %request_id, "request");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_held_to_their_limits() {
        let uri = |length: usize| -> Uri { format!("/{}", "a".repeat(length - 1)).parse().unwrap() };
        let none = HeaderMap::new();
        check_head(&uri(URI_LIMIT), &none).unwrap();
        assert_eq!(check_head(&uri(URI_LIMIT + 1), &none).unwrap_err().status.as_u16(), 414);
        let mut many = HeaderMap::new();
        for at in 0..=FIELDS_LIMIT {
            many.append("x-a", HeaderValue::from(at));
        }
        assert_eq!(check_head(&uri(1), &many).unwrap_err().status.as_u16(), 431);
        let mut large = HeaderMap::new();
        large.insert("x-a", HeaderValue::from_str(&"a".repeat(HEAD_LIMIT)).unwrap());
        assert_eq!(check_head(&uri(1), &large).unwrap_err().status.as_u16(), 431);
    }

    #[test]
    fn only_bearer_and_public_routes_are_browsable() {
        let index = crate::router::RouteIndex::new();
        let browsable = |method: Method, path: &str| is_browsable(path, index.find(&method, path));
        assert!(browsable(Method::POST, "/v1/chat/completions"));
        assert!(browsable(Method::GET, "/api/v1/models"));
        assert!(!browsable(Method::GET, "/v1/tunnel"));
        assert!(!browsable(Method::GET, "/healthz"));
    }
}
