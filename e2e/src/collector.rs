//! A stand-in for an OpenTelemetry collector: it speaks OTLP over HTTP on a socket of its own and decodes strictly what
//! arrives; or it hangs, or refuses.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::ground::until;

/// How long spans may take to arrive on a loaded machine.
const ARRIVES_WITHIN: Duration = Duration::from_secs(30);

/// What the collector does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Takes it.
    Takes,
    /// Reads it and never answers.
    Hangs,
    /// Answers with this status.
    Refuses(u16),
}

/// The running collector; dropping it stops it.
#[derive(Debug)]
pub struct Collector {
    /// Where it listens.
    pub address: SocketAddr,
    heard: Arc<Mutex<Heard>>,
    _accept: AbortOnDropHandle<()>,
}

#[derive(Debug)]
struct Heard {
    manner: Manner,
    requests: usize,
    bodies: Vec<Bytes>,
    spans: Vec<Span>,
    faults: Vec<String>,
}

/// One span as it arrived.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Span {
    /// 32 hexadecimal digits.
    pub trace_id: String,
    /// 16 hexadecimal digits.
    pub span_id: String,
    /// The span above it; absent for a root.
    #[serde(default)]
    pub parent_span_id: String,
    /// Its name.
    pub name: String,
    /// 1 internal, 2 server, 3 client.
    pub kind: u8,
    start_time_unix_nano: String,
    end_time_unix_nano: String,
    attributes: Vec<KeyValue>,
    #[serde(default)]
    status: Status,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Status {
    code: u8,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyValue {
    key: String,
    value: AnyValue,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
enum AnyValue {
    #[serde(rename = "stringValue")]
    Text(String),
    /// The JSON form of protocol buffers prints 64-bit numbers as texts.
    #[serde(rename = "intValue")]
    Number(String),
    #[serde(rename = "boolValue")]
    Flag(bool),
    #[serde(rename = "arrayValue")]
    List { values: Vec<AnyValue> },
}

impl AnyValue {
    fn json(&self) -> Result<Value> {
        Ok(match self {
            Self::Text(text) => text.clone().into(),
            Self::Number(number) => number.parse::<i64>()?.into(),
            Self::Flag(flag) => (*flag).into(),
            Self::List { values } => values.iter().map(Self::json).collect::<Result<Vec<_>>>()?.into(),
        })
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Export {
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ResourceSpans {
    resource: Resource,
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resource {
    attributes: Vec<KeyValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ScopeSpans {
    #[serde(rename = "scope")]
    _scope: Scope,
    spans: Vec<Span>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scope {
    #[serde(rename = "name")]
    _name: String,
    #[serde(rename = "version")]
    _version: String,
}

impl Span {
    /// One attribute; `null` if the span does not have it.
    #[must_use]
    pub fn get(&self, key: &str) -> Value {
        self.fields().remove(key).unwrap_or_default()
    }

    /// All attributes by name.
    #[must_use]
    pub fn fields(&self) -> BTreeMap<String, Value> {
        let read = |field: &KeyValue| (field.key.clone(), field.value.json().unwrap_or_default());
        self.attributes.iter().map(read).collect()
    }

    /// Whether its status is "error".
    #[must_use]
    pub fn failed(&self) -> bool {
        self.status.code == 2
    }

    /// When it began and ended, in nanoseconds since 1970.
    #[must_use]
    pub fn times(&self) -> (u64, u64) {
        let read = |text: &str| text.parse().unwrap_or(0);
        (read(&self.start_time_unix_nano), read(&self.end_time_unix_nano))
    }

    fn check(&self) -> Result<()> {
        let is_id = |text: &str, digits| {
            text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        ensure!(is_id(&self.trace_id, 32) && is_id(&self.span_id, 16), "ids of {self:?}");
        ensure!(self.parent_span_id.is_empty() || is_id(&self.parent_span_id, 16), "parent of {self:?}");
        let (began, ended) = self.times();
        ensure!(began > 0 && began <= ended, "times of {self:?}");
        for field in &self.attributes {
            field.value.json().with_context(|| format!("value of {field:?}"))?;
        }
        ensure!(self.fields().len() == self.attributes.len(), "an attribute stands twice in {self:?}");
        Ok(())
    }
}

impl Collector {
    /// Starts it on a free loopback port.
    ///
    /// # Errors
    /// No port could be taken.
    pub async fn start(manner: Manner) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let heard = Heard { manner, requests: 0, bodies: Vec::new(), spans: Vec::new(), faults: Vec::new() };
        let heard = Arc::new(Mutex::new(heard));
        let shared = Arc::clone(&heard);
        let accept = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let heard = Arc::clone(&shared);
                connections.spawn(async move {
                    let service = service_fn(move |request| respond(request, Arc::clone(&heard)));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, heard, _accept: AbortOnDropHandle::new(accept) })
    }

    /// Its base address, as `traces.endpoint` takes it.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on.
    pub fn set_manner(&self, manner: Manner) {
        self.heard.lock().manner = manner;
    }

    /// Requests that it got, whatever it did with them.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.heard.lock().requests
    }

    /// All bodies that it took, as they came.
    #[must_use]
    pub fn bodies(&self) -> Vec<Bytes> {
        self.heard.lock().bodies.clone()
    }

    /// All spans that it took.
    ///
    /// # Errors
    /// Something that arrived was not OTLP.
    pub fn spans(&self) -> Result<Vec<Span>> {
        let heard = self.heard.lock();
        ensure!(heard.faults.is_empty(), "the collector could not read {:?}", heard.faults);
        Ok(heard.spans.clone())
    }

    /// Waits for the trace of one request, and gives its spans, the root first.
    ///
    /// # Errors
    /// It does not arrive.
    pub async fn trace_of(&self, request_id: &str) -> Result<Vec<Span>> {
        until(&format!("the trace of {request_id}"), ARRIVES_WITHIN, async || {
            let mut spans = self.spans()?;
            let root = spans.iter().find(|span| span.get("cxmpute.request.id") == request_id).cloned();
            let Some(root) = root else { return Ok(None) };
            // A client may give several requests one trace: what belongs to this one hangs below its root.
            let mut tree = vec![root];
            let mut at = 0;
            while at < tree.len() {
                let id = tree[at].span_id.clone();
                let (below, others): (Vec<Span>, Vec<Span>) =
                    spans.into_iter().partition(|span| span.parent_span_id == id);
                tree.extend(below);
                spans = others;
                at += 1;
            }
            Ok(Some(tree))
        })
        .await
    }
}

async fn respond(
    request: Request<Incoming>,
    heard: Arc<Mutex<Heard>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let manner = {
        let mut heard = heard.lock();
        heard.requests += 1;
        heard.manner
    };
    let status = match manner {
        Manner::Hangs => std::future::pending().await,
        Manner::Refuses(status) => status,
        Manner::Takes => {
            let kind = parts.headers.get(header::CONTENT_TYPE);
            let is_ours = parts.method == Method::POST
                && parts.uri.path() == "/v1/traces"
                && kind.is_some_and(|kind| kind == "application/json");
            let mut heard = heard.lock();
            match decode(&body) {
                Ok(spans) if is_ours => heard.spans.extend(spans),
                Ok(_) => heard.faults.push(format!("{} {} as {kind:?}", parts.method, parts.uri)),
                Err(error) => heard.faults.push(format!("{error:#}")),
            }
            heard.bodies.push(body);
            200
        }
    };
    let mut response = Response::new(Full::new(Bytes::from_static(b"{}")));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    Ok(response)
}

fn decode(body: &[u8]) -> Result<Vec<Span>> {
    let export: Export = serde_json::from_slice(body)?;
    let mut spans = Vec::new();
    for resource in export.resource_spans {
        let named = resource.resource.attributes.iter().any(|field| field.key == "service.name");
        ensure!(named, "the resource has no service.name");
        for scope in resource.scope_spans {
            for span in scope.spans {
                span.check()?;
                spans.push(span);
            }
        }
    }
    Ok(spans)
}
