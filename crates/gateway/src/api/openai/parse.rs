//! From bytes to a closed schema: unknown fields are dropped and named, a wrong field is a 400 that names it (GR2).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::Response;
use cxmpute_market::catalogue::{Catalogue, ModelEntry};
use cxmpute_market::wish::Wishes;
use cxmpute_tokens::TokenCounter;
use cxmpute_wire::openai::fields::Closed;
use cxmpute_wire::openai::{ProviderPreferences, SortBy};
use cxmpute_wire::{Code, ServiceKind};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::DeserializeOwned;

use super::place::{below, path_at, wanted};
use super::validate::output_limit;
use crate::app::App;
use crate::body::{RawBody, require_json};
use crate::edge::Edge;
use crate::error::{ApiError, ApiResult};
use crate::json::{self, Ignored};
use crate::limits;
use crate::relay::{Alternative, Ticket};

const X_IGNORED: HeaderName = HeaderName::from_static("x-cxmpute-ignored");

/// A JSON body of a closed schema, with the field at fault named in errors, and the fields outside the schema. Boxed at
/// once: it is large, and moves often.
pub struct Parsed<T>(pub Box<T>, pub Ignored);

impl<T: DeserializeOwned + Closed> FromRequest<Arc<App>> for Parsed<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> ApiResult<Self> {
        require_json(request.headers())?;
        let RawBody(bytes) = RawBody::from_request(request, app).await?;
        #[cfg(feature = "sabotage")]
        if app.sabotage == Some(crate::sabotage::Sabotage::UntypedParsing) {
            let any: serde_json::Value =
                serde_json::from_slice(&bytes).map_err(|error| json::data_error(&error))?;
            let request = serde_json::from_value(any).map_err(|error| json::data_error(&error))?;
            return Ok(Self(Box::new(request), Ignored::default()));
        }
        parse(&bytes)
    }
}

fn parse<T: DeserializeOwned + Closed>(bytes: &[u8]) -> ApiResult<Parsed<T>> {
    let ignored = json::check_fields(bytes, T::FIELDS)?;
    match serde_json::from_slice(bytes) {
        Ok(request) => Ok(Parsed(request, ignored)),
        Err(error) => Err(refuse(bytes, &error)),
    }
}

/// The refusal of a body that is JSON and does not fit its type.
fn refuse(bytes: &[u8], error: &serde_json::Error) -> ApiError {
    let text = error.to_string();
    let inside = text.starts_with("data did not match any variant");
    let place = path_at(bytes, error.line(), error.column(), inside);
    if let Some(missing) = text.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        let field = below(&place, missing);
        return ApiError::invalid_parameter(&shown(&field), format!("`{}` is missing.", shown(&field)));
    }
    if place.is_empty() {
        return ApiError::invalid_json("The body is not the JSON object that this route takes.");
    }
    let field = shown(&place);
    let message = match (place.split(['[', '.']).next(), wanted(&text)) {
        _ if text.contains("untagged enum ResponseInput") => {
            "`input` is a text or a list of items; an item, or a part of one, has a wrong type or value."
                .to_owned()
        }
        (Some(name @ ("prompt" | "input")), _) => {
            format!("`{name}` is a text or a list of texts; send text, not token ids.")
        }
        (_, Some(wanted)) => format!("`{field}` must be {wanted}."),
        (_, None) => format!("`{field}` has a wrong type or value."),
    };
    // OpenAI names these two as a whole.
    let param = if field.starts_with("prompt") { "prompt" } else { &field };
    ApiError::invalid_parameter(param, message)
}

/// What the head of a request says beside its body.
pub struct Manners {
    strict: bool,
    /// Paths of the fields outside the schema.
    pub ignored: Vec<String>,
    /// Bytes of the body.
    pub read: usize,
    /// `X-Title`.
    pub title: Option<String>,
    /// `HTTP-Referer` or `Referer`.
    pub referer: Option<String>,
    /// `X-Cxmpute-Timeout-Ms`: the time the client gives the request.
    pub timeout: Option<Duration>,
}

/// The manners of a request, read from its head without a copy of it; a fault in them is told after those of the body.
pub struct Mannered(pub ApiResult<Manners>);

impl FromRequestParts<Arc<App>> for Mannered {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> ApiResult<Self> {
        Ok(Self(Manners::of(&parts.headers)))
    }
}

impl Manners {
    /// Reads the labels of the calling application, whether unknown fields are an error, and the wanted deadline.
    ///
    /// # Errors
    /// A header of ours has a value that it cannot have.
    pub fn of(headers: &HeaderMap) -> ApiResult<Self> {
        let label = |name: &str| {
            let value = headers.get(name)?.to_str().ok()?.trim();
            let text: String = value.chars().filter(|c| !c.is_control()).take(200).collect();
            (!text.is_empty()).then_some(text)
        };
        let strict = match headers.get("x-cxmpute-strict").map(HeaderValue::as_bytes) {
            None | Some(b"0") => false,
            Some(b"1") => true,
            Some(_) => {
                return Err(ApiError::invalid_parameter("X-Cxmpute-Strict", "X-Cxmpute-Strict is 0 or 1."));
            }
        };
        Ok(Self {
            strict,
            ignored: Vec::new(),
            read: 0,
            title: label("x-title"),
            referer: label("http-referer").or_else(|| label("referer")),
            timeout: headers.get("x-cxmpute-timeout-ms").map(timeout).transpose()?,
        })
    }

    /// Notes fields outside the schema.
    ///
    /// # Errors
    /// There are some, and the caller wants to be told.
    pub fn ignore(&mut self, ignored: Ignored) -> ApiResult<()> {
        if let (true, Some(first)) = (self.strict, &ignored.first) {
            let first = shown(first);
            let message = format!("`{first}` is not a field of this route.");
            return Err(ApiError::unsupported_parameter(&first, message));
        }
        self.ignored = ignored.names;
        self.read = ignored.read;
        Ok(())
    }

    /// What an errand of this request needs to know of it.
    pub fn ticket(
        &mut self,
        edge: Edge,
        route: &'static str,
        name: &str,
        model: Arc<ModelEntry>,
        wishes: Arc<Wishes>,
        total: Duration,
    ) -> Ticket {
        Ticket {
            request_id: edge.request_id,
            watch: edge.watch,
            arrived: edge.arrived,
            route,
            operation: operation_of(route),
            model,
            model_name: name.to_owned(),
            wishes,
            title: self.title.take(),
            referer: self.referer.take(),
            total: self.timeout.map_or(total, |wanted| wanted.min(total)),
            hurried: self.timeout.is_some_and(|wanted| wanted < total),
        }
    }

    /// The dropped fields, for the known-bad variant that sends them on.
    #[cfg(feature = "sabotage")]
    pub fn names(&self) -> Vec<String> {
        self.ignored.clone()
    }

    /// Names the dropped fields in the answer.
    pub fn sign(&self, mut response: Response) -> Response {
        if !self.ignored.is_empty() {
            let names: Vec<String> = self.ignored.iter().map(|name| shown(name)).collect();
            if let Ok(value) = HeaderValue::from_str(&names.join(",")) {
                response.headers_mut().insert(X_IGNORED, value);
            }
        }
        response
    }
}

/// The route's name as an operation in traces, after OpenTelemetry's conventions for generative AI.
fn operation_of(route: &'static str) -> &'static str {
    route.trim_start_matches('/')
}

fn timeout(value: &HeaderValue) -> ApiResult<Duration> {
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let millis =
        digits.and_then(|text| text.parse().ok()).filter(|millis| (1..=limits::TIMEOUT_MS).contains(millis));
    millis.map(Duration::from_millis).ok_or_else(|| {
        let message =
            format!("X-Cxmpute-Timeout-Ms is a number of milliseconds from 1 to {}.", limits::TIMEOUT_MS);
        ApiError::invalid_parameter("X-Cxmpute-Timeout-Ms", message)
    })
}

/// A field's name as it may stand in a header.
fn shown(name: &str) -> String {
    name.chars().take(128).map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '?' }).collect()
}

/// Splits a name such as `MODEL:nitro` into the model and what its nodes are sorted by (GR20). A name that the
/// catalogue knows as it stands is never split.
fn split_suffix<'a>(catalogue: &Catalogue, name: &'a str) -> (&'a str, Option<SortBy>) {
    let suffixes = [(":floor", SortBy::Price), (":nitro", SortBy::Throughput)];
    let split = suffixes.iter().find_map(|(suffix, by)| Some((name.strip_suffix(suffix)?, *by)));
    match split {
        Some((model, by)) if catalogue.resolve(name).is_none() => (model, Some(by)),
        _ => (name, None),
    }
}

/// What is wished for of the nodes: the `provider` object, and the suffix of the model's name where the object does not
/// sort.
///
/// # Errors
/// A field of the object has a value that cannot be meant.
pub fn wishes(app: &App, model: &str, preferences: Option<&ProviderPreferences>) -> ApiResult<Arc<Wishes>> {
    let mut wishes = match preferences {
        None => Wishes::default(),
        Some(preferences) => Wishes::read(preferences).map_err(|bad| {
            ApiError::invalid_parameter(&format!("provider.{}", bad.field), bad.to_string())
        })?,
    };
    if wishes.sort.is_none() {
        wishes.sort = split_suffix(&app.catalogue, model).1;
    }
    Ok(Arc::new(wishes))
}

/// The model that was asked for, if it does this kind of work.
pub fn find_model(app: &App, name: &str, kind: ServiceKind) -> ApiResult<Arc<ModelEntry>> {
    find_any(app, name, &[kind])
}

/// The model that was asked for, if it does one of these kinds of work.
///
/// # Errors
/// There is none.
pub fn find_any(app: &App, name: &str, kinds: &[ServiceKind]) -> ApiResult<Arc<ModelEntry>> {
    let (model, _) = split_suffix(&app.catalogue, name);
    let entry = app.catalogue.resolve(model).filter(|entry| kinds.contains(&entry.kind));
    entry.cloned().ok_or_else(|| ApiError::model_not_found(name))
}

/// The model that was asked for, if it does this kind of work and can be metered here.
pub async fn resolve_model(
    app: &App,
    name: &str,
    kind: ServiceKind,
) -> ApiResult<(Arc<ModelEntry>, Option<TokenCounter>)> {
    let entry = find_model(app, name, kind)?;
    let counter = app.counters.of(&entry).await;
    if counter.is_none() && entry.price.character.0 == 0 && !entry.price.free {
        // A route without a meter is no route (GR section 11).
        return Err(
            ApiError::no_provider("This model cannot be metered here at the moment.").with("filter", "meter")
        );
    }
    Ok((entry, counter))
}

/// The model of a service that is counted by the piece: the named one, or where none is named the first that is able,
/// nodes that serve it now counting more than the order of the catalogue.
///
/// # Errors
/// There is none.
pub fn resolve_service(
    app: &App,
    name: Option<&str>,
    kind: ServiceKind,
    able: impl Fn(&ModelEntry) -> bool,
) -> ApiResult<Arc<ModelEntry>> {
    if let Some(name) = name {
        return find_model(app, name, kind);
    }
    let able = || app.catalogue.entries().iter().filter(|entry| entry.kind == kind && able(entry));
    let served = able().find(|entry| app.fleet.state(&entry.service).routable > 0);
    served.or_else(|| able().next()).cloned().ok_or_else(|| {
        ApiError::new(
            Code::ModelNotFound,
            format!("The catalogue has no model of the kind {kind} that can do this."),
        )
        .param("model")
    })
}

/// The models that may answer when the first has no node, each with the bound on its output.
///
/// # Errors
/// There are too many, one is unknown, or one cannot give as many tokens as were asked for; `models[i]` is named.
pub async fn resolve_alternatives(
    app: &App,
    names: Option<&[String]>,
    first: &ModelEntry,
    asked: Option<u64>,
    param: &str,
) -> ApiResult<Vec<Alternative>> {
    let names = names.unwrap_or_default();
    if names.len() > limits::FALLBACKS {
        return Err(ApiError::invalid_parameter(
            "models",
            format!("models may name at most {} models.", limits::FALLBACKS),
        ));
    }
    let mut alternatives: Vec<Alternative> = Vec::with_capacity(names.len());
    for (at, name) in names.iter().enumerate() {
        let here = |error: ApiError| error.param(format!("models[{at}]"));
        let (model, counter) = resolve_model(app, name, ServiceKind::Llm).await.map_err(here)?;
        if model.id == first.id || alternatives.iter().any(|other| other.model.id == model.id) {
            continue;
        }
        let (limit, explicit_limit) = output_limit(asked, &model, param).map_err(here)?;
        alternatives.push(Alternative { model, model_name: name.clone(), limit, explicit_limit, counter });
    }
    Ok(alternatives)
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::openai::{ChatRequest, CompletionRequest, EmbeddingRequest, ResponsesRequest};

    use super::*;

    fn param(body: &str) -> (u16, Option<String>) {
        let error = parse::<ChatRequest>(body.as_bytes()).err().unwrap();
        (error.status.as_u16(), error.param.clone())
    }

    #[test]
    fn the_field_at_fault_is_named() {
        let table = [
            (r#"{"messages":[]}"#, "model"),
            (r#"{"model":"m"}"#, "messages"),
            (r#"{"model":"m","messages":[],"temperature":"hot"}"#, "temperature"),
            (r#"{"model":"m","messages":[{"role":"user","content":7}],"n":1}"#, "messages[0].content"),
            (r#"{"model":"m","messages":[{"role":"pope","content":"x"}],"n":1}"#, "messages[0].role"),
            (
                r#"{"model":"m","messages":[{"role":"user","content":"x"},{"content":"x"}]}"#,
                "messages[1].role",
            ),
            (
                r#"{"model":"m","messages":[{"role":"user","content":[{"type":"text"}]}]}"#,
                "messages[0].content",
            ),
            (r#"{"model":"m","messages":[],"tools":[{"type":"function"}]}"#, "tools[0].function"),
            (r#"{"model":"m","messages":[],"logit_bias":{"1":"x"}}"#, "logit_bias.1"),
            (r#"{"model":"m","messages":[],"stop":[1]}"#, "stop"),
            (r#"{"model":"m","messages":[],"response_format":{"type":"grammar"}}"#, "response_format.type"),
            ("{\n \"model\":\"m\",\n \"max_tokens\":-1,\n \"messages\":[]\n}", "max_tokens"),
            (r#"{"max_tokens":18446744073709551616,"model":"m","messages":[]}"#, "max_tokens"),
            (r#"{"x\"y,{":1,"model":7,"messages":[]}"#, "model"),
            (
                r#"{"model":"m","messages":[],"provider":{"only":["a"],"sort":"best","zdr":true}}"#,
                "provider.sort",
            ),
            (r#"{"model":"m","messages":[],"provider":{"order":7}}"#, "provider.order"),
            (r#"{"model":"m","messages":[],"provider":{"only":["a",{"b":1}]},"n":1}"#, "provider.only[1]"),
            (r#"{"provider":{"zdr":1,"x":[{}]},"model":"m","messages":[]}"#, "provider.zdr"),
            (
                r#"{"provider":{"data_collection":"maybe"},"model":"m","messages":[]}"#,
                "provider.data_collection",
            ),
            (
                r#"{"provider":{"preferred_max_latency":{"p50":"x"}},"model":"m","messages":[]}"#,
                "provider.preferred_max_latency",
            ),
            (r#"{"provider":7,"model":"m","messages":[]}"#, "provider"),
            (r#"{"provider":{"zdr":true},"n":"x","model":"m","messages":[]}"#, "n"),
        ];
        for (body, field) in table {
            assert_eq!(param(body), (400, Some(field.to_owned())), "{body}");
        }
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for body in ["[]", "7", "\"x\"", "null"] {
            assert_eq!(param(body).0, 400, "{body}");
        }
    }

    #[test]
    fn messages_do_not_repeat_what_was_sent() {
        let body = r#"{"model":"m","messages":"canary-text"}"#;
        let error = parse::<ChatRequest>(body.as_bytes()).err().unwrap();
        assert!(!error.message.contains("canary"), "{}", error.message);
        for input in ["[1,2]", "[[1],[2]]", "7"] {
            let body = format!(r#"{{"model":"m","input":{input}}}"#);
            let error = parse::<EmbeddingRequest>(body.as_bytes()).err().unwrap();
            assert_eq!(error.param.as_deref(), Some("input"), "{input}");
            assert!(error.message.contains("not token ids"), "{}", error.message);
            let body = format!(r#"{{"model":"m","prompt":{input}}}"#);
            let error = parse::<CompletionRequest>(body.as_bytes()).err().unwrap();
            assert_eq!(error.param.as_deref(), Some("prompt"), "{input}");
        }
    }

    #[test]
    fn items_of_a_wrong_type_are_not_taken_for_texts_to_embed() {
        let body = br#"{"model":"m","input":[{"role":"user","content":7}]}"#;
        let error = parse::<ResponsesRequest>(body).err().unwrap();
        assert_eq!(error.param.as_deref(), Some("input"));
        assert!(error.message.contains("a list of items"), "{}", error.message);
    }

    #[test]
    fn unknown_fields_are_named_or_refused() {
        let body = br#"{"model":"m","messages":[],"prompt_embeds":[1],"guided_json":{},"b\u00e9,":1}"#;
        let Parsed::<ChatRequest>(request, ignored) = parse(body).unwrap();
        let mut headers = HeaderMap::new();
        let mut manners = Manners::of(&headers).unwrap();
        manners.ignore(ignored).unwrap();
        let response = manners.sign(Response::new(axum::body::Body::empty()));
        assert_eq!(response.headers()[X_IGNORED], "prompt_embeds,guided_json,b??");
        headers.insert("x-cxmpute-strict", HeaderValue::from_static("1"));
        let Parsed::<ChatRequest>(_, ignored) = parse(body).unwrap();
        let refused = Manners::of(&headers).unwrap().ignore(ignored).unwrap_err();
        assert_eq!(refused.param.as_deref(), Some("prompt_embeds"));
        assert!(!serde_json::to_string(&request).unwrap().contains("guided"));
    }

    #[test]
    fn headers_of_ours_have_few_values() {
        let of = |name: &'static str, value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            Manners::of(&headers).map(|manners| manners.timeout)
        };
        for (value, millis) in [("1", 1), ("250", 250), ("86400000", 86_400_000)] {
            let timeout = of("x-cxmpute-timeout-ms", value).unwrap();
            assert_eq!(timeout, Some(Duration::from_millis(millis)));
        }
        for value in ["", "0", "-1", "+5", "1.5", "86400001", "99999999999999999999", "1s", "\u{e9}"] {
            let Ok(value) = HeaderValue::from_str(value) else { continue };
            let mut headers = HeaderMap::new();
            headers.insert("x-cxmpute-timeout-ms", value);
            let error = Manners::of(&headers).err().unwrap();
            assert_eq!(error.param.as_deref(), Some("X-Cxmpute-Timeout-Ms"));
        }
        assert!(of("x-cxmpute-strict", "0").is_ok() && of("x-cxmpute-strict", "yes").is_err());
    }
}
