//! The published contract: holds answers of a gateway against its OpenAPI document. Every client of the suite asks it.

pub mod generate;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};

use anyhow::{Context as _, Result, ensure};
use jsonschema::Validator;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::client::Client;

/// The document of the gateway that this program is built with.
static SHARED: LazyLock<Contract> =
    LazyLock::new(|| Contract::from_document(cxmpute_gateway::openapi::document().value.clone()));

/// Statuses with which the edge refuses anything, whatever the path.
const EDGE: [u16; 2] = [414, 431];

/// An OpenAPI document, ready to judge answers.
pub struct Contract {
    document: Value,
    paths: Vec<Path>,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

impl std::fmt::Debug for Contract {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the contract of {} paths", self.paths.len())
    }
}

struct Path {
    template: String,
    /// At the root, or below the API's prefixes.
    at_root: bool,
    /// The last parameter takes slashes.
    open_end: bool,
    methods: Vec<String>,
}

/// What the document says about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A described operation: its path in the document and its method, in lower case.
    Operation(String, String),
    /// The path is described, the method is not.
    NoMethod,
    /// The path is not described.
    NoPath,
}

impl Contract {
    /// The document of the gateway that this program is built with.
    #[must_use]
    pub fn shared() -> &'static Self {
        &SHARED
    }

    /// The document that a running gateway serves.
    ///
    /// # Errors
    /// It serves none.
    pub async fn of(gateway: SocketAddr) -> Result<Self> {
        let reply = Client::anonymous(gateway).call("GET", "/openapi.json", None).await?;
        ensure!(reply.status == 200, "/openapi.json: {}", reply.status);
        Ok(Self::from_document(serde_json::from_slice(&reply.body).context("/openapi.json is no JSON")?))
    }

    /// A given document.
    #[must_use]
    pub fn from_document(document: Value) -> Self {
        let items = document["paths"].as_object().into_iter().flatten();
        let paths = items.map(|(template, item)| Path::read(template, item)).collect();
        Self { document, paths, validators: Mutex::default() }
    }

    /// The whole document.
    #[must_use]
    pub fn document(&self) -> &Value {
        &self.document
    }

    /// Every operation: path in the document, method in lower case, and what it says.
    pub fn operations(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        self.paths.iter().flat_map(|path| {
            path.methods.iter().map(|method| {
                let operation = &self.document["paths"][&path.template][method];
                (path.template.as_str(), method.as_str(), operation)
            })
        })
    }

    /// Whether a path of the document stands at the root instead of below the API's prefixes.
    #[must_use]
    pub fn is_at_root(&self, template: &str) -> bool {
        self.paths.iter().any(|path| path.template == template && path.at_root)
    }

    /// What the document says about a request. `target` may have a query.
    #[must_use]
    pub fn find(&self, method: &str, target: &str) -> Found {
        let address = target.split('?').next().unwrap_or(target);
        let below = ["/api/v1", "/v1"]
            .iter()
            .find_map(|prefix| address.strip_prefix(prefix).filter(|rest| rest.starts_with('/')));
        let mut fitting: Vec<&Path> = self.paths.iter().filter(|path| path.fits(address, below)).collect();
        fitting.sort_by_key(|path| path.template.contains('{'));
        let Some(path) = fitting.first() else { return Found::NoPath };
        let method = if method == "HEAD" { "get".to_owned() } else { method.to_lowercase() };
        match path.methods.contains(&method) {
            true => Found::Operation(path.template.clone(), method),
            false => Found::NoMethod,
        }
    }

    /// Judges a whole answer. Header names are in lower case.
    ///
    /// # Errors
    /// What the document does not say, in one line.
    pub fn check(
        &self,
        method: &str,
        target: &str,
        status: u16,
        headers: &[(String, String)],
        body: &[u8],
    ) -> Result<()> {
        let Some(response) = self.check_head(method, target, status, headers)? else { return Ok(()) };
        if method == "HEAD" {
            ensure!(body.is_empty(), "{method} {target}: a body after HEAD");
            return Ok(());
        }
        let what = || format!("{method} {target} -> {status}");
        let Some(media) = response.media else {
            ensure!(body.is_empty(), "{}: a body of {} bytes where none is described", what(), body.len());
            return Ok(());
        };
        if media == "text/event-stream" {
            return self.check_events(&response.key, &response.schema, body).with_context(what);
        }
        if media.starts_with("audio/") || media.starts_with("image/") {
            ensure!(!body.is_empty(), "{}: sound of no length", what());
            return Ok(());
        }
        if ["text/html", "text/plain", "text/vtt"].contains(&media.as_str()) {
            return Ok(());
        }
        let value: Value = serde_json::from_slice(body).with_context(|| format!("{}: no JSON", what()))?;
        self.validate(&response.key, &response.schema, &value).with_context(what)
    }

    /// Judges status and headers; the answer says how to judge the body, where it can be judged.
    ///
    /// # Errors
    /// What the document does not say, in one line.
    pub fn check_head(
        &self,
        method: &str,
        target: &str,
        status: u16,
        headers: &[(String, String)],
    ) -> Result<Option<Response>> {
        let what = || format!("{method} {target} -> {status}");
        let outside = |wanted: u16, code: &str| -> Result<Option<Response>> {
            if method == "OPTIONS" && status == 200 {
                return Ok(None);
            }
            let code = match status {
                414 => "uri_too_long",
                431 => "head_too_large",
                _ => code,
            };
            ensure!(status == wanted || EDGE.contains(&status), "{}: not described", what());
            Ok(Some(Response::refusal(code)))
        };
        match self.find(method, target) {
            Found::NoPath => outside(404, "not_found"),
            Found::NoMethod => outside(405, "method_not_allowed"),
            Found::Operation(path, method) => {
                let responses = &self.document["paths"][&path][&method]["responses"];
                let described = &responses[status.to_string()];
                ensure!(described.is_object(), "{}: an undocumented status", what());
                self.check_headers(described, headers).with_context(what)?;
                let media = headers.iter().find(|(name, _)| name == "content-type");
                let media = media.map(|(_, value)| value.split(';').next().unwrap_or_default().trim());
                let schema = match described.get("content") {
                    None => Value::Null,
                    Some(content) => {
                        let media = media.with_context(|| format!("{}: no content type", what()))?;
                        let found = content.get(media);
                        let found = found
                            .with_context(|| format!("{}: an undocumented content type {media}", what()))?;
                        found["schema"].clone()
                    }
                };
                let media = described.get("content").and(media).map(str::to_owned);
                let key = format!("{path} {method} {status} {}", media.as_deref().unwrap_or_default());
                Ok(Some(Response { key, media, schema }))
            }
        }
    }

    /// Judges the data of one event of a stream whose head was judged.
    ///
    /// # Errors
    /// What the document does not say, in one line.
    pub fn check_event(&self, stream: &Response, event: &Value) -> Result<()> {
        self.validate(&stream.key, &stream.schema, event)
    }

    fn check_events(&self, key: &str, schema: &Value, body: &[u8]) -> Result<()> {
        let text = std::str::from_utf8(body).context("the stream is no UTF-8")?;
        let mut ended = false;
        for block in text.split("\n\n").filter(|block| !block.is_empty()) {
            // Streams of some routes name their events.
            let (name, block) = match block.strip_prefix("event: ").and_then(|rest| rest.split_once('\n')) {
                Some((name, rest)) => (Some(name), rest),
                None => (None, block),
            };
            let Some(data) = block.strip_prefix("data: ") else {
                ensure!(
                    block.lines().all(|line| line.starts_with(':')),
                    "neither event nor comment: {block:?}"
                );
                continue;
            };
            ensure!(!ended, "an event after the end: {data}");
            if data == "[DONE]" {
                ended = true;
                continue;
            }
            let value: Value = serde_json::from_str(data).with_context(|| format!("no JSON: {data}"))?;
            self.validate(key, schema, &value)?;
            ended = match name {
                None => value.get("error").is_some(),
                Some(name) => {
                    ensure!(value["type"] == name, "an event called {name} holds {}", value["type"]);
                    LAST_EVENTS.contains(&name)
                }
            };
        }
        ensure!(ended, "the stream has no end");
        Ok(())
    }

    fn check_headers(&self, described: &Value, headers: &[(String, String)]) -> Result<()> {
        for (name, header) in described["headers"].as_object().into_iter().flatten() {
            let header = match header["$ref"].as_str() {
                Some(target) => self.document.pointer(&target[1..]).context("a dangling reference")?,
                None => header,
            };
            let lower = name.to_lowercase();
            match headers.iter().find(|(have, _)| *have == lower) {
                Some((_, value)) => {
                    self.validate(
                        &format!("header {name} {}", header["schema"]),
                        &header["schema"],
                        &json!(value),
                    )
                    .with_context(|| format!("header {name}"))?;
                }
                None => ensure!(header["required"] != true, "the header {name} is missing"),
            }
        }
        Ok(())
    }

    /// Holds a value against a schema of the document.
    ///
    /// # Errors
    /// The first differences, in one line.
    pub fn validate(&self, key: &str, schema: &Value, value: &Value) -> Result<()> {
        let known = self.validators.lock().get(key).cloned();
        let validator = match known {
            Some(validator) => validator,
            None => {
                let whole = json!({"allOf": [schema], "components": self.document["components"]});
                let built = Arc::new(jsonschema::draft202012::new(&whole).map_err(|error| {
                    anyhow::anyhow!("the document's schema for {key} cannot be used: {error}")
                })?);
                self.validators.lock().insert(key.to_owned(), Arc::clone(&built));
                built
            }
        };
        let mut complaints = validator.iter_errors(value).peekable();
        if complaints.peek().is_none() {
            return Ok(());
        }
        let said: Vec<String> = complaints
            .take(4)
            .map(|error| format!("{} at {}", cut(&error.to_string()), error.instance_path()))
            .collect();
        anyhow::bail!(
            "does not fit the document: {}; the value: {}",
            said.join("; "),
            cut(&value.to_string())
        )
    }
}

/// Named events after which nothing follows.
const LAST_EVENTS: [&str; 6] = [
    "message_stop",
    "error",
    "response.completed",
    "response.incomplete",
    "response.failed",
    "speech.audio.done",
];

/// How to judge the body of an answer.
#[derive(Clone, Debug)]
pub struct Response {
    key: String,
    media: Option<String>,
    schema: Value,
}

impl Response {
    /// The answer to what the document does not describe.
    fn refusal(code: &str) -> Self {
        Self {
            key: format!("refusal {code}"),
            media: Some("application/json".to_owned()),
            schema: json!({
                "allOf": [{"$ref": "#/components/schemas/ErrorEnvelope"}],
                "properties": {"error": {"properties": {"code": {"const": code}}}},
            }),
        }
    }

    /// Whether the body is a stream of events.
    #[must_use]
    pub fn is_stream(&self) -> bool {
        self.media.as_deref() == Some("text/event-stream")
    }
}

impl Path {
    fn read(template: &str, item: &Value) -> Self {
        let methods: Vec<String> = item
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, _)| key.clone())
            .filter(|key| key != "servers")
            .collect();
        let open_end = item.as_object().into_iter().flatten().any(|(_, operation)| {
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            parameters.into_iter().any(|parameter| parameter["x-multi-segment"] == true)
        });
        Self { template: template.to_owned(), at_root: item.get("servers").is_some(), open_end, methods }
    }

    fn fits(&self, address: &str, below: Option<&str>) -> bool {
        let address = match (self.at_root, below) {
            (true, _) => address,
            (false, Some(below)) => below,
            (false, None) => return false,
        };
        let mut have = address.split('/');
        let wanted: Vec<&str> = self.template.split('/').collect();
        for (at, part) in wanted.iter().enumerate() {
            let Some(segment) = have.next() else { return false };
            if part.starts_with('{') {
                if at + 1 == wanted.len() && self.open_end {
                    return !segment.is_empty() || have.next().is_some();
                }
                if segment.is_empty() {
                    return false;
                }
            } else if *part != segment {
                return false;
            }
        }
        have.next().is_none()
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(400) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_found_as_the_router_finds_them() {
        let contract = Contract::shared();
        let operation = |path: &str, method: &str| Found::Operation(path.to_owned(), method.to_owned());
        for (method, target, wanted) in [
            ("POST", "/v1/chat/completions", operation("/chat/completions", "post")),
            ("POST", "/api/v1/chat/completions?x=1", operation("/chat/completions", "post")),
            ("HEAD", "/v1/models/a/b:c", operation("/models/{id}", "get")),
            ("GET", "/healthz", operation("/healthz", "get")),
            ("GET", "/v1/healthz", Found::NoPath),
            ("GET", "/models", Found::NoPath),
            ("GET", "/v1/models/", Found::NoPath),
            ("GET", "/v1/chat/completions", Found::NoMethod),
            ("PUT", "/v1/provisions/pv_a/b", Found::NoPath),
        ] {
            assert_eq!(contract.find(method, target), wanted, "{method} {target}");
        }
    }

    #[test]
    fn what_the_document_does_not_say_is_a_complaint() {
        let contract = Contract::shared();
        let id = "req_00000000000000000000000000000000";
        let headers = |more: &[(&str, &str)]| {
            let mut all = vec![
                ("x-request-id".to_owned(), id.to_owned()),
                ("content-type".to_owned(), "application/json".to_owned()),
            ];
            all.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
            all
        };
        let error = |code: &str| {
            json!({"error": {"message": "m", "type": "invalid_request_error", "param": null, "code": code}, "request_id": id})
                .to_string()
        };
        let path = "/v1/chat/completions";
        let judge = |status: u16, headers: &[(String, String)], body: &str| {
            contract.check("POST", path, status, headers, body.as_bytes())
        };
        judge(400, &headers(&[]), &error("invalid_json")).unwrap();
        judge(429, &headers(&[("retry-after", "1")]), &error("queue_full")).unwrap();
        for (status, head, body) in [
            (418, headers(&[]), error("invalid_json")),
            (400, headers(&[]), error("model_not_found")),
            (400, Vec::new(), error("invalid_json")),
            (400, headers(&[]), "{}".to_owned()),
            (400, headers(&[]), error("invalid_json").replace("\"param\"", "\"parameter\"")),
            (429, headers(&[]), error("queue_full")),
            (429, headers(&[("retry-after", "soon")]), error("queue_full")),
            (200, headers(&[]), "{}".to_owned()),
        ] {
            assert!(judge(status, &head, &body).is_err(), "{status} {head:?} {body}");
        }
    }
}
