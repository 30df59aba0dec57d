//! JSON schemas that clients send: bounded before anything looks at them, compiled once, and never resolved over a
//! network or a file. A schema is also a small program that runs over what a node sends, so the number of steps it can
//! take is bounded, too.

mod graph;

use cxmpute_wire::Code;
use jsonschema::{PatternOptions, Validator};
use serde_json::Value;

use self::graph::Graph;
use crate::error::ApiError;
use crate::limits;

/// Memory of one compiled regular expression, in bytes.
const PATTERN_MEMORY: usize = 1 << 20;
/// Steps over one place of an output of ordinary depth; a schema that can take more is refused.
const STEPS_PER_PLACE: u64 = 4_096;
/// The ordinary depth of an output.
const ORDINARY_DEPTH: usize = 8;
/// Steps over a whole output; some tenths of a second.
const STEPS: u64 = 4_000_000;

/// Why a schema is refused; a sentence for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SchemaFault(String);

impl SchemaFault {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }

    /// The refusal that names `param`.
    #[must_use]
    pub fn refuse(&self, what: &str, param: &str) -> ApiError {
        ApiError::new(Code::InvalidParameter, format!("Invalid schema for {what}: {self}.")).param(param)
    }
}

/// How the outputs of a schema come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// Shown to the model; the output is not held to it.
    Hint,
    /// Every output follows it, so it may only say what sampling can be held to.
    Binding,
}

/// A compiled schema.
#[derive(Debug)]
pub struct Schema {
    validator: Validator,
    graph: Graph,
}

/// What a text is to its schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It follows it.
    Follows,
    /// It does not, or is no JSON.
    Breaks,
    /// It is JSON, and deeper than its schema can be checked in a bounded time.
    Unchecked,
}

impl Schema {
    /// Checks the bounds of a schema without compiling it.
    ///
    /// # Errors
    /// It is too large, too deep, or points outside itself.
    pub fn check(schema: &Value, used: Use) -> Result<(), SchemaFault> {
        graph_of(schema, used).map(drop)
    }

    /// Compiles a binding schema; blocking work of some milliseconds.
    ///
    /// # Errors
    /// As [`Self::check`], or it is no schema.
    pub fn compile(schema: &Value) -> Result<Self, SchemaFault> {
        let graph = graph_of(schema, Use::Binding)?;
        let patterns = PatternOptions::regex().size_limit(PATTERN_MEMORY).dfa_size_limit(PATTERN_MEMORY);
        let validator = jsonschema::options()
            .offline()
            .should_validate_formats(false)
            .with_pattern_options(patterns)
            .build(schema)
            .map_err(|error| SchemaFault::new(cut(&error.to_string())))?;
        Ok(Self { validator, graph })
    }

    /// Whether a whole text follows the schema; blocking work.
    #[must_use]
    pub fn judge(&self, text: &str) -> Verdict {
        let Ok(value) = serde_json::from_str::<Value>(text) else { return Verdict::Breaks };
        let (depth, places) = measure(&value);
        let steps = self.graph.steps(depth).saturating_mul(places);
        if steps > STEPS {
            return Verdict::Unchecked;
        }
        if self.validator.is_valid(&value) { Verdict::Follows } else { Verdict::Breaks }
    }
}

fn graph_of(schema: &Value, used: Use) -> Result<Graph, SchemaFault> {
    let size = serde_json::to_vec(schema).map_or(usize::MAX, |text| text.len());
    if size > limits::SCHEMA {
        return Err(SchemaFault::new(format!("it has {size} bytes, at most {} are allowed", limits::SCHEMA)));
    }
    let graph = Graph::of(schema, used)?;
    if graph.steps(ORDINARY_DEPTH) > STEPS_PER_PLACE {
        return Err(SchemaFault::new("it has too many alternatives that lead into each other"));
    }
    Ok(graph)
}

/// Depth and number of values.
fn measure(value: &Value) -> (usize, u64) {
    let of_inner = |inner: &mut dyn Iterator<Item = &Value>| {
        inner.map(measure).fold((0, 1), |(depth, places), (deep, more)| (depth.max(deep + 1), places + more))
    };
    match value {
        Value::Array(items) => of_inner(&mut items.iter()),
        Value::Object(fields) => of_inner(&mut fields.values()),
        _ => (0, 1),
    }
}

fn cut(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

#[cfg(test)]
mod tests;
