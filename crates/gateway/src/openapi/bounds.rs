//! What the types cannot say: ranges, closed sets behind texts, and fixed texts. Ranges come from the constants that
//! the checks use.

use serde_json::{Map, Value, json};

use crate::limits;

/// Types and fields with what is to be added to their schemas; without a field, to the type's own.
fn bounds() -> Vec<(&'static str, &'static str, Value)> {
    let mut all = requests();
    all.extend(answers());
    all
}

fn requests() -> Vec<(&'static str, &'static str, Value)> {
    let name = json!({"minLength": 1, "maxLength": limits::NAME, "pattern": "^[A-Za-z0-9_-]+$"});
    let function = json!({"const": "function"});
    let stop = json!({"type": "string", "minLength": 1, "maxLength": limits::STOP_BYTES});
    let some_text = json!({"type": "string", "minLength": 1});
    let mut all = Vec::new();
    for request in ["ChatRequest", "CompletionRequest"] {
        all.extend([
            (request, "temperature", json!({"minimum": 0, "maximum": 2})),
            (request, "top_p", json!({"exclusiveMinimum": 0, "maximum": 1})),
            (request, "top_k", json!({"minimum": 0, "maximum": limits::TOP_K})),
            (request, "min_p", json!({"minimum": 0, "maximum": 1})),
            (request, "frequency_penalty", json!({"minimum": -2, "maximum": 2})),
            (request, "presence_penalty", json!({"minimum": -2, "maximum": 2})),
            (request, "repetition_penalty", json!({"exclusiveMinimum": 0, "maximum": 2})),
            (
                request,
                "logit_bias",
                json!({
                    "maxProperties": limits::BIASES,
                    "propertyNames": {"pattern": "^[0-9]{1,18}$"},
                    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
                }),
            ),
            (request, "n", json!({"minimum": 1, "maximum": limits::N})),
            (request, "max_tokens", json!({"minimum": 1})),
        ]);
    }
    all.extend([
        ("ChatRequest", "max_completion_tokens", json!({"minimum": 1})),
        ("ChatRequest", "messages", json!({"minItems": 1, "maxItems": limits::MESSAGES})),
        ("ChatRequest", "tools", json!({"maxItems": limits::TOOLS})),
        ("ChatRequest", "top_logprobs", json!({"minimum": 0, "maximum": limits::TOP_LOGPROBS})),
        (
            "ChatRequest",
            "metadata",
            json!({
                "maxProperties": limits::METADATA,
                "propertyNames": {"maxLength": limits::METADATA_KEY},
                "additionalProperties": {"type": "string", "maxLength": limits::METADATA_VALUE},
            }),
        ),
        (
            "ChatRequest",
            "reasoning_effort",
            json!({
                "enum": ["none", "minimal", "low", "medium", "high", "xhigh", null],
            }),
        ),
        ("CompletionRequest", "logprobs", json!({"minimum": 0, "maximum": limits::LOGPROBS})),
        ("CompletionRequest", "best_of", json!({"minimum": 1, "maximum": limits::N})),
        ("ChatMessageInput", "tool_calls", json!({"maxItems": limits::CALLS})),
        ("ToolInput", "type", function.clone()),
        ("ToolCallInput", "type", function.clone()),
        ("NamedToolInput", "type", function),
        ("FunctionSpecInput", "name", name.clone()),
        ("FunctionSpecInput", "description", json!({"maxLength": limits::DESCRIPTION})),
        ("JsonSchemaFormatInput", "name", name),
        ("JsonSchemaFormatInput", "description", json!({"maxLength": limits::DESCRIPTION})),
        ("InputAudioInput", "format", json!({"enum": ["wav", "mp3"]})),
        (
            "StopInput",
            "",
            json!({"anyOf": [stop, {"type": "array", "items": stop, "maxItems": limits::STOPS}]}),
        ),
        (
            "PromptInput",
            "",
            json!({"anyOf": [
                some_text,
                {"type": "array", "items": some_text, "minItems": 1, "maxItems": limits::CHOICES},
            ]}),
        ),
        (
            "EmbeddingInput",
            "",
            json!({"anyOf": [
                some_text,
                {"type": "array", "items": some_text, "minItems": 1, "maxItems": limits::INPUTS},
            ]}),
        ),
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
    all.push(("ModelStats", "uptime_30m", json!({"minimum": 0, "maximum": 1})));
    for field in ["prompt", "completion", "characters", "seconds", "urls", "images"] {
        all.push(("CostDetails", field, price.clone()));
    }
    all.push(("CostDetails", "adjustment", json!({"pattern": "^-?[0-9]+(\\.[0-9]+)?$"})));
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
        let found = schemas.get_mut(schema);
        let found = match field {
            "" => found,
            field => found.and_then(|schema| schema.get_mut("properties")?.get_mut(field)),
        };
        let found = found.and_then(Value::as_object_mut);
        let (Some(found), Value::Object(more)) = (found, more) else {
            unmet.push(format!("{schema}.{field}"));
            continue;
        };
        if more.contains_key("anyOf") {
            found.remove("$ref");
            found.remove("type");
        }
        found.extend(more);
    }
    unmet
}
