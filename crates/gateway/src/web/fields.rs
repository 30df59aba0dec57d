//! A schema as rows for people: one per field, with what it may be in words.

use serde_json::Value;

/// Deeper fields are told by their type's name only.
const DEPTH: usize = 3;

const NULL: &str = "may be null";

/// A field.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// What it is, such as `integer` or `list of objects`.
    pub kind: String,
    /// Whether it must be there.
    pub required: bool,
    /// What values it may have, in a few words each.
    pub bounds: Vec<String>,
    /// What it means.
    pub detail: String,
    /// The fields inside.
    pub inner: Vec<Field>,
}

/// The fields of an object schema.
#[must_use]
pub fn of_schema(document: &Value, schema: &Value) -> Vec<Field> {
    object(document, schema, 0)
}

/// What a schema without fields is, in words.
#[must_use]
pub fn in_words(document: &Value, schema: &Value) -> (String, Vec<String>) {
    (kind(document, schema), bounds(document, schema))
}

fn resolve<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(target) => document.pointer(&target[1..]).unwrap_or(&Value::Null),
        None => schema,
    }
}

fn object(document: &Value, schema: &Value, depth: usize) -> Vec<Field> {
    let schema = resolve(document, schema);
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema["properties"].as_object().into_iter().flatten();
    let mut fields: Vec<Field> = properties
        .map(|(name, field)| Field {
            name: name.clone(),
            kind: kind(document, field),
            required: required.contains(&name.as_str()),
            bounds: bounds(document, field),
            detail: detail(document, field),
            inner: if depth + 1 < DEPTH { inner(document, field, depth + 1) } else { Vec::new() },
        })
        .collect();
    for field in fields.iter_mut().filter(|field| !field.required) {
        // Null and absent are the same in a request, and an answer leaves such a field out.
        field.bounds.retain(|bound| bound != NULL);
    }
    fields.sort_by_key(|field| !field.required);
    fields
}

/// The fields of the objects that a field is, holds, or may be.
fn inner(document: &Value, schema: &Value, depth: usize) -> Vec<Field> {
    let own = resolve(document, schema);
    if own.get("properties").is_some() {
        return object(document, own, depth);
    }
    if own.get("items").is_some() {
        return inner(document, &own["items"], depth);
    }
    let choices = own["anyOf"].as_array().or_else(|| own["oneOf"].as_array());
    let mut fields: Vec<Field> = Vec::new();
    for choice in choices.into_iter().flatten() {
        for field in inner(document, choice, depth) {
            match fields.iter_mut().find(|known| known.name == field.name) {
                Some(known) => {
                    known.required &= field.required;
                    known.bounds.extend(field.bounds);
                    known.bounds.dedup();
                }
                None => fields.push(field),
            }
        }
    }
    fields
}

fn detail(document: &Value, schema: &Value) -> String {
    let own = schema["description"].as_str();
    own.or_else(|| resolve(document, schema)["description"].as_str()).unwrap_or_default().to_owned()
}

fn kind(document: &Value, schema: &Value) -> String {
    let own = resolve(document, schema);
    if own.get("const").is_some() || own.get("enum").is_some() {
        return "text".to_owned();
    }
    if let Some(choices) = own["anyOf"].as_array().or_else(|| own["oneOf"].as_array()) {
        let mut kinds: Vec<String> = choices.iter().map(|choice| kind(document, choice)).collect();
        kinds.retain(|kind| !kind.is_empty() && kind != "null");
        kinds.dedup();
        return kinds.join(" or ");
    }
    let words: Vec<String> = match &own["type"] {
        Value::String(word) => vec![word.clone()],
        Value::Array(words) => words.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => return "anything".to_owned(),
    };
    let words = words.iter().filter(|word| *word != "null").map(|word| match word.as_str() {
        "string" => "text".to_owned(),
        "array" => format!("list of {}", plural(&kind(document, &own["items"]))),
        other => other.to_owned(),
    });
    words.collect::<Vec<_>>().join(" or ")
}

fn plural(kind: &str) -> String {
    match kind {
        "anything" => kind.to_owned(),
        _ if kind.contains(' ') => kind.to_owned(),
        _ => format!("{kind}s"),
    }
}

fn bounds(document: &Value, schema: &Value) -> Vec<String> {
    let own = resolve(document, schema);
    let field = |name: &str| schema.get(name).or_else(|| own.get(name));
    let mut said = Vec::new();
    if let Some(only) = field("const") {
        said.push(printed(only));
    }
    if let Some(values) = field("enum").and_then(Value::as_array) {
        said.extend(values.iter().filter(|value| !value.is_null()).map(printed));
    }
    for choice in own["oneOf"].as_array().into_iter().flatten() {
        said.extend(choice.get("const").map(printed));
    }
    let most = field("maximum").map(printed);
    match (field("minimum").map(printed), field("exclusiveMinimum").map(printed)) {
        (Some(least), _) if least != "0" || most.is_some() => match most {
            Some(most) => said.push(format!("{least} to {most}")),
            None => said.push(format!("at least {least}")),
        },
        (None, Some(over)) => match most {
            Some(most) => said.push(format!("over {over}, up to {most}")),
            None => said.push(format!("over {over}")),
        },
        _ => said.extend(most.map(|most| format!("up to {most}"))),
    }
    match (field("minItems").map(printed), field("maxItems").map(printed)) {
        (Some(least), Some(most)) => said.push(format!("{least} to {most} items")),
        (None, Some(most)) => said.push(format!("up to {most} items")),
        (Some(least), None) => said.push(format!("at least {least} items")),
        (None, None) => {}
    }
    match (field("minLength").map(printed), field("maxLength").map(printed)) {
        (_, Some(most)) => said.push(format!("up to {most} characters")),
        (Some(least), None) if least != "1" => said.push(format!("at least {least} characters")),
        _ => {}
    }
    if own.get("type").and_then(Value::as_array).is_some_and(|kinds| kinds.iter().any(|kind| kind == "null"))
        || own["anyOf"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["type"] == "null"))
    {
        said.push(NULL.to_owned());
    }
    said
}

fn printed(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openapi::document;

    #[test]
    fn a_request_is_told_in_words() {
        let document = &document().value;
        let fields = of_schema(document, &document["components"]["schemas"]["ChatRequest"]);
        let find = |name: &str| fields.iter().find(|field| field.name == name).unwrap();
        assert!(find("messages").required);
        assert!(find("messages").inner.iter().any(|field| field.name == "role"));
        let temperature = find("temperature");
        assert_eq!((temperature.kind.as_str(), temperature.bounds[0].as_str()), ("number", "0 to 2"));
        assert_eq!(find("stop").kind, "text or list of texts");
        assert!(fields.iter().all(|field| !field.detail.is_empty()), "a field without words");
    }
}
