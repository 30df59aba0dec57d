//! From bytes to a closed schema: unknown fields are dropped and named, a wrong field is a 400 that names it (GR2).

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::response::Response;
use cxmpute_market::catalogue::{Catalogue, ModelEntry};
use cxmpute_market::wish::Wishes;
use cxmpute_tokens::TokenCounter;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::openai::{ProviderPreferences, SortBy, Unknown};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::de::DeserializeOwned;

use super::validate::output_limit;
use crate::app::App;
use crate::body::{RawBody, require_json};
use crate::error::{ApiError, ApiResult};
use crate::json;
use crate::limits;
use crate::relay::Alternative;

const X_IGNORED: HeaderName = HeaderName::from_static("x-cxmpute-ignored");

/// A JSON body of a closed schema, with the field at fault named in errors.
pub struct Parsed<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for Parsed<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> ApiResult<Self> {
        require_json(request.headers())?;
        let RawBody(bytes) = RawBody::from_request(request, app).await?;
        parse(&bytes).map(Self)
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> ApiResult<T> {
    json::check(bytes)?;
    serde_json::from_slice(bytes).map_err(|error| {
        let named = json::data_error(&error);
        if named.param.is_some() {
            return named;
        }
        match field_at(bytes, error.line(), error.column()) {
            Some(field) => {
                let message = format!("`{field}` has a wrong type or value.");
                ApiError::invalid_parameter(&field, message)
            }
            None => ApiError::invalid_json("The body is not the JSON object that this route takes."),
        }
    })
}

/// The field of the outermost object in which the position lies; within `provider`, also the field of that one.
/// `bytes` are well-formed JSON.
fn field_at(bytes: &[u8], line: usize, column: usize) -> Option<String> {
    let start = match line.checked_sub(2) {
        None => 0,
        Some(skip) => bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(skip)?.0 + 1,
    };
    let until = (start + column).min(bytes.len());
    let mut depth = 0usize;
    let mut at = 0;
    let (mut field, mut within) = (None::<String>, None::<String>);
    let mut wants_key = false;
    while at < until {
        match bytes[at] {
            b'"' => {
                let begin = at;
                at += 1;
                while at < bytes.len() && bytes[at] != b'"' {
                    at += if bytes[at] == b'\\' { 2 } else { 1 };
                }
                if wants_key && depth <= 2 {
                    let name = serde_json::from_slice(bytes.get(begin..=at)?).ok();
                    if depth == 1 {
                        field = name;
                    } else {
                        within = name;
                    }
                    wants_key = false;
                }
            }
            b'{' | b'[' => {
                depth += 1;
                wants_key = bytes[at] == b'{' && (depth == 1 || (depth == 2 && is_nested(field.as_ref())));
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                // A value that is wrong as a whole is only known at its end.
                if depth == 1 && at + 1 < until {
                    within = None;
                }
            }
            b',' if depth == 1 || (depth == 2 && is_nested(field.as_ref())) => {
                wants_key = true;
                if depth == 1 {
                    within = None;
                }
            }
            _ => {}
        }
        at += 1;
    }
    match (field, within) {
        (Some(field), Some(within)) if is_nested(Some(&field)) => Some(format!("{field}.{within}")),
        (field, _) => field,
    }
}

/// Objects whose fields are named one by one.
fn is_nested(field: Option<&String>) -> bool {
    field.is_some_and(|name| name == "provider")
}

/// What the head of a request says beside its body.
pub struct Manners {
    strict: bool,
    ignored: Vec<String>,
    /// `X-Title`.
    pub title: Option<String>,
    /// `HTTP-Referer` or `Referer`.
    pub referer: Option<String>,
    /// `X-Cxmpute-Timeout-Ms`: the time the client gives the request.
    pub timeout: Option<Duration>,
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
            title: label("x-title"),
            referer: label("http-referer").or_else(|| label("referer")),
            timeout: headers.get("x-cxmpute-timeout-ms").map(timeout).transpose()?,
        })
    }

    /// Notes fields outside the schema.
    ///
    /// # Errors
    /// There are some, and the caller wants to be told.
    pub fn ignore(&mut self, unknown: &Unknown, within: &str) -> ApiResult<()> {
        for name in unknown.keys() {
            let name = format!("{within}{name}");
            if self.strict {
                let message = format!("`{}` is not a field of this route.", shown(&name));
                return Err(ApiError::unsupported_parameter(&shown(&name), message));
            }
            self.ignored.push(name);
        }
        Ok(())
    }

    /// Names the dropped fields in the answer.
    pub fn sign(&self, mut response: Response) -> Response {
        if !self.ignored.is_empty() {
            let names: Vec<String> = self.ignored.iter().take(32).map(|name| shown(name)).collect();
            if let Ok(value) = HeaderValue::from_str(&names.join(",")) {
                response.headers_mut().insert(X_IGNORED, value);
            }
        }
        response
    }
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
    name.chars().take(64).map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '?' }).collect()
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

/// The model that was asked for, if it does this kind of work and can be metered here.
pub async fn resolve_model(
    app: &App,
    name: &str,
    kind: ServiceKind,
) -> ApiResult<(Arc<ModelEntry>, Option<TokenCounter>)> {
    let (model, _) = split_suffix(&app.catalogue, name);
    let entry = app.catalogue.resolve(model).filter(|entry| entry.kind == kind);
    let entry = entry.ok_or_else(|| ApiError::model_not_found(name))?.clone();
    let counter = app.counters.of(&entry).await;
    if counter.is_none() && entry.price.character.0 == 0 && !entry.price.free {
        // A route without a meter is no route (GR section 11).
        return Err(
            ApiError::no_provider("This model cannot be metered here at the moment.").with("filter", "meter")
        );
    }
    Ok((entry, counter))
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
    use cxmpute_wire::openai::{ChatRequest, EmbeddingRequest};

    use super::*;

    fn param(body: &str) -> (u16, Option<String>) {
        let error = parse::<ChatRequest>(body.as_bytes()).unwrap_err();
        (error.status.as_u16(), error.param.clone())
    }

    #[test]
    fn the_field_at_fault_is_named() {
        let table = [
            (r#"{"messages":[]}"#, "model"),
            (r#"{"model":"m"}"#, "messages"),
            (r#"{"model":"m","messages":[],"temperature":"hot"}"#, "temperature"),
            (r#"{"model":"m","messages":[{"role":"user","content":7}],"n":1}"#, "messages"),
            (r#"{"model":"m","messages":[{"role":"pope","content":"x"}],"n":1}"#, "messages"),
            ("{\n \"model\":\"m\",\n \"max_tokens\":-1,\n \"messages\":[]\n}", "max_tokens"),
            (r#"{"max_tokens":18446744073709551616,"model":"m","messages":[]}"#, "max_tokens"),
            (r#"{"x\"y,{":1,"model":7,"messages":[]}"#, "model"),
            (
                r#"{"model":"m","messages":[],"provider":{"only":["a"],"sort":"best","zdr":true}}"#,
                "provider.sort",
            ),
            (r#"{"model":"m","messages":[],"provider":{"order":7}}"#, "provider.order"),
            (r#"{"model":"m","messages":[],"provider":{"only":["a",{"b":1}]},"n":1}"#, "provider.only"),
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
        let error = parse::<ChatRequest>(body.as_bytes()).unwrap_err();
        assert!(!error.message.contains("canary"), "{}", error.message);
        assert!(parse::<EmbeddingRequest>(br#"{"model":"m","input":[1,2]}"#).is_err());
    }

    #[test]
    fn unknown_fields_are_named_or_refused() {
        let body = br#"{"model":"m","messages":[],"prompt_embeds":[1],"guided_json":{},"b\u00e9,":1}"#;
        let request: ChatRequest = parse(body).unwrap();
        let mut headers = HeaderMap::new();
        let mut manners = Manners::of(&headers).unwrap();
        manners.ignore(&request.unknown, "").unwrap();
        let response = manners.sign(Response::new(axum::body::Body::empty()));
        assert_eq!(response.headers()[X_IGNORED], "b??,guided_json,prompt_embeds");
        headers.insert("x-cxmpute-strict", HeaderValue::from_static("1"));
        assert!(Manners::of(&headers).unwrap().ignore(&request.unknown, "").is_err());
        assert!(!serde_json::to_string(&request).unwrap().contains("guided"));
    }
}
