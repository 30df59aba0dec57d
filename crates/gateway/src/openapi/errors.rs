//! Refusals in the document: three shapes, the codes of each status, and what to do about each code.

use cxmpute_wire::Code;
use cxmpute_wire::anthropic::{MessageError, MessageErrorBody};
use cxmpute_wire::control::SeedError;
use cxmpute_wire::openai::ErrorEnvelope;
use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::schema::Schemas;
use crate::router::operation::{EDGE, Operation, Refusals, UNREAD, says_when};

/// Name of the flat shape of the first seed's routes.
pub const FLAT_ERROR: &str = "SeedError";

/// Documented fields of an error beside those of every error.
fn extras() -> Map<String, Value> {
    let credits = json!({"type": "string", "pattern": "^-?[0-9]+\\.[0-9]{6}$"});
    let mut fields = Map::new();
    let mut add = |name: &str, detail: &str, mut schema: Value| {
        schema["description"] = detail.into();
        fields.insert(name.to_owned(), schema);
    };
    add("required", "402: credits that the request needs.", credits.clone());
    add("available", "402: credits that there are.", credits);
    add(
        "affordable_max_tokens",
        "402: the longest answer that the available credits pay for.",
        json!({"type": "integer", "minimum": 0}),
    );
    add("action", "What a program should do, such as `enrol`.", json!({"type": "string"}));
    add("filter", "503: the condition that left no node.", json!({"type": "string"}));
    add(
        "loading",
        "503 `model_loading`: how far it is.",
        json!({"type": "object", "properties": {
            "state": {"type": "string"},
            "bytes_done": {"type": "integer", "minimum": 0},
            "bytes_total": {"type": "integer", "minimum": 0},
            "eta_s": {"type": "number", "minimum": 0},
        }, "required": ["state"], "additionalProperties": false}),
    );
    add(
        "server_time",
        "401 `clock_skew`: the server's clock in milliseconds since 1970.",
        json!({"type": "integer"}),
    );
    fields
}

/// Makes the shapes exact: the documented extra fields and no others.
pub fn add_shapes(schemas: &mut Schemas) {
    schemas.written(SchemaGenerator::subschema_for::<ErrorEnvelope>);
    schemas.written(SchemaGenerator::subschema_for::<SeedError>);
    schemas.written(SchemaGenerator::subschema_for::<MessageError>);
}

/// The extra fields, added to the error object once its type's schema is there.
pub fn complete_shapes(schemas: &mut Map<String, Value>) {
    let kinds = json!({"enum": [
        "invalid_request_error", "insufficient_quota", "permission_error", "rate_limit_error", "server_error",
    ]});
    if let Some(body) = schemas.get_mut("ErrorBody") {
        if let Some(properties) = body["properties"].as_object_mut() {
            properties.extend(extras());
        }
        body["properties"]["type"]["enum"] = kinds["enum"].clone();
        body["properties"]["code"] = json!({"type": "string", "description": "The stable machine code."});
        body["additionalProperties"] = false.into();
    }
    if let Some(envelope) = schemas.get_mut("ErrorEnvelope") {
        envelope["required"] = json!(["error", "request_id"]);
        envelope["properties"]["request_id"] = json!({"type": "string", "pattern": "^req_[0-9a-f]{32}$", "description": "The request it belongs to."});
    }
    if let Some(body) = schemas.get_mut("MessageErrorBody") {
        if let Some(properties) = body["properties"].as_object_mut() {
            properties.extend(extras());
        }
        body["properties"]["type"]["enum"] = json!(MessageErrorBody::KINDS);
    }
    if let Some(message) = schemas.get_mut("MessageError") {
        message["required"] = json!(["type", "error", "request_id"]);
        message["properties"]["type"] = json!({"const": "error"});
        message["properties"]["request_id"] = json!({"type": "string", "pattern": "^req_[0-9a-f]{32}$", "description": "The request it belongs to."});
    }
    if let Some(flat) = schemas.get_mut(FLAT_ERROR)
        && let Some(properties) = flat["properties"].as_object_mut()
    {
        properties.extend(extras());
        properties.insert(
            "request_id".to_owned(),
            json!({"type": "string", "pattern": "^req_[0-9a-f]{32}$", "description": "5xx: the request it belongs to."}),
        );
    }
}

/// The refusals of a route, by status.
pub fn responses(operation: &Operation) -> Vec<(String, Value)> {
    let codes = operation.codes();
    let mut statuses: Vec<u16> = codes.iter().map(|code| code.status()).collect();
    statuses.dedup();
    statuses
        .into_iter()
        .map(|status| {
            let of_status: Vec<Code> = codes.iter().copied().filter(|code| code.status() == status).collect();
            (status.to_string(), response(operation.refusals, status, &of_status))
        })
        .collect()
}

fn response(refusals: Refusals, status: u16, codes: &[Code]) -> Value {
    let detail: Vec<String> = codes.iter().map(|code| format!("`{code}`: {}", code.meaning())).collect();
    let (flat, envelope): (Vec<Code>, Vec<Code>) =
        codes.iter().partition(|code| refusals == Refusals::Seed && !is_early(**code));
    let schema = match (flat.is_empty(), envelope.is_empty()) {
        _ if refusals == Refusals::Anthropic => message_of(codes),
        (true, _) => envelope_of(&envelope),
        (_, true) => flat_of(&flat),
        _ => json!({"anyOf": [flat_of(&flat), envelope_of(&envelope)]}),
    };
    let mut headers = Map::new();
    headers.insert("X-Request-Id".to_owned(), json!({"$ref": "#/components/headers/RequestId"}));
    if says_when(status) {
        headers.insert("Retry-After".to_owned(), json!({"$ref": "#/components/headers/RetryAfter"}));
    }
    json!({
        "description": detail.join(" "),
        "headers": headers,
        "content": {"application/json": {"schema": schema}},
    })
}

/// Refused before the route's own code runs.
fn is_early(code: Code) -> bool {
    UNREAD.contains(&code) || EDGE.contains(&code) && code != Code::InternalError
}

/// The envelope, with one of these codes.
pub fn envelope_of(codes: &[Code]) -> Value {
    json!({
        "allOf": [{"$ref": "#/components/schemas/ErrorEnvelope"}],
        "properties": {"error": {"properties": {"code": {"enum": names(codes)}}}},
    })
}

fn message_of(codes: &[Code]) -> Value {
    json!({
        "allOf": [{"$ref": "#/components/schemas/MessageError"}],
        "properties": {"error": {"properties": {"code": {"enum": names(codes)}}}},
    })
}

fn flat_of(codes: &[Code]) -> Value {
    json!({
        "allOf": [{"$ref": format!("#/components/schemas/{FLAT_ERROR}")}],
        "properties": {"code": {"enum": names(codes)}},
    })
}

fn names(codes: &[Code]) -> Vec<&'static str> {
    codes.iter().map(|code| code.as_str()).collect()
}

/// What to do about a refusal, in one sentence for people.
#[must_use]
pub const fn remedy(code: Code) -> &'static str {
    match code {
        Code::InvalidJson => "Send one JSON object in UTF-8: no duplicate keys, at most 64 levels deep.",
        Code::InvalidParameter => "Correct the field that `param` names; the message says what it may be.",
        Code::UnsupportedParameter => {
            "Leave the field out, or choose a model that lists it in `supported_parameters`."
        }
        Code::ContextLengthExceeded => "Shorten the messages or lower `max_tokens`.",
        Code::InvalidApiKey => {
            "Send a valid key as `Authorization: Bearer cxk_…`; make one with `cxmpute keys create`."
        }
        Code::ExpiredApiKey => "Make a new key.",
        Code::InvalidSignature => {
            "Sign each request anew, with the key of this provision; update the program."
        }
        Code::ClockSkew => "Set the machine's clock; `server_time` is the server's.",
        Code::InsufficientCredits => "Add credits, or ask for at most `affordable_max_tokens`.",
        Code::BudgetExceeded => "Raise the budget of the key, or use another key.",
        Code::RouteNotPermitted => "Use a key that may use this route.",
        Code::ModelNotPermitted => "Use a key that may use this model, or another model.",
        Code::AccountSuspended => "Write to the operator of this service.",
        Code::NodeRevoked => "Set the device up anew; it gets a new id.",
        Code::GrantInvalid => "Make a grant with `cxmpute admin grant create`.",
        Code::GrantSpent => "Make a grant for this device; each works once.",
        Code::GrantExpired => "Make a new grant.",
        Code::ModelNotFound => {
            "Take an id from `GET /models`; the model must be of the kind that the route serves."
        }
        Code::NotFound => {
            "Check the id or the address; what belongs to others looks like what does not exist."
        }
        Code::NodeUnknown => "Enrol the device; the provider program does it by itself.",
        Code::MethodNotAllowed => "Use a method that the header `Allow` names.",
        Code::RequestTimeout => "Send the body without pauses.",
        Code::NodeConflict => "Enrol with a new key, or let the owner recover the record.",
        Code::EpochStale => "Nothing: a newer tunnel of the same provision is open.",
        Code::GenerationStale => "Nothing: the node gets the newer plan.",
        Code::BodyTooLarge => "Send less; the limit stands in the message.",
        Code::UriTooLong => "Shorten the address.",
        Code::UnsupportedMediaType => "Send the body as `Content-Type: application/json`.",
        Code::VersionTooOld => "Update the provider program.",
        Code::RateLimited => "Wait for `Retry-After` seconds; the `x-ratelimit-*` headers show the limits.",
        Code::ConcurrencyLimited => "Let a running request end first.",
        Code::QueueFull | Code::CapacityFull => "Try again after `Retry-After` seconds.",
        Code::HeadTooLarge => "Send fewer or shorter header fields.",
        Code::ClientClosed => "Nothing: the client left.",
        Code::InternalError => "Try again; if it stays, tell the operator the `request_id`.",
        Code::ProviderError => "Try again; every node that was asked failed before it answered.",
        Code::ProviderLost
        | Code::ProviderStalled
        | Code::ProviderProtocolError
        | Code::EngineFailed
        | Code::OutOfMemory => "Send the request again; the broken answer costs nothing.",
        Code::NoProvider => {
            "Try later, relax the condition that `filter` names, or name fallbacks in `models`."
        }
        Code::ModelLoading => "Try again after `Retry-After` seconds.",
        Code::NotReady
        | Code::ModelMissing
        | Code::DigestMismatch
        | Code::ModelUnavailable
        | Code::ModelFormat
        | Code::CatalogueRefused
        | Code::DiskLow
        | Code::OwnerWithdrew => "Nothing: another node is asked.",
        Code::StoreUnavailable | Code::Draining | Code::GatewayDraining => {
            "Try again after `Retry-After` seconds."
        }
        Code::FirstTokenTimeout => "Try again, or ask for less.",
        Code::DeadlineExceeded => "Ask for less, or stream.",
        Code::CreditsExhausted => "Add credits; the answer ended early with `finish_reason: length`.",
    }
}
