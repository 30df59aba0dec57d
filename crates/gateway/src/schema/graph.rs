//! A schema as a graph of its parts: who looks at the same value (`anyOf`, `$ref`), and who looks at a value inside it
//! (`properties`, `items`). It tells how many steps a check can take before the check is made.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::{SchemaFault, Use};
use crate::limits;

/// Parts that look at the same value.
const IN_PLACE: [&str; 3] = ["allOf", "anyOf", "oneOf"];
/// Keywords that outputs cannot be held to while they are being made.
const NOT_BINDING: [&str; 17] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "$recursiveRef",
    "$dynamicRef",
    "$dynamicAnchor",
];

/// One part.
#[derive(Debug, Default)]
struct Part {
    /// Looks at the same value, all of them.
    same: Vec<usize>,
    /// Look at different values inside: at most one at each.
    fields: Vec<usize>,
    /// May all look at one value inside.
    inside: Vec<usize>,
}

/// The parts of a schema; the first is the whole.
#[derive(Debug)]
pub(super) struct Graph {
    parts: Vec<Part>,
    /// Every part after those that it leads to in place.
    order: Vec<usize>,
}

/// A part whose turn has not come.
struct Waiting<'a> {
    at: usize,
    schema: &'a Value,
    place: String,
    depth: usize,
}

struct Builder<'a> {
    root: &'a Value,
    used: Use,
    parts: Vec<Part>,
    known: HashMap<String, usize>,
    waiting: Vec<Waiting<'a>>,
    patterns: usize,
}

impl Graph {
    /// The graph of a schema.
    ///
    /// # Errors
    /// It is nested too deeply, points outside itself or back to itself without end, or says what it must not.
    pub(super) fn of(root: &Value, used: Use) -> Result<Self, SchemaFault> {
        if !root.is_object() {
            return Err(SchemaFault::new("it must be an object"));
        }
        let mut builder = Builder {
            root,
            used,
            parts: Vec::new(),
            known: HashMap::new(),
            waiting: Vec::new(),
            patterns: 0,
        };
        builder.part(root, String::new(), 1);
        while let Some(waiting) = builder.waiting.pop() {
            builder.look(&waiting)?;
        }
        let parts = builder.parts;
        let order = sort(&parts).ok_or_else(|| SchemaFault::new("a $ref leads back to itself"))?;
        Ok(Self { parts, order })
    }

    /// At most so many parts look at one value of an output that is `depth` levels deep.
    pub(super) fn steps(&self, depth: usize) -> u64 {
        let mut below: Vec<u64> = Vec::new();
        for _ in 0..=depth {
            let mut here = vec![0u64; self.parts.len()];
            for at in &self.order {
                let part = &self.parts[*at];
                let inner = |at: &usize| below.get(*at).copied().unwrap_or(0);
                let same = part.same.iter().fold(0u64, |sum, at| sum.saturating_add(here[*at]));
                let fields = part.fields.iter().map(inner).max().unwrap_or(0);
                let inside = part.inside.iter().fold(0u64, |sum, at| sum.saturating_add(inner(at)));
                here[*at] = same.saturating_add(fields).saturating_add(inside).saturating_add(1);
            }
            if here == below {
                break;
            }
            below = here;
        }
        below.first().copied().unwrap_or(0)
    }
}

impl<'a> Builder<'a> {
    /// The number of the part at `place`.
    fn part(&mut self, schema: &'a Value, place: String, depth: usize) -> usize {
        if let Some(at) = self.known.get(&place) {
            return *at;
        }
        let at = self.parts.len();
        self.parts.push(Part::default());
        self.known.insert(place.clone(), at);
        self.waiting.push(Waiting { at, schema, place, depth });
        at
    }

    fn look(&mut self, here: &Waiting<'a>) -> Result<(), SchemaFault> {
        if here.depth > limits::SCHEMA_DEPTH {
            let most = limits::SCHEMA_DEPTH;
            return Err(SchemaFault::new(format!("it is nested deeper than {most} levels")));
        }
        let fields = match here.schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(fields) => fields,
            _ => return Err(SchemaFault::new(format!("`#{}` is no schema", here.place))),
        };
        self.refuse_keywords(fields, here.at == 0)?;
        let mut part = Part::default();
        if let Some(target) = fields.get("$ref") {
            part.same.push(self.target(target, here.depth)?);
        }
        for (key, value) in fields {
            match (key.as_str(), value) {
                (key, Value::Array(items)) if IN_PLACE.contains(&key) => {
                    self.list(items, here, key, &mut part.same);
                }
                ("not" | "if" | "then" | "else", inner) => {
                    part.same.push(self.inner(inner, here, key));
                }
                ("properties", Value::Object(inner)) => self.map(inner, here, key, &mut part.fields),
                ("patternProperties", Value::Object(inner)) => {
                    for pattern in inner.keys() {
                        self.pattern(pattern)?;
                    }
                    self.map(inner, here, key, &mut part.inside);
                }
                ("dependentSchemas" | "dependencies", Value::Object(inner)) => {
                    let schemas = inner.iter().filter(|(_, value)| !value.is_array());
                    for (name, value) in schemas {
                        let place = format!("{}/{key}/{}", here.place, escape(name));
                        part.same.push(self.part(value, place, here.depth + 1));
                    }
                }
                ("prefixItems" | "items", Value::Array(items)) => {
                    self.list(items, here, key, &mut part.fields)
                }
                ("items", inner @ (Value::Object(_) | Value::Bool(_)))
                | ("additionalProperties", inner @ Value::Object(_))
                | ("additionalItems" | "contains" | "propertyNames", inner)
                | ("unevaluatedItems" | "unevaluatedProperties", inner) => {
                    part.inside.push(self.inner(inner, here, key));
                }
                ("$defs" | "definitions", Value::Object(inner)) => {
                    self.map(inner, here, key, &mut Vec::new());
                }
                ("pattern", Value::String(pattern)) => self.pattern(pattern)?,
                _ => {}
            }
        }
        self.parts[here.at] = part;
        Ok(())
    }

    fn refuse_keywords(&self, fields: &Map<String, Value>, is_root: bool) -> Result<(), SchemaFault> {
        let moving = ["$id", "id", "$anchor", "$dynamicAnchor"];
        if !is_root && moving.iter().any(|key| fields.get(*key).is_some_and(Value::is_string)) {
            return Err(SchemaFault::new("only its root may have an `$id`, and nothing an `$anchor`"));
        }
        if self.used == Use::Hint {
            return Ok(());
        }
        match fields.keys().find(|key| NOT_BINDING.contains(&key.as_str())) {
            Some(key) => Err(SchemaFault::new(format!("`{key}` is not supported"))),
            None => Ok(()),
        }
    }

    /// The part that a `$ref` points at, which must be inside the schema.
    fn target(&mut self, reference: &Value, depth: usize) -> Result<usize, SchemaFault> {
        let outside = || SchemaFault::new("a `$ref` must point into the schema, as `#` or `#/$defs/name`");
        let place = reference.as_str().and_then(|text| text.strip_prefix('#')).ok_or_else(outside)?;
        if !(place.is_empty() || place.starts_with('/')) || place.contains('%') {
            return Err(outside());
        }
        if let Some(at) = self.known.get(place) {
            return Ok(*at);
        }
        let root = self.root;
        let schema =
            root.pointer(place).ok_or_else(|| SchemaFault::new("a `$ref` points at nothing".to_owned()))?;
        // What a reference reaches first is as deep as it stands, at most.
        let stands = place.matches('/').count().div_ceil(2) + 1;
        Ok(self.part(schema, place.to_owned(), stands.min(depth + 1)))
    }

    fn inner(&mut self, schema: &'a Value, here: &Waiting<'a>, key: &str) -> usize {
        self.part(schema, format!("{}/{key}", here.place), here.depth + 1)
    }

    fn list(&mut self, items: &'a [Value], here: &Waiting<'a>, key: &str, out: &mut Vec<usize>) {
        for (at, item) in items.iter().enumerate() {
            out.push(self.part(item, format!("{}/{key}/{at}", here.place), here.depth + 1));
        }
    }

    fn map(&mut self, fields: &'a Map<String, Value>, here: &Waiting<'a>, key: &str, out: &mut Vec<usize>) {
        for (name, inner) in fields {
            let place = format!("{}/{key}/{}", here.place, escape(name));
            out.push(self.part(inner, place, here.depth + 1));
        }
    }

    fn pattern(&mut self, pattern: &str) -> Result<(), SchemaFault> {
        self.patterns += 1;
        if self.patterns > limits::PATTERNS || pattern.len() > limits::PATTERN {
            return Err(SchemaFault::new(format!(
                "it may have {} regular expressions of {} bytes",
                limits::PATTERNS,
                limits::PATTERN
            )));
        }
        Ok(())
    }
}

/// A name as it stands in a JSON pointer.
fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// Every part after those that it leads to in place; none where they go round in circles.
fn sort(parts: &[Part]) -> Option<Vec<usize>> {
    let mut open: Vec<usize> = parts.iter().map(|part| part.same.len()).collect();
    let mut leads_here: Vec<Vec<usize>> = vec![Vec::new(); parts.len()];
    for (at, part) in parts.iter().enumerate() {
        for inner in &part.same {
            leads_here[*inner].push(at);
        }
    }
    let mut order: Vec<usize> = (0..parts.len()).filter(|at| open[*at] == 0).collect();
    let mut next = 0;
    while let Some(at) = order.get(next).copied() {
        next += 1;
        for outer in &leads_here[at] {
            open[*outer] -= 1;
            if open[*outer] == 0 {
                order.push(*outer);
            }
        }
    }
    (order.len() == parts.len()).then_some(order)
}
