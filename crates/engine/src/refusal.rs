//! Errors as OpenAI clients expect them.

use axum::Json;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use cxmpute_tokens::CountError;
use cxmpute_wire::Code;
use cxmpute_wire::openai::{ErrorBody, ErrorEnvelope};
use http::{HeaderValue, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::slots::QueueFull;

/// A request that is not answered.
#[derive(Debug)]
pub struct Refusal {
    code: Code,
    message: String,
    param: Option<&'static str>,
}

impl Refusal {
    /// A refusal with its machine code and one sentence.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), param: None }
    }

    /// A field of the request is wrong.
    pub fn parameter(param: &'static str, message: impl Into<String>) -> Self {
        Self { code: Code::InvalidParameter, message: message.into(), param: Some(param) }
    }

    /// The prompt, or the prompt and the wanted answer, do not fit the context; `field` holds the prompt.
    pub fn context(field: &'static str, context: usize, prompt: usize, wanted: Option<u64>) -> Self {
        let wanted =
            wanted.map(|tokens| format!(" and {tokens} tokens of output were asked for")).unwrap_or_default();
        let message = format!("This model's context is {context} tokens; the prompt has {prompt}{wanted}.");
        Self { code: Code::ContextLengthExceeded, message, param: Some(field) }
    }

    /// The field at fault.
    pub fn at(mut self, param: &'static str) -> Self {
        self.param = Some(param);
        self
    }

    /// The JSON envelope.
    pub fn envelope(self) -> ErrorEnvelope {
        let kind = match self.code.status() {
            429 => "rate_limit_error",
            400..500 => "invalid_request_error",
            _ => "api_error",
        };
        let error = ErrorBody {
            message: self.message,
            kind: kind.into(),
            param: self.param.map(Into::into),
            code: Some(self.code.as_str().into()),
            extra: serde_json::Map::new(),
        };
        ErrorEnvelope { error, request_id: None }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = self.code;
        let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(self.envelope())).into_response();
        if matches!(code, Code::QueueFull | Code::ModelLoading | Code::Draining) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<QueueFull> for Refusal {
    fn from(_: QueueFull) -> Self {
        Self::new(Code::QueueFull, "All slots are busy and the queue is full.")
    }
}

impl From<CountError> for Refusal {
    fn from(error: CountError) -> Self {
        if error.is_request_fault() {
            Self::parameter("messages", error.to_string())
        } else {
            tracing::error!(%error, "a prompt could not be tokenized");
            Self::new(Code::EngineFailed, "the prompt could not be tokenized")
        }
    }
}

/// For whom a request is, in a word that says nothing else: beginnings that were read for one are never reused for
/// another, so that nobody learns from times or counts what others asked. The name is the one other engines have for it.
#[derive(Default, Deserialize)]
pub struct CacheSalt {
    /// The word; requests without one share what they read.
    #[serde(default)]
    pub cache_salt: String,
}

/// A JSON body of the expected shape, and for whom it is; everything else is refused in the envelope.
pub struct JsonBody<T>(pub T, pub CacheSalt);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            let too_large = rejection.status() == StatusCode::PAYLOAD_TOO_LARGE;
            let code = if too_large { Code::BodyTooLarge } else { Code::InvalidJson };
            Refusal::new(code, "The body is too large or did not arrive whole.")
        })?;
        let read = serde_json::from_slice(&body).and_then(|request| {
            let salt = serde_json::from_slice(&body)?;
            Ok(Self(request, salt))
        });
        read.map_err(|error| {
            let code = if error.is_data() { Code::InvalidParameter } else { Code::InvalidJson };
            Refusal::new(code, format!("The body is not an acceptable request: {error}."))
        })
    }
}
