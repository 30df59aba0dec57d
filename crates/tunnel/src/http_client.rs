//! A small HTTP client: for the few signed calls a node makes outside its tunnel, and for the traces of a gateway.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::Clock;
use cxmpute_wire::{Code, ProvisionId, Timestamp};
use ed25519_dalek::SigningKey;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::handshake::CX_SERVER_TIME;
use crate::sign::{fresh_nonce, provision_id, sign_request};
use crate::transport::{Roots, Target, TransportError};

/// Time for a whole call.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Largest answer that is read.
const ANSWER_LIMIT_BYTES: usize = 4 * 1024 * 1024;

/// A node's key, and the time as its gateway sees it.
#[derive(Clone)]
pub struct Signer {
    key: Arc<SigningKey>,
    clock: Clock,
    offset_ms: Arc<AtomicI64>,
}

impl Signer {
    /// Signs with this key; the clock is corrected when a gateway says so.
    pub fn new(key: SigningKey, clock: Clock) -> Self {
        Self { key: Arc::new(key), clock, offset_ms: Arc::default() }
    }

    /// The provision this key belongs to.
    pub fn provision_id(&self) -> ProvisionId {
        provision_id(&self.key.verifying_key())
    }

    /// Takes over the gateway's time for signatures to come; the machine's clock stays as it is.
    pub fn correct(&self, server_time: Timestamp) {
        let offset = server_time.0.saturating_sub(self.clock.now().0);
        self.offset_ms.store(offset, Ordering::Relaxed);
    }

    /// Gateway time minus our clock, in milliseconds, as far as a gateway has told us.
    pub fn offset_ms(&self) -> i64 {
        self.offset_ms.load(Ordering::Relaxed)
    }

    /// The headers that sign a request.
    pub fn sign(
        &self,
        method: &Method,
        authority: &str,
        path_and_query: &str,
        body: &[u8],
    ) -> Vec<(HeaderName, HeaderValue)> {
        let (path, query) = match path_and_query.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path_and_query, None),
        };
        let now = Timestamp(self.clock.now().0.saturating_add(self.offset_ms()));
        let nonce = fresh_nonce();
        sign_request(&self.key, method, authority, path, query, Some(body), now.seconds(), &nonce)
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.provision_id())
    }
}

/// A call that got no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The gateway could not be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The connection broke, or the answer is not HTTP.
    #[error("no answer from {authority}: {message}")]
    Http {
        /// Host and port.
        authority: String,
        /// What went wrong.
        message: String,
    },
}

/// What a gateway answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

impl Answer {
    /// The body as JSON; `null` when it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The machine code of a refusal, in either of our two error shapes.
    pub fn code(&self) -> Option<Code> {
        let body = self.json();
        let code = body["error"]["code"].as_str().or_else(|| body["code"].as_str())?;
        code.parse().ok()
    }

    /// The sentence of a refusal.
    pub fn message(&self) -> String {
        let body = self.json();
        let message = body["error"]["message"].as_str().or_else(|| body["error"].as_str());
        match message {
            Some(message) => message.to_owned(),
            None => format!("status {}", self.status.as_u16()),
        }
    }

    /// The gateway's time, where the answer tells it.
    pub fn server_time(&self) -> Option<Timestamp> {
        let header = self.headers.get(CX_SERVER_TIME).and_then(|value| value.to_str().ok()?.parse().ok());
        let body = self.json();
        header
            .or_else(|| body["error"]["server_time"].as_i64())
            .or_else(|| body["server_time"].as_i64())
            .map(Timestamp)
    }
}

/// Calls gateways; one connection per call.
#[derive(Clone, Debug)]
pub struct HttpClient {
    roots: Roots,
}

impl HttpClient {
    /// A client that trusts these authorities.
    pub fn new(roots: Roots) -> Self {
        Self { roots }
    }

    /// One request. `url` names the gateway, `path` (with its query) the resource.
    pub async fn call(
        &self,
        url: &str,
        method: Method,
        path: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let target = Target::parse(url)?;
        let path = format!("{}{path}", target.base_path);
        self.send(&target, method, &path, headers, body).await
    }

    /// One signed JSON request. A gateway that finds our clock wrong is believed once and asked again.
    pub async fn signed(
        &self,
        signer: &Signer,
        url: &str,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let target = Target::parse(url)?;
        let path = format!("{}{path}", target.base_path);
        let mut corrected = false;
        loop {
            let mut headers = signer.sign(&method, &target.authority, &path, &body);
            if !body.is_empty() {
                let json = HeaderValue::from_static("application/json");
                headers.push((http::header::CONTENT_TYPE, json));
            }
            let answer = self.send(&target, method.clone(), &path, headers, body.clone()).await?;
            match (answer.code(), answer.server_time()) {
                (Some(Code::ClockSkew), Some(server_time)) if !corrected => {
                    signer.correct(server_time);
                    corrected = true;
                }
                _ => return Ok(answer),
            }
        }
    }

    async fn send(
        &self,
        target: &Target,
        method: Method,
        path: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let failed = |message: String| ClientError::Http { authority: target.authority.clone(), message };
        let io = target.connect(&self.roots).await?;
        let exchange = async {
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(chain)?;
            let mut request = Request::builder()
                .method(method)
                .uri(path)
                .header(http::header::HOST, &target.authority)
                .header(http::header::CONNECTION, "close");
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let request = request.body(Full::new(body)).map_err(chain)?;
            let answer = async {
                let (parts, body) = sender.send_request(request).await.map_err(chain)?.into_parts();
                let body = Limited::new(body, ANSWER_LIMIT_BYTES).collect().await;
                let body = body.map_err(|error| error.to_string())?.to_bytes();
                Ok::<_, String>(Answer { status: parts.status, headers: parts.headers, body })
            };
            drive(connection, answer).await
        };
        match tokio::time::timeout(CALL_TIMEOUT, exchange).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(message)) => Err(failed(message)),
            Err(_) => Err(failed(format!("nothing came for {} s", CALL_TIMEOUT.as_secs()))),
        }
    }
}

/// Runs a connection as long as its one exchange needs it.
pub(crate) async fn drive<T>(
    connection: impl Future<Output = hyper::Result<()>>,
    exchange: impl Future<Output = T>,
) -> T {
    let mut connection = std::pin::pin!(connection);
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        result = &mut exchange => result,
        // A connection that ended has handed over all it had; the exchange ends by itself.
        _ = &mut connection => exchange.await,
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
