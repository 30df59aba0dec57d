//! Values made from the schemas of a document: good ones, ones on a boundary, and good ones with a fault put in.
//!
//! Everything is drawn from one seeded source, so a number names a value for ever.

use rand::RngExt as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde_json::{Map, Value, json};

/// Deeper than this, lists are empty and optional fields absent: schemas may refer to themselves.
const DEPTH: usize = 6;

/// Texts that programs have stumbled over.
const TEXTS: [&str; 14] = [
    "",
    " ",
    "say 2",
    "hello",
    "null",
    "-1",
    "\u{0}",
    "\u{feff}\u{202e}abc",
    "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}\u{1f3fd}",
    "e\u{301}\u{301}\u{301}\u{301}",
    "'; DROP TABLE users; --",
    "{{7*7}}${7*7}<script>",
    "../../../etc/passwd",
    "a\r\nx-injected: 1",
];

/// Numbers on the edges of machine types and of common ranges.
const NUMBERS: [&str; 18] = [
    "0",
    "-0.0",
    "1",
    "-1",
    "2",
    "8",
    "9",
    "0.5",
    "1e-320",
    "1e308",
    "-1e308",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "-9223372036854775809",
    "2147483648",
    "1.5",
];

/// A source of values.
#[derive(Debug)]
pub struct Source<'a> {
    document: &'a Value,
    dice: StdRng,
}

impl<'a> Source<'a> {
    /// The source that a number names.
    #[must_use]
    pub fn new(document: &'a Value, seed: u64) -> Self {
        Self { document, dice: StdRng::seed_from_u64(seed) }
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.dice.random_range(0..bound.max(1))
    }

    /// True in so many of a hundred cases.
    pub fn chance(&mut self, percent: u32) -> bool {
        self.dice.random_range(0..100) < percent
    }

    /// One of these.
    pub fn one_of<'b, T>(&mut self, all: &'b [T]) -> &'b T {
        &all[self.below(all.len())]
    }

    /// A text that programs have stumbled over, sometimes a long one.
    pub fn text(&mut self) -> String {
        match self.below(12) {
            0 => "a".repeat(self.below(4096)),
            1 => "\u{4e16}\u{754c}".repeat(self.below(256)),
            _ => (*self.one_of(&TEXTS)).to_owned(),
        }
    }

    /// Any JSON value.
    pub fn anything(&mut self) -> Value {
        match self.below(9) {
            0 => Value::Null,
            1 => json!(self.chance(50)),
            2 | 3 => self.number(),
            4 | 5 => json!(self.text()),
            6 => json!([]),
            7 => json!({}),
            _ => json!([{"type": self.text(), "x": [[self.number()]]}, null]),
        }
    }

    fn number(&mut self) -> Value {
        let text = *self.one_of(&NUMBERS);
        serde_json::from_str(text).unwrap_or_else(|_| json!(0))
    }

    /// A value that fits the schema, as far as a schema can say it.
    pub fn good(&mut self, schema: &Value) -> Value {
        self.make(schema, 0)
    }

    fn make(&mut self, schema: &Value, depth: usize) -> Value {
        let document = self.document;
        if let Some(target) = schema["$ref"].as_str() {
            let target = document.pointer(&target[1..]).unwrap_or(&Value::Null);
            return self.make(target, depth);
        }
        if let Some(only) = schema.get("const") {
            return only.clone();
        }
        if let Some(values) = schema["enum"].as_array() {
            return self.one_of(values).clone();
        }
        for choice in ["anyOf", "oneOf"] {
            if let Some(choices) = schema[choice].as_array() {
                let chosen = self.below(choices.len());
                return self.make(&choices[chosen], depth);
            }
        }
        let kind = match &schema["type"] {
            Value::String(kind) => kind.clone(),
            Value::Array(kinds) => self.one_of(kinds).as_str().unwrap_or_default().to_owned(),
            _ => return self.anything(),
        };
        match kind.as_str() {
            "null" => Value::Null,
            "boolean" => json!(self.chance(50)),
            "integer" => self.integer(schema),
            "number" => self.float(schema),
            "string" => self.string(schema),
            "array" => self.array(schema, depth),
            "object" => self.object(schema, depth),
            _ => self.anything(),
        }
    }

    fn integer(&mut self, schema: &Value) -> Value {
        let least = schema["minimum"].as_i64().unwrap_or(-1_000);
        let most = schema["maximum"].as_i64().unwrap_or(least.saturating_add(1_000));
        match self.below(4) {
            0 => json!(least),
            1 => json!(most),
            _ => json!(self.dice.random_range(least..=most.max(least))),
        }
    }

    fn float(&mut self, schema: &Value) -> Value {
        let open = schema["exclusiveMinimum"].as_f64();
        let least = schema["minimum"].as_f64().or(open.map(|bound| bound + 1e-6)).unwrap_or(-1_000.0);
        let most = schema["maximum"].as_f64().unwrap_or(least + 1_000.0);
        match self.below(4) {
            0 => json!(least),
            1 => json!(most),
            _ => json!(self.dice.random_range(least..=most)),
        }
    }

    fn string(&mut self, schema: &Value) -> Value {
        let least = schema["minLength"].as_u64().unwrap_or(0) as usize;
        let most = schema["maxLength"].as_u64().unwrap_or(u64::MAX) as usize;
        let mut text = match schema["pattern"].as_str() {
            Some(pattern) => like(pattern),
            None => self.text(),
        };
        while text.chars().count() < least {
            text.push('x');
        }
        json!(text.chars().take(most).collect::<String>())
    }

    fn array(&mut self, schema: &Value, depth: usize) -> Value {
        let least = schema["minItems"].as_u64().unwrap_or(0) as usize;
        let room = schema["maxItems"].as_u64().unwrap_or(4).min(4) as usize;
        let count = if depth >= DEPTH { least } else { least.max(self.below(room + 1)) };
        Value::Array((0..count).map(|_| self.make(&schema["items"], depth + 1)).collect())
    }

    fn object(&mut self, schema: &Value, depth: usize) -> Value {
        let required: Vec<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut object = Map::new();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            let wanted = required.contains(&name.as_str()) || (depth < DEPTH && self.chance(20));
            if wanted {
                object.insert(name.clone(), self.make(field, depth + 1));
            }
        }
        if schema["additionalProperties"].is_object() {
            for _ in 0..self.below(3) {
                let name = match schema["propertyNames"]["pattern"].as_str() {
                    Some(pattern) => like(pattern),
                    None => self.text(),
                };
                let value = self.make(&schema["additionalProperties"], depth + 1);
                object.insert(name, value);
            }
        }
        Value::Object(object)
    }

    /// Puts one fault somewhere into a value.
    pub fn spoil(&mut self, value: &mut Value) {
        match value {
            Value::Object(fields) if !fields.is_empty() && self.chance(85) => {
                let names: Vec<String> = fields.keys().cloned().collect();
                let name = self.one_of(&names).clone();
                match self.below(6) {
                    0 => {
                        fields.remove(&name);
                    }
                    1 => {
                        let (unknown, value) = (self.text(), self.anything());
                        fields.insert(unknown, value);
                    }
                    _ => {
                        if let Some(inner) = fields.get_mut(&name) {
                            self.spoil(inner);
                        }
                    }
                }
            }
            Value::Array(items) if !items.is_empty() && self.chance(85) => match self.below(5) {
                0 => {
                    let first = items[0].clone();
                    let many = [3, 9, 130, 2_100][self.below(4)];
                    items.resize(many, first);
                }
                1 => items.clear(),
                _ => {
                    let at = self.below(items.len());
                    self.spoil(&mut items[at]);
                }
            },
            Value::Number(_) if self.chance(70) => *value = self.number(),
            Value::String(_) if self.chance(60) => *value = json!(self.text()),
            _ if self.chance(5) => *value = nested(self.below(200)),
            _ => *value = self.anything(),
        }
    }

    /// Bytes that may no longer be JSON.
    pub fn break_text(&mut self, text: &str) -> Vec<u8> {
        let mut bytes = text.as_bytes().to_vec();
        match self.below(8) {
            0 => bytes.truncate(self.below(bytes.len())),
            1 => bytes.extend_from_slice(b"}"),
            2 => {
                let at = self.below(bytes.len());
                bytes.insert(at, 0xff);
            }
            3 => bytes = format!("[{text}]").into_bytes(),
            4 => bytes = text.replacen('{', "{\"model\":\"x\",\"model\":\"y\",", 1).into_bytes(),
            5 => bytes = [b"\xef\xbb\xbf", bytes.as_slice()].concat(),
            6 => bytes.clear(),
            _ => {
                let at = self.below(bytes.len());
                if let Some(byte) = bytes.get_mut(at) {
                    *byte = self.dice.random();
                }
            }
        }
        bytes
    }
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!(1), |inner, _| json!([inner]))
}

/// A text for the patterns that the document uses: a literal start and as many plain characters as are asked for.
fn like(pattern: &str) -> String {
    let start: String = pattern
        .trim_start_matches('^')
        .chars()
        .take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
        .collect();
    let filling = if pattern.contains("[0-9]") { "7".repeat(5) } else { "a".repeat(32) };
    format!("{start}{filling}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::Contract;

    #[test]
    fn a_number_names_a_value_and_good_values_fit_their_schemas() {
        let contract = Contract::shared();
        let mut fitting = 0;
        let mut made = 0;
        for (path, method, operation) in contract.operations() {
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            if schema.is_null() {
                continue;
            }
            for seed in 0..100 {
                let value = Source::new(contract.document(), seed).good(schema);
                assert_eq!(value, Source::new(contract.document(), seed).good(schema));
                made += 1;
                let judged = contract.validate(&format!("request {path} {method}"), schema, &value);
                fitting += usize::from(judged.is_ok());
            }
        }
        assert!(fitting * 10 > made * 9, "{fitting} of {made} good values fit");
    }
}
