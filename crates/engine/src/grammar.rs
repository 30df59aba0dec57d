//! Grammars of answers, written for the constraint library: any JSON object, JSON by a schema, calls of tools in the
//! syntax of a family of models, and free text with such calls in it.
//!
//! White space between the parts of JSON is at most one space behind a comma or colon, so that no answer can go on
//! with white space for ever.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::tools::{CallShape, Syntax};

/// Most calls of one answer.
const MAX_CALLS: usize = 16;
/// Sides of numbers without a bound of their own stay where every reader of JSON has them exact.
const LARGEST: i64 = (1 << 53) - 1;

/// JSON in general. Numbers have a length that every reader takes.
const JSON_RULES: &str = r#"
json_object: "{" (json_pair (JSON_COMMA json_pair)*)? "}"
json_list: "[" (json_value (JSON_COMMA json_value)*)? "]"
json_pair: JSON_TEXT JSON_COLON json_value
json_value: json_object | json_list | JSON_TEXT | JSON_NUMBER | JSON_WORD
JSON_COMMA: /, ?/
JSON_COLON: /: ?/
JSON_WORD: /true|false|null/
JSON_NUMBER: /-?(0|[1-9][0-9]{0,14})(\.[0-9]{1,15})?([eE][+-]?[0-9]{1,2})?/
JSON_TEXT: /"([^"\\\x00-\x1F\x7F]|\\["\\\/bfnrt])*"/
"#;

/// A function that may be called.
#[derive(Debug, Clone)]
pub struct Callable {
    /// Its name: letters, digits, `_`, `-` and `.`.
    pub name: String,
    /// The schema of its arguments; any object when absent.
    pub parameters: Option<Value>,
}

/// Calls that an answer may or must hold.
#[derive(Debug, Clone)]
pub struct Calls {
    /// How they are written.
    pub syntax: Syntax,
    /// What can be called.
    pub functions: Vec<Callable>,
    /// More than one call.
    pub several: bool,
    /// The answer must be a call.
    pub forced: bool,
}

/// JSON that an answer must be.
#[derive(Debug, Clone)]
pub enum Format {
    /// Any object.
    Object,
    /// By a schema.
    Schema(Value),
}

/// Writes the grammar of an answer. `control` gives the id of a control token by its name. `None`: any text.
pub fn write(
    format: Option<&Format>,
    calls: Option<&Calls>,
    control: impl Fn(&str) -> Option<u32>,
) -> Option<String> {
    let mut rules = Rules { text: String::from("%llguidance {\"ignore_once\": true}\n"), control };
    // Families that begin a call with nothing but a brace: text cannot be told from calls before its end.
    let calls = calls.filter(|calls| calls.forced || !calls.syntax.open.is_empty());
    let mut starts = Vec::new();
    if let Some(calls) = calls {
        let free = !calls.forced && format.is_none();
        rules.calls(calls, free);
        starts.push("calls");
        if free {
            starts.push("TEXT");
        }
    }
    if let Some(format) = format.filter(|_| !calls.is_some_and(|calls| calls.forced)) {
        match format {
            Format::Object => rules.line("format: json_object"),
            Format::Schema(schema) => rules.json("format", schema),
        }
        starts.push("format");
    }
    if starts.is_empty() {
        return None;
    }
    rules.line(&format!("start: {}", starts.join(" | ")));
    rules.text.push_str(JSON_RULES);
    Some(rules.text)
}

struct Rules<C> {
    text: String,
    control: C,
}

impl<C: Fn(&str) -> Option<u32>> Rules<C> {
    fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn json(&mut self, name: &str, schema: &Value) {
        let schema = prepared(schema);
        let _ = writeln!(self.text, "{name}: %json {schema}");
    }

    /// A mark as a control token, where the vocabulary has one of that name, or as text.
    fn mark(&self, mark: &str) -> String {
        match (self.control)(mark) {
            _ if mark.is_empty() => String::new(),
            Some(id) => format!("<[{id}]>"),
            None => json!(mark).to_string(),
        }
    }

    fn calls(&mut self, calls: &Calls, free: bool) {
        let Calls { syntax, functions, several, .. } = calls;
        for (number, function) in functions.iter().enumerate() {
            match &function.parameters {
                Some(schema) => self.json(&format!("arguments_{number}"), schema),
                None => self.line(&format!("arguments_{number}: json_object")),
            }
            let name = function.name.replace('.', "\\.");
            let head = match syntax.shape {
                CallShape::Tagged(tag) => {
                    format!("{} {}", json!(function.name), self.mark(tag))
                }
                CallShape::Object | CallShape::List => {
                    format!("/\\{{\"name\": ?\"{name}\", ?\"{}\": ?/", syntax.arguments)
                }
            };
            let tail = if matches!(syntax.shape, CallShape::Tagged(_)) { "" } else { "\"}\"" };
            self.line(&format!("call_{number}: {head} arguments_{number} {tail}"));
        }
        let all: Vec<String> = (0..functions.len()).map(|number| format!("call_{number}")).collect();
        self.line(&format!("call: {}", all.join(" | ")));
        let again = |rule: &str| {
            if *several { format!("({rule}){{0,{}}}", MAX_CALLS - 1) } else { String::new() }
        };
        let (open, close) = (self.mark(syntax.open), self.mark(syntax.close));
        // Before the first mark there may be any text; it ends where the mark does.
        let first = match (free, (self.control)(syntax.open)) {
            (true, Some(_)) => format!("TEXT {open}"),
            (true, None) => {
                self.line(&format!("opened[lazy]: /(.|\\n)*{}/", escaped(syntax.open)));
                "opened".to_owned()
            }
            (false, _) => open.clone(),
        };
        self.line("TEXT: /(.|\\n)*/");
        match syntax.shape {
            CallShape::List => {
                let more = again("JSON_COMMA call");
                self.line(&format!("calls: {first} \"[\" call {more} \"]\" {close}"));
            }
            CallShape::Tagged(_) => {
                let more = again(&format!("{open} call"));
                self.line(&format!("calls: {first} call {more}"));
            }
            CallShape::Object if syntax.open.is_empty() => {
                self.line(&format!("calls: call {}", again("/; ?/ call")));
            }
            CallShape::Object => {
                let more = again(&format!("\"\\n\"? {open} one"));
                self.line(&format!("one: \"\\n\"? call \"\\n\"? {close}"));
                self.line(&format!("calls: {first} one {more}"));
            }
        }
    }
}

/// A text as it stands in a regular expression between slashes.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut out, character| {
        if !character.is_ascii_alphanumeric() && character != '_' && character != '<' && character != '>' {
            out.push('\\');
        }
        out.push(character);
        out
    })
}

/// A schema with the settings that every grammar has.
fn prepared(schema: &Value) -> Value {
    let mut schema = match schema {
        Value::Bool(true) | Value::Null => Value::Object(Map::new()),
        other => other.clone(),
    };
    bound_numbers(&mut schema);
    if let Some(fields) = schema.as_object_mut() {
        fields.insert(
            "x-guidance".into(),
            json!({"whitespace_flexible": false, "item_separator": ", ?", "key_separator": ": ?"}),
        );
    }
    schema
}

/// Gives numbers the bounds they lack, so that every reader of JSON keeps them exact.
fn bound_numbers(schema: &mut Value) {
    let Some(fields) = schema.as_object_mut() else { return };
    let is = |kind: &Value| matches!(kind.as_str(), Some("integer" | "number"));
    let numeric = match fields.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().any(is),
        Some(kind) => is(kind),
        None => false,
    };
    if numeric && !fields.contains_key("enum") && !fields.contains_key("const") {
        for (bound, strict, limit) in
            [("minimum", "exclusiveMinimum", -LARGEST), ("maximum", "exclusiveMaximum", LARGEST)]
        {
            if !fields.contains_key(bound) && !fields.contains_key(strict) {
                fields.insert(bound.into(), limit.into());
            }
        }
    }
    for (key, value) in fields.iter_mut() {
        match (key.as_str(), value) {
            ("items" | "additionalProperties" | "additionalItems", value @ Value::Object(_)) => {
                bound_numbers(value);
            }
            ("items" | "prefixItems" | "anyOf" | "oneOf" | "allOf", Value::Array(list)) => {
                list.iter_mut().for_each(bound_numbers);
            }
            ("properties" | "patternProperties" | "$defs" | "definitions", Value::Object(named)) => {
                named.values_mut().for_each(bound_numbers);
            }
            _ => {}
        }
    }
}
