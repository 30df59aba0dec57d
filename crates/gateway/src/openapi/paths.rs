//! The rows of the route table as OpenAPI's path items.

use serde_json::{Map, Value, json};

use super::errors;
use super::schema::Schemas;
use crate::router::operation::{Answer, Content, Header, IN_STREAM, Operation, Parameter};
use crate::router::{Access, Meter, ROUTES, Route};

/// A path of the table as the document has it.
#[must_use]
pub fn published_path(path: &str) -> String {
    path.replace("{*", "{")
}

/// All path items.
pub fn paths(schemas: &mut Schemas) -> Map<String, Value> {
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let item = paths.entry(published_path(route.path)).or_insert_with(|| match route.prefixed {
            true => json!({}),
            false => json!({"servers": [{"url": "/"}]}),
        });
        item[route.method.as_str().to_lowercase()] = operation(route, schemas);
    }
    paths
}

fn operation(route: &Route, schemas: &mut Schemas) -> Value {
    let of = route.operation;
    let mut described = json!({
        "operationId": of.id,
        "tags": [of.group.title()],
        "summary": of.summary,
        "description": of.detail,
        "security": match route.access {
            Access::Public | Access::ProviderKey => json!([]),
            Access::Key => json!([{"apiKey": []}]),
            Access::Node => json!([{"nodeSignature": []}]),
        },
        "x-access": match route.access {
            Access::Public => "public",
            Access::Key => "api_key",
            Access::Node => "node_signature",
            Access::ProviderKey => "provider_key_in_body",
        },
    });
    if let Some(meter) = route.meter {
        described["x-meter"] = match meter {
            Meter::Text => "text".into(),
            Meter::Embedding => "embedding".into(),
            Meter::Characters => "characters".into(),
            Meter::Seconds => "seconds".into(),
            Meter::Images => "images".into(),
            Meter::Drawn => "images_drawn".into(),
            Meter::Pages => "pages".into(),
        };
    }
    let parameters: Vec<Value> = of.parameters.iter().map(|each| parameter(each, route)).collect();
    if !parameters.is_empty() {
        described["parameters"] = parameters.into();
    }
    if let Some(body) = &of.request {
        described["requestBody"] = json!({
            "required": true,
            "description": format!("At most {} bytes.", route.body_limit),
            "content": {body.media_type(): {"schema": schemas.read(body.schema), "example": json_of(body.example)}},
        });
    }
    described["responses"] = responses(of, schemas);
    described
}

fn parameter(of: &Parameter, route: &Route) -> Value {
    let mut described = json!({
        "name": of.name,
        "in": of.place.as_str(),
        "required": of.required,
        "description": of.detail,
        "schema": json_of(of.schema),
        "example": of.example,
    });
    if route.path.contains(&format!("{{*{}}}", of.name)) {
        // OpenAPI has no word for a path parameter with slashes in it.
        described["x-multi-segment"] = true.into();
    }
    described
}

fn responses(of: &Operation, schemas: &mut Schemas) -> Value {
    let mut all: Map<String, Value> = Map::new();
    for answer in of.answers {
        let response = all
            .entry(answer.status.to_string())
            .or_insert_with(|| json!({"description": answer.detail, "headers": headers(answer.headers)}));
        if let (Some(media), Some(content)) = (answer.content.media_type(), content(answer, schemas)) {
            if response.get("content").is_none() {
                response["content"] = json!({});
            }
            response["content"][media] = content;
        }
    }
    all.extend(errors::responses(of));
    all.into()
}

fn content(answer: &Answer, schemas: &mut Schemas) -> Option<Value> {
    Some(match answer.content {
        Content::Json(body) => {
            json!({"schema": schemas.written(body.schema), "example": json_of(body.example)})
        }
        Content::Events(chunk) => json!({
            "schema": {
                "description": "The data of one event. A good stream ends with `data: [DONE]`, a broken one with an \
                                error event.",
                "anyOf": [schemas.written(chunk.schema), errors::envelope_of(IN_STREAM)],
            },
            "example": json_of(chunk.example),
        }),
        Content::Named(event) => json!({
            "schema": schemas.written(event.schema),
            "example": json_of(event.example),
        }),
        Content::Document => json!({"schema": {"type": "object", "required": ["openapi", "info", "paths"]}}),
        Content::Bytes(_) => json!({"schema": {"type": "string", "format": "binary"}}),
        Content::Text(_) => json!({"schema": {"type": "string"}}),
        Content::Page => json!({"schema": {"type": "string"}}),
        Content::Empty => return None,
    })
}

fn headers(of: &[Header]) -> Map<String, Value> {
    let mut all = Map::new();
    all.insert("X-Request-Id".to_owned(), json!({"$ref": "#/components/headers/RequestId"}));
    for header in of {
        all.insert(
            header.name.to_owned(),
            json!({"description": header.detail, "required": header.required, "schema": json_of(header.schema)}),
        );
    }
    all
}

/// JSON text of the table. A test reads the whole document, so text that is none does not get far.
fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_of_the_table_is_json() {
        let good = |text: &str| assert!(!json_of(text).is_null(), "{text}");
        for route in ROUTES {
            let of = route.operation;
            of.parameters.iter().for_each(|parameter| good(parameter.schema));
            of.request.iter().for_each(|body| good(body.example));
            for answer in of.answers {
                answer.headers.iter().for_each(|header| good(header.schema));
                if let Content::Json(body) | Content::Events(body) | Content::Named(body) = answer.content {
                    good(body.example);
                }
            }
        }
    }
}
