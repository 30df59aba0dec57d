//! The one error of the HTTP edge: what went wrong, for whom, and what to do; rendered as the OpenAI envelope.
//!
//! Which error where: libraries return their own enums; a handler returns [`ApiError`]; the cause stays inside and
//! is logged once, at the edge. A message never holds internals: no path, no SQL, no address, no other tenant's name.

use std::borrow::Cow;
use std::fmt;
use std::ops::{Deref, DerefMut};

use axum::response::{IntoResponse, Response};
use cxmpute_store::{DbError, SpendCap};
use cxmpute_wire::anthropic::{MessageError, MessageErrorBody};
use cxmpute_wire::openai::{ErrorBody, ErrorEnvelope};
use cxmpute_wire::{Code, MicroCredits, RequestId};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value};

/// What handlers return instead of an answer.
pub type ApiResult<T> = Result<T, ApiError>;

/// A refusal or failure on its way to the client. Boxed, because results carry it through every call.
pub struct ApiError(Box<ErrorParts>);

/// The parts of an [`ApiError`].
#[derive(Debug)]
pub struct ErrorParts {
    /// HTTP status.
    pub status: StatusCode,
    /// Stable machine code.
    pub code: Code,
    /// One sentence for a person.
    pub message: Cow<'static, str>,
    /// The field at fault.
    pub param: Option<String>,
    /// Further documented fields of the error object.
    pub extra: Map<String, Value>,
    /// Seconds after which a retry makes sense.
    pub retry_after: Option<u64>,
    /// What really happened; logged, never sent.
    pub cause: Option<anyhow::Error>,
    /// How the body looks.
    pub shape: Shape,
}

/// How the body of an error looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// `{"error": {"message", "type", "param", "code"}, "request_id"}`.
    #[default]
    OpenAi,
    /// `{"error": "message", "code", "action"}`: the routes of the first seed.
    Seed,
    /// `{"type": "error", "error": {"type", "message", "code", "param"}, "request_id"}`: Anthropic's routes.
    Anthropic,
}

impl Deref for ApiError {
    type Target = ErrorParts;

    fn deref(&self) -> &ErrorParts {
        &self.0
    }
}

impl DerefMut for ApiError {
    fn deref_mut(&mut self) -> &mut ErrorParts {
        &mut self.0
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl ApiError {
    /// An error with the status that belongs to its code.
    pub fn new(code: Code, message: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(ErrorParts {
            status: StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            code,
            message: message.into(),
            param: None,
            extra: Map::new(),
            retry_after: None,
            cause: None,
            shape: Shape::OpenAi,
        }))
    }

    /// Names the field at fault.
    #[must_use]
    pub fn param(mut self, name: impl Into<String>) -> Self {
        self.param = Some(name.into());
        self
    }

    /// Adds a documented field to the error object.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.extra.insert(key.to_owned(), value.into());
        self
    }

    /// Says after how many seconds a retry makes sense.
    #[must_use]
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// Keeps what really happened, for the log.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<anyhow::Error>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// Renders the body in another shape.
    #[must_use]
    pub fn shape(mut self, shape: Shape) -> Self {
        self.shape = shape;
        self
    }

    /// 400: the body is not acceptable JSON.
    pub fn invalid_json(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidJson, message)
    }

    /// 400: a field has a wrong type or value.
    pub fn invalid_parameter(param: &str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::InvalidParameter, message).param(param)
    }

    /// 400: a field that this model or route does not support.
    pub fn unsupported_parameter(param: &str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::UnsupportedParameter, message).param(param)
    }

    /// 401: one text for missing, malformed, unknown and revoked keys, so that none can be told from another.
    pub fn invalid_api_key() -> Self {
        Self::new(
            Code::InvalidApiKey,
            "The API key is missing, malformed or not valid; send it as `Authorization: Bearer cxk_...`.",
        )
    }

    /// 401: the key was good until its end date.
    pub fn expired_api_key() -> Self {
        Self::new(
            Code::ExpiredApiKey,
            "This API key has expired; make a new one, or ask for a later end date.",
        )
    }

    /// 403: the key or its account may not use this route.
    pub fn route_not_permitted(path: &'static str) -> Self {
        Self::new(
            Code::RouteNotPermitted,
            format!("This API key may not use {path}; GET /v1/key lists the routes that it may use."),
        )
    }

    /// 403: the key or its account may not use this model.
    pub fn model_not_permitted(model: &str) -> Self {
        Self::new(
            Code::ModelNotPermitted,
            format!(
                "This API key may not use the model `{model}`; GET /v1/key lists the models that it may use."
            ),
        )
        .param("model")
    }

    /// 402: the account cannot pay. The amounts are exact decimal credits.
    pub fn insufficient_credits(required: MicroCredits, available: MicroCredits) -> Self {
        Self::new(Code::InsufficientCredits, "The balance of this account does not cover the request.")
            .with("required", required.to_credits())
            .with("available", available.to_credits())
    }

    /// 402: a spend limit of the key or the account is in the way. The amounts are exact decimal credits.
    pub fn budget_exceeded(required: MicroCredits, available: MicroCredits, cap: SpendCap) -> Self {
        let message = match cap {
            SpendCap::KeyTotal => "The budget of this API key does not cover the request.",
            SpendCap::KeyDay => "What this API key may spend per day (UTC) does not cover the request.",
            SpendCap::KeyMonth => "What this API key may spend per month (UTC) does not cover the request.",
            SpendCap::AccountDay => "What this account may spend per day (UTC) does not cover the request.",
            SpendCap::AccountMonth => {
                "What this account may spend per month (UTC) does not cover the request."
            }
        };
        Self::new(Code::BudgetExceeded, message)
            .with("required", required.to_credits())
            .with("available", available.to_credits())
            .with("limit", cap.as_str())
    }

    /// 403: the account is suspended.
    pub fn account_suspended() -> Self {
        Self::new(Code::AccountSuspended, "This account is suspended; write to the operator of this service.")
    }

    /// 404: no such model.
    pub fn model_not_found(model: &str) -> Self {
        let shown: String = model.chars().take(128).collect();
        Self::new(
            Code::ModelNotFound,
            format!("There is no model `{shown}` for this route; GET /v1/models lists all with their kinds."),
        )
        .param("model")
    }

    /// 404: missing and foreign objects look the same.
    pub fn not_found() -> Self {
        Self::new(Code::NotFound, "There is nothing here for this key.")
    }

    /// 413.
    pub fn body_too_large(limit: usize) -> Self {
        Self::new(
            Code::BodyTooLarge,
            format!("The body is larger than the {limit} bytes that this route takes."),
        )
    }

    /// 500 for faults of our own. Never for anything a client sent.
    pub fn internal(cause: impl Into<anyhow::Error>) -> Self {
        Self::new(
            Code::InternalError,
            "The gateway failed; the request id helps the operator to find out why.",
        )
        .caused_by(cause)
    }

    /// 503: the store is away. Never a 401 (GR section 10).
    pub fn store_unavailable(cause: impl Into<anyhow::Error>) -> Self {
        Self::new(Code::StoreUnavailable, "The account store is not reachable at the moment; try again.")
            .retry_after(2)
            .caused_by(cause)
    }

    /// 503: the process is shutting down.
    pub fn draining() -> Self {
        Self::new(Code::Draining, "This gateway is shutting down; try again.").retry_after(1)
    }

    /// 503: nobody can serve the model now.
    pub fn no_provider(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::NoProvider, message).retry_after(5)
    }

    /// OpenAI's class of error.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            402 => "insufficient_quota",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            // A wrong key, too: OpenAI says so, and its libraries go by the status.
            _ => "invalid_request_error",
        }
    }

    /// The envelope, also the payload of an error event inside a stream.
    #[must_use]
    pub fn envelope(&self, request_id: Option<&RequestId>) -> ErrorEnvelope {
        ErrorEnvelope {
            error: ErrorBody {
                message: self.message.clone().into_owned(),
                kind: self.kind().to_owned(),
                param: self.param.clone(),
                code: Some(self.code.as_str().to_owned()),
                extra: self.extra.clone(),
            },
            request_id: request_id.map(|id| id.as_str().to_owned()),
        }
    }

    /// The whole answer.
    #[must_use]
    pub fn render(&self, request_id: Option<&RequestId>) -> Response {
        self.render_as(self.shape, request_id)
    }

    /// The whole answer, in the shape that its route has for every refusal.
    #[must_use]
    pub fn render_as(&self, shape: Shape, request_id: Option<&RequestId>) -> Response {
        let body = match shape {
            Shape::Anthropic => serde_json::to_vec(&self.message_error(request_id)),
            Shape::OpenAi => serde_json::to_vec(&self.envelope(request_id)),
            Shape::Seed => serde_json::to_vec(&self.seed_body(request_id)),
        };
        let mut response = Response::new(axum::body::Body::from(body.unwrap_or_default()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(seconds) = self.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // What is left of an oversized or stuck request is not read, so the connection cannot be used again.
        if matches!(
            self.code,
            Code::BodyTooLarge | Code::HeadTooLarge | Code::UriTooLong | Code::RequestTimeout
        ) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// The body in Anthropic's shape, also the data of an error event.
    #[must_use]
    pub fn message_error(&self, request_id: Option<&RequestId>) -> MessageError {
        MessageError {
            kind: "error".to_owned(),
            error: MessageErrorBody {
                kind: MessageErrorBody::kind_of(self.status.as_u16()).to_owned(),
                message: self.message.clone().into_owned(),
                code: self.code.as_str().to_owned(),
                param: self.param.clone(),
                extra: self.extra.clone(),
            },
            request_id: request_id.map(|id| id.as_str().to_owned()),
        }
    }

    fn seed_body(&self, request_id: Option<&RequestId>) -> Map<String, Value> {
        let mut body = Map::new();
        body.insert("error".to_owned(), self.message.as_ref().into());
        body.insert("code".to_owned(), self.code.as_str().into());
        body.extend(self.extra.clone());
        if let (Some(id), true) = (request_id, self.status.is_server_error()) {
            body.insert("request_id".to_owned(), id.as_str().into());
        }
        body
    }
}

impl From<DbError> for ApiError {
    /// A store that is away is 503; anything else that it says is a fault of our own.
    fn from(error: DbError) -> Self {
        if error.is_transient() { Self::store_unavailable(error) } else { Self::internal(error) }
    }
}

impl IntoResponse for ApiError {
    /// The answer without a request id; the edge renders it again with the id it made, from the error it finds in
    /// the response's extensions.
    fn into_response(self) -> Response {
        let mut response = self.render(None);
        response.extensions_mut().insert(Failed(std::sync::Arc::new(self)));
        response
    }
}

/// The error behind a response, for the edge.
#[derive(Clone)]
pub struct Failed(pub std::sync::Arc<ApiError>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_envelope_has_openai_s_fields_and_no_cause() {
        let error =
            ApiError::invalid_parameter("n", "n must be 1 to 8.").caused_by(anyhow::anyhow!("secret inside"));
        let id = RequestId::from_tail("0197");
        let text = serde_json::to_string(&error.envelope(Some(&id))).unwrap();
        assert_eq!(
            text,
            r#"{"error":{"message":"n must be 1 to 8.","type":"invalid_request_error","param":"n","code":"invalid_parameter"},"request_id":"req_0197"}"#
        );
    }

    #[test]
    fn every_code_has_a_class_and_its_status() {
        for code in Code::ALL {
            let error = ApiError::new(*code, "x");
            assert_eq!(error.status.as_u16(), code.status());
            assert_eq!(error.kind() == "server_error", code.status() >= 500, "{code}");
        }
    }

    #[test]
    fn a_402_carries_exact_amounts() {
        let error = ApiError::insufficient_credits(MicroCredits(2410), MicroCredits(7));
        let json = serde_json::to_value(error.envelope(None)).unwrap();
        assert_eq!(json["error"]["required"], "0.002410");
        assert_eq!(json["error"]["available"], "0.000007");
    }

    #[test]
    fn anthropic_s_shape_names_its_class_and_our_code() {
        let error = ApiError::invalid_api_key();
        let text = serde_json::to_string(&error.message_error(Some(&RequestId::from_tail("0197")))).unwrap();
        assert!(
            text.starts_with(r#"{"type":"error","error":{"type":"authentication_error","message":""#),
            "{text}"
        );
        assert!(text.ends_with(r#","code":"invalid_api_key"},"request_id":"req_0197"}"#), "{text}");
        for code in Code::ALL {
            let kind = MessageErrorBody::kind_of(code.status());
            assert!(MessageErrorBody::KINDS.contains(&kind), "{code}: {kind}");
        }
    }

    #[test]
    fn the_seed_s_shape_is_flat() {
        let error = ApiError::new(Code::NodeUnknown, "Provision not found.")
            .with("action", "enrol")
            .shape(Shape::Seed);
        let text = serde_json::to_string(&error.seed_body(None)).unwrap();
        assert_eq!(text, r#"{"error":"Provision not found.","code":"node_unknown","action":"enrol"}"#);
    }
}
