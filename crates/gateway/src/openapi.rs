//! The OpenAPI 3.1 document, made from the route table and the types that the handlers read and write: it cannot say
//! another thing than the program does. `docs/openapi.json` is the same text, checked in; a test compares the two.

mod bounds;
mod errors;
mod paths;
mod schema;

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use crate::router::operation::Group;
pub use errors::{FLAT_ERROR, remedy};
pub use paths::published_path;

/// The document and its version, made once.
static DOCUMENT: LazyLock<Document> = LazyLock::new(Document::make);

/// The document as it is served.
#[derive(Debug)]
pub struct Document {
    /// The document.
    pub value: Value,
    /// The same as indented JSON with a line end.
    pub text: String,
    /// Its `ETag`.
    pub etag: String,
}

/// The document of this program.
#[must_use]
pub fn document() -> &'static Document {
    &DOCUMENT
}

impl Document {
    fn make() -> Self {
        let value = assemble();
        let text = format!("{value:#}\n");
        let etag = format!("\"{}\"", data_encoding::HEXLOWER.encode(&Sha256::digest(&text)[..16]));
        Self { value, text, etag }
    }
}

fn assemble() -> Value {
    let mut schemas = schema::Schemas::new();
    let paths = paths::paths(&mut schemas);
    errors::add_shapes(&mut schemas);
    let tags: Vec<Value> = Group::ALL
        .iter()
        .map(|group| json!({"name": group.title(), "description": group.detail()}))
        .collect();
    json!({
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": "Cxmpute",
            "version": env!("CARGO_PKG_VERSION"),
            "description": DESCRIPTION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [
            {"url": "/api/v1", "description": "The API."},
            {"url": "/v1", "description": "The same, under OpenAI's prefix."},
        ],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": Value::Object(schemas.finish()),
            "headers": headers(),
            "securitySchemes": {
                "apiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "cxk_…",
                    "description": "An API key of an account. In the header only: a key in an address counts as leaked.",
                },
                "nodeSignature": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Signature",
                    "description": "RFC 9421 with Ed25519 over the parts that `Signature-Input` names, made with the key of the provision.",
                },
            },
        },
    })
}

const DESCRIPTION: &str = "An AI cloud out of many machines. Point any OpenAI client at `/api/v1` and pay per use from \
    prepaid credits.\n\nFields outside the schema of a request are dropped and named in `X-Cxmpute-Ignored`; answers \
    hold exactly the fields that are described here. Every GET route answers HEAD as well, and every route for users \
    answers the OPTIONS request of a browser. A method that a path does not describe is a 405, a path that is not here \
    is a 404, both with the error envelope.";

fn headers() -> Map<String, Value> {
    let header =
        |detail: &str, schema: Value| json!({"description": detail, "required": true, "schema": schema});
    let mut headers = Map::new();
    headers.insert(
        "RequestId".to_owned(),
        header(
            "The id of this request; name it when something went wrong.",
            json!({"type": "string", "pattern": "^req_[0-9a-f]{32}$"}),
        ),
    );
    headers.insert(
        "RetryAfter".to_owned(),
        header(
            "Seconds after which another try makes sense.",
            json!({"type": "string", "pattern": "^[0-9]+$"}),
        ),
    );
    headers
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::router::ROUTES;

    /// `CXMPUTE_UPDATE=1 cargo test -p cxmpute-gateway the_checked_in_document` writes the file anew.
    #[test]
    fn the_checked_in_document_is_the_one_that_is_served() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/openapi.json");
        if std::env::var_os("CXMPUTE_UPDATE").is_some() {
            std::fs::write(&path, &document().text).unwrap();
        }
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            written == document().text,
            "docs/openapi.json is stale: CXMPUTE_UPDATE=1 cargo test -p cxmpute-gateway the_checked_in_document"
        );
    }

    #[test]
    fn every_row_is_in_the_document_and_nothing_else_is() {
        let rows: BTreeSet<(String, String)> = ROUTES
            .iter()
            .map(|route| (published_path(route.path), route.method.as_str().to_lowercase()))
            .collect();
        let mut described = BTreeSet::new();
        for (path, item) in document().value["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys().filter(|key| *key != "servers") {
                described.insert((path.clone(), method.clone()));
            }
        }
        assert_eq!(rows, described);
        assert_eq!(rows.len(), ROUTES.len());
        let ids: BTreeSet<_> = ROUTES.iter().map(|route| route.operation.id).collect();
        assert_eq!(ids.len(), ROUTES.len(), "two routes have one operation id");
    }

    #[test]
    fn every_reference_has_its_target() {
        fn walk(value: &Value, root: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(target)) = fields.get("$ref") {
                        assert!(root.pointer(&target[1..]).is_some(), "{target}");
                    }
                    fields.values().for_each(|value| walk(value, root));
                }
                Value::Array(items) => items.iter().for_each(|value| walk(value, root)),
                _ => {}
            }
        }
        walk(&document().value, &document().value);
    }

    #[test]
    fn every_bound_has_found_its_field() {
        let mut schemas = schema::Schemas::new();
        paths::paths(&mut schemas);
        errors::add_shapes(&mut schemas);
        assert_eq!(schemas.unmet_bounds(), Vec::<String>::new());
    }
}
