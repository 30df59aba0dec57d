//! The reference of the API as one page: the document of [`crate::openapi`], told for people.

use std::sync::LazyLock;

use askama::Template;
use cxmpute_wire::Code;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::fields::{Field, in_words, of_schema};
use super::samples::{HOST, Sample, of_route};
use crate::limits;
use crate::openapi::{document, published_path, remedy};
use crate::router::operation::{Content, Group, IN_STREAM};
use crate::router::{Access, Meter, ROUTES, Route};

/// The page and its version, made once.
static PAGE: LazyLock<(String, String)> = LazyLock::new(|| {
    // The template writes into memory; nothing in it can fail.
    let html = Reference::new().render().unwrap_or_default();
    let etag = format!("\"{}\"", data_encoding::HEXLOWER.encode(&Sha256::digest(&html)[..16]));
    (html, etag)
});

/// The page and its `ETag`.
#[must_use]
pub fn html() -> (&'static str, &'static str) {
    (&PAGE.0, &PAGE.1)
}

#[derive(Template)]
#[template(path = "reference.html")]
struct Reference {
    version: &'static str,
    style: &'static str,
    host: &'static str,
    chapters: Vec<Chapter>,
    codes: Vec<CodeRow>,
    limits: Vec<limits::Row>,
}

struct Chapter {
    anchor: String,
    title: &'static str,
    detail: &'static str,
    routes: Vec<RouteView>,
}

struct RouteView {
    anchor: &'static str,
    method: String,
    tone: String,
    path: String,
    summary: &'static str,
    detail: &'static str,
    access: &'static str,
    meter: Option<&'static str>,
    body_limit: Option<String>,
    parameters: Vec<Field>,
    body: Vec<Field>,
    answers: Vec<AnswerView>,
    refusals: Vec<Refusal>,
    samples: Vec<Sample>,
}

struct AnswerView {
    status: u16,
    kind: &'static str,
    detail: &'static str,
    fields: Vec<Field>,
    example: Option<String>,
}

struct Refusal {
    status: u16,
    codes: Vec<&'static str>,
}

struct CodeRow {
    code: &'static str,
    status: u16,
    in_stream: bool,
    meaning: &'static str,
    remedy: &'static str,
}

impl Reference {
    fn new() -> Self {
        let chapters = Group::ALL.iter().map(|group| Chapter {
            anchor: group.title().to_lowercase(),
            title: group.title(),
            detail: group.detail(),
            routes: ROUTES
                .iter()
                .filter(|route| route.operation.group == *group)
                .map(RouteView::new)
                .collect(),
        });
        Self {
            version: env!("CARGO_PKG_VERSION"),
            style: super::STYLE,
            host: HOST,
            chapters: chapters.collect(),
            codes: codes(),
            limits: limits::rows(),
        }
    }
}

/// Every code that a route or a stream can answer with, by status.
fn codes() -> Vec<CodeRow> {
    let answered: Vec<Code> = ROUTES.iter().flat_map(|route| route.operation.codes()).collect();
    let everywhere = [Code::MethodNotAllowed, Code::NotFound];
    let mut codes: Vec<Code> = Code::ALL
        .iter()
        .copied()
        .filter(|code| answered.contains(code) || IN_STREAM.contains(code) || everywhere.contains(code))
        .collect();
    codes.sort_by_key(|code| code.status());
    let row = |code: Code| CodeRow {
        code: code.as_str(),
        status: code.status(),
        in_stream: IN_STREAM.contains(&code),
        meaning: code.meaning(),
        remedy: remedy(code),
    };
    codes.into_iter().map(row).collect()
}

impl RouteView {
    fn new(route: &Route) -> Self {
        let of = route.operation;
        let path = published_path(route.path);
        let method = route.method.as_str().to_lowercase();
        let described = &document().value["paths"][&path][&method];
        let schema = |media: &Value| of_schema(&document().value, &media["schema"]);
        Self {
            anchor: of.id,
            tone: method.clone(),
            method: route.method.to_string(),
            path: if route.prefixed { format!("/api/v1{path}") } else { path },
            summary: of.summary,
            detail: of.detail,
            access: match route.access {
                Access::Public => "No key",
                Access::Key => "API key",
                Access::Node => "Signed by a node",
                Access::ProviderKey => "Provider key in the body",
            },
            meter: route.meter.map(|meter| match meter {
                Meter::Text => "Paid per token",
                Meter::Embedding => "Paid per embedded token",
                Meter::Characters => "Paid per character",
                Meter::Seconds => "Paid per second of sound",
                Meter::Images => "Paid per picture",
                Meter::Drawn => "Paid per picture that is delivered",
                Meter::Pages => "Paid per page with content",
            }),
            body_limit: (route.body_limit > 0).then(|| limits::size(route.body_limit)),
            parameters: described["parameters"].as_array().into_iter().flatten().map(parameter).collect(),
            body: schema(&described["requestBody"]["content"]["application/json"]),
            answers: of
                .answers
                .iter()
                .map(|answer| {
                    let media = answer.content.media_type();
                    let described = &described["responses"][answer.status.to_string()]["content"];
                    let described = media.map_or(&Value::Null, |media| &described[media]);
                    let events = matches!(answer.content, Content::Events(_));
                    let fields = match events {
                        true => of_schema(&document().value, &described["schema"]["anyOf"][0]),
                        false => schema(described),
                    };
                    let example = described.get("example").map(|example| match events {
                        true => format!("data: {example}\n\ndata: [DONE]"),
                        false if matches!(answer.content, Content::Named(_)) => {
                            format!(
                                "event: {}\ndata: {example}",
                                example["type"].as_str().unwrap_or_default()
                            )
                        }
                        false => format!("{example:#}"),
                    });
                    AnswerView {
                        status: answer.status,
                        kind: media.unwrap_or("no body"),
                        detail: answer.detail,
                        fields,
                        example,
                    }
                })
                .collect(),
            refusals: refusals(route),
            samples: of_route(route),
        }
    }
}

fn parameter(described: &Value) -> Field {
    let (kind, bounds) = in_words(&document().value, &described["schema"]);
    let place = described["in"].as_str().unwrap_or_default();
    Field {
        name: described["name"].as_str().unwrap_or_default().to_owned(),
        kind: format!("{kind} in the {place}"),
        required: described["required"] == true,
        bounds,
        detail: described["description"].as_str().unwrap_or_default().to_owned(),
        inner: Vec::new(),
    }
}

fn refusals(route: &Route) -> Vec<Refusal> {
    let mut all: Vec<Refusal> = Vec::new();
    for code in route.operation.codes() {
        match all.last_mut().filter(|last| last.status == code.status()) {
            Some(last) => last.codes.push(code.as_str()),
            None => all.push(Refusal { status: code.status(), codes: vec![code.as_str()] }),
        }
    }
    all
}

/// Words of the source with `code` in them, as HTML.
mod filters {
    use askama::filters::Safe;

    /// Escapes, and sets what stands between backquotes as code.
    #[askama::filter_fn]
    pub fn words<T: std::fmt::Display>(text: T, _: &dyn askama::Values) -> askama::Result<Safe<String>> {
        let text = text.to_string();
        let mut html = String::with_capacity(text.len() + 16);
        for (at, part) in text.split('`').enumerate() {
            let inside = at % 2 == 1;
            html.push_str(if inside { "<code>" } else { "" });
            for letter in part.chars() {
                match letter {
                    '&' => html.push_str("&amp;"),
                    '<' => html.push_str("&lt;"),
                    '>' => html.push_str("&gt;"),
                    '"' => html.push_str("&quot;"),
                    letter => html.push(letter),
                }
            }
            html.push_str(if inside { "</code>" } else { "" });
        }
        Ok(Safe(html))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_tells_every_route_and_every_code_and_holds_no_script() {
        let (html, _) = html();
        for route in ROUTES {
            assert!(html.contains(&format!("id=\"{}\"", route.operation.id)), "{}", route.path);
            for code in route.operation.codes() {
                assert!(html.contains(&format!("id=\"code-{code}\"")), "{code}");
            }
        }
        for never in ["<script", "javascript:", "style=\"", "onclick", "src=", "<link", "@import", "url("] {
            assert!(!html.contains(never), "{never}");
        }
    }

    #[test]
    fn every_anchor_has_its_target() {
        let (html, _) = html();
        for link in html.split("href=\"#").skip(1) {
            let anchor = link.split('"').next().unwrap();
            assert!(html.contains(&format!("id=\"{anchor}\"")), "{anchor}");
        }
    }
}
