//! What the types cannot say: ranges, closed sets behind texts, and fixed texts. Ranges come from the constants that
//! the checks use.

use serde_json::{Map, Value, json};

/// Fields with what is to be added to their schemas.
fn bounds() -> Vec<(&'static str, &'static str, Value)> {
    let mut all = requests();
    all.extend(answers());
    all
}

fn requests() -> Vec<(&'static str, &'static str, Value)> {
    let mut all = Vec::new();
    for request in ["ChatRequest", "CompletionRequest"] {
        all.extend([
            (request, "temperature", json!({"minimum": 0, "maximum": 2})),
            (request, "top_p", json!({"exclusiveMinimum": 0, "maximum": 1})),
            (request, "n", json!({"minimum": 1, "maximum": 8})),
            (request, "max_tokens", json!({"minimum": 1})),
        ]);
    }
    all.extend([
        ("ChatRequest", "max_completion_tokens", json!({"minimum": 1})),
        ("ChatRequest", "messages", json!({"minItems": 1, "maxItems": 2048})),
        ("ChatRequest", "tools", json!({"maxItems": 128})),
    ]);
    all
}

fn answers() -> Vec<(&'static str, &'static str, Value)> {
    let price = json!({"pattern": "^[0-9]+(\\.[0-9]+)?$"});
    let credits = json!({"pattern": "^-?[0-9]+\\.[0-9]{6}$"});
    let mut all = vec![
        ("ChatResponse", "id", json!({"pattern": "^chatcmpl-[0-9a-f]{32}$"})),
        ("ChatResponse", "object", json!({"const": "chat.completion"})),
        ("ChatResponse", "choices", json!({"minItems": 1})),
        ("ChatChunk", "id", json!({"pattern": "^chatcmpl-[0-9a-f]{32}$"})),
        ("ChatChunk", "object", json!({"const": "chat.completion.chunk"})),
        ("ChatChunk", "usage", json!({"anyOf": [{"$ref": "#/components/schemas/Usage"}, {"type": "null"}]})),
        ("CompletionResponse", "id", json!({"pattern": "^cmpl-[0-9a-f]{32}$"})),
        ("CompletionResponse", "object", json!({"const": "text_completion"})),
        ("ResponseMessage", "role", json!({"const": "assistant"})),
        ("Delta", "role", json!({"const": "assistant"})),
        ("ToolCall", "type", json!({"const": "function"})),
        ("ToolCallDelta", "type", json!({"const": "function"})),
        ("EmbeddingList", "object", json!({"const": "list"})),
        ("EmbeddingItem", "object", json!({"const": "embedding"})),
        ("ModelList", "object", json!({"const": "list"})),
        ("ModelObject", "object", json!({"const": "model"})),
        ("ModelObject", "digest", json!({"pattern": "^[0-9a-f]{64}$"})),
        ("Availability", "status", json!({"enum": ["ready", "loading", "none"]})),
        ("Usage", "source", json!({"enum": ["counted", "claimed"]})),
        ("Usage", "cost", credits.clone()),
        ("Health", "status", json!({"enum": ["ok", "ready"]})),
        ("Generation", "total_cost", credits.clone()),
        ("Credits", "currency", json!({"const": "credits"})),
    ];
    for field in ["prompt", "completion", "embedding"] {
        all.push(("Pricing", field, price.clone()));
    }
    for field in ["balance", "held", "available", "promo", "total_credits", "total_usage"] {
        all.push(("Credits", field, credits.clone()));
    }
    all
}

/// Adds the bounds to the schemas of a document; the answer names those whose field is not there.
pub fn apply(schemas: &mut Map<String, Value>) -> Vec<String> {
    let mut unmet = Vec::new();
    for (schema, field, more) in bounds() {
        let found = schemas.get_mut(schema).and_then(|schema| schema.get_mut("properties"));
        let found = found.and_then(|properties| properties.get_mut(field)).and_then(Value::as_object_mut);
        let (Some(found), Value::Object(more)) = (found, more) else {
            unmet.push(format!("{schema}.{field}"));
            continue;
        };
        if more.contains_key("anyOf") {
            found.remove("$ref");
        }
        found.extend(more);
    }
    unmet
}
