//! Spans as OTLP over HTTP takes them: the JSON form of `ExportTraceServiceRequest` (ids in hexadecimal, 64-bit numbers
//! as texts, enumerations as numbers).

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};
use serde_json::{Value as Json, json};

use super::span::{Fields, Span, Value};

/// Below the collector's base address.
pub const PATH: &str = "/v1/traces";
/// Status code "error" of a span.
const FAILED: u8 = 2;

/// Who sends.
#[derive(Debug, Clone)]
pub struct Source {
    resource: Json,
    scope: Json,
}

impl Source {
    /// The gateway with this name among its replicas.
    #[must_use]
    pub fn new(replica: &str) -> Self {
        let version = env!("CARGO_PKG_VERSION");
        let text = |key: &str, text: &str| json!({"key": key, "value": {"stringValue": text}});
        Self {
            resource: json!({"attributes": [
                text("service.name", "cxmpute"),
                text("service.version", version),
                text("service.instance.id", replica),
            ]}),
            scope: json!({"name": "cxmpute-gateway", "version": version}),
        }
    }

    /// One request of the protocol.
    ///
    /// # Errors
    /// None that these types allow.
    pub fn print<'a>(&self, spans: impl Iterator<Item = &'a Span> + Clone) -> serde_json::Result<Vec<u8>> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Request<T> {
            resource_spans: [T; 1],
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct ResourceSpans<'a, T> {
            resource: &'a Json,
            scope_spans: [T; 1],
        }
        #[derive(Serialize)]
        struct ScopeSpans<'a, S> {
            scope: &'a Json,
            spans: S,
        }
        let scope_spans = [ScopeSpans { scope: &self.scope, spans: Spans(spans) }];
        let resource_spans = [ResourceSpans { resource: &self.resource, scope_spans }];
        serde_json::to_vec(&Request { resource_spans })
    }
}

struct Spans<I>(I);

impl<'a, I: Iterator<Item = &'a Span> + Clone> Serialize for Spans<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.clone().map(Printed))
    }
}

struct Printed<'a>(&'a Span);

impl Serialize for Printed<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire<'a> {
            trace_id: String,
            span_id: String,
            #[serde(skip_serializing_if = "Option::is_none")]
            parent_span_id: Option<String>,
            name: &'a str,
            kind: u8,
            start_time_unix_nano: String,
            end_time_unix_nano: String,
            attributes: Attributes<'a>,
            #[serde(skip_serializing_if = "Option::is_none")]
            status: Option<Status>,
        }
        #[derive(Serialize)]
        struct Status {
            code: u8,
        }
        let span = self.0;
        Wire {
            trace_id: span.trace.to_string(),
            span_id: span.id.to_string(),
            parent_span_id: span.parent.map(|id| id.to_string()),
            name: &span.name,
            kind: span.kind as u8,
            start_time_unix_nano: span.began.to_string(),
            end_time_unix_nano: span.ended.to_string(),
            attributes: Attributes(&span.fields),
            status: span.failed.then_some(Status { code: FAILED }),
        }
        .serialize(serializer)
    }
}

struct Attributes<'a>(&'a Fields);

impl Serialize for Attributes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for (key, value) in self.0.iter() {
            list.serialize_element(&json!({"key": key.name(), "value": any_value(value)}))?;
        }
        list.end()
    }
}

fn any_value(value: &Value) -> Json {
    let text = |text: &str| json!({"stringValue": text});
    match value {
        Value::Text(it) => text(it),
        Value::Texts(them) => {
            json!({"arrayValue": {"values": them.iter().map(|it| text(it)).collect::<Vec<_>>()}})
        }
        Value::Number(number) => json!({"intValue": number.to_string()}),
        Value::Flag(flag) => json!({"boolValue": flag}),
    }
}

/// Spans that a collector says it did not take although it answered 200 (`partial_success`).
#[must_use]
pub fn rejected(body: &[u8]) -> u64 {
    let answer: Json = serde_json::from_slice(body).unwrap_or_default();
    let count = &answer["partialSuccess"]["rejectedSpans"];
    count.as_u64().or_else(|| count.as_str()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::context::{SpanId, TraceId};
    use super::super::span::{Key, Kind};
    use super::*;

    #[test]
    fn a_span_is_printed_as_the_protocol_says() {
        let mut fields = Fields::default();
        fields.set(Key::HttpStatus, 502u64);
        fields.set(Key::Streaming, true);
        fields.set(Key::FinishReasons, Value::Texts(vec!["stop".into()]));
        let span = Span {
            trace: TraceId([0xab; 16]),
            id: SpanId([1; 8]),
            parent: Some(SpanId([2; 8])),
            name: "POST /chat/completions".into(),
            kind: Kind::Server,
            began: 1_767_225_600_000_000_001,
            ended: 1_767_225_600_000_000_002,
            fields,
            failed: true,
        };
        let printed = Source::new("a").print([&span].into_iter()).unwrap();
        let printed: Json = serde_json::from_slice(&printed).unwrap();
        assert_eq!(
            printed["resourceSpans"][0]["scopeSpans"][0]["spans"],
            json!([{
                "traceId": "abababababababababababababababab",
                "spanId": "0101010101010101",
                "parentSpanId": "0202020202020202",
                "name": "POST /chat/completions",
                "kind": 2,
                "startTimeUnixNano": "1767225600000000001",
                "endTimeUnixNano": "1767225600000000002",
                "attributes": [
                    {"key": "http.response.status_code", "value": {"intValue": "502"}},
                    {"key": "cxmpute.streaming", "value": {"boolValue": true}},
                    {"key": "gen_ai.response.finish_reasons", "value": {"arrayValue": {"values": [{"stringValue": "stop"}]}}},
                ],
                "status": {"code": 2},
            }])
        );
    }

    #[test]
    fn what_a_collector_rejects_is_read_in_both_prints() {
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":"3","errorMessage":"no"}}"#), 3);
        assert_eq!(rejected(br#"{"partialSuccess":{"rejectedSpans":2}}"#), 2);
        assert_eq!(rejected(b"{}") + rejected(b"") + rejected(b"\xff"), 0);
    }
}
