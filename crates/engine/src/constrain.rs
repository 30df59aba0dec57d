//! Answers that keep to a grammar: which tokens may come next, computed by the library `llguidance` over the bytes
//! of the model's own vocabulary.

use std::sync::{Arc, OnceLock};

use cxmpute_tokens::{TextTokenizer, TokenCounter};
use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use crate::grammar::{Calls, Format, write};

/// Most bytes of all schemas of a request, as JSON.
const MAX_SCHEMA_BYTES: usize = 64 << 10;
/// Deepest nesting of a schema, as JSON.
const MAX_SCHEMA_DEPTH: usize = 48;
/// Most values in all schemas of a request.
const MAX_SCHEMA_VALUES: usize = 5_000;
/// Largest number, its decimal point aside, that numbers can be held to multiples of. The library computes with 32 bits
/// and does not notice when they run over.
const MAX_MULTIPLE: u64 = 10_000;
/// Longest reason that is passed on.
const MAX_REASON_CHARS: usize = 200;

/// How much work a grammar may make: some 10 ms to compile, some milliseconds for a token.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: 1_000,
        initial_lexer_fuel: 200_000,
        step_lexer_fuel: 100_000,
        step_max_items: 50_000,
        max_lexer_states: 50_000,
        max_grammar_size: 50_000,
        precompute_large_lexemes: false,
        verbose_errors: false,
    }
}

/// Makes constraints for one model.
pub struct Grammars {
    counter: TokenCounter,
    /// Made when it is first needed; `None` for a vocabulary that cannot be constrained.
    factory: OnceLock<Option<ParserFactory>>,
}

impl Grammars {
    /// For the model of this tokenizer.
    pub fn new(counter: TokenCounter) -> Self {
        Self { counter, factory: OnceLock::new() }
    }

    /// The constraint of an answer; `None` when it may be any text.
    ///
    /// # Errors
    /// One sentence, when a schema is too large, wrong, or uses what cannot be guaranteed.
    pub fn compile(
        &self,
        format: Option<&Format>,
        calls: Option<&Calls>,
    ) -> Result<Option<Constraint>, String> {
        check_size(format, calls)?;
        let tokenizer = self.counter.tokenizer();
        let control =
            |name: &str| tokenizer.control_tokens().find(|(_, text)| *text == name).map(|(id, _)| id);
        let Some(grammar) = write(format, calls, control) else { return Ok(None) };
        let factory = self.factory.get_or_init(|| factory(tokenizer));
        let factory = factory.as_ref().ok_or("the vocabulary of this model cannot be constrained")?;
        let mut matcher = Matcher::new(factory.create_parser(TopLevelGrammar::from_lark(grammar)));
        // The first step shows whether the grammar can be followed at all.
        let first = matcher.compute_mask().map_err(|error| reason(&error.to_string()))?;
        if first.is_zero() {
            return Err("no answer can follow it".into());
        }
        Ok(Some(Constraint { matcher }))
    }
}

fn factory(tokenizer: &TextTokenizer) -> Option<ParserFactory> {
    let ends: Vec<u32> = tokenizer.end_tokens().collect();
    let mut words: Vec<Vec<u8>> = (0..)
        .take(tokenizer.vocabulary_size())
        // This byte never occurs in text; the library marks control tokens with it.
        .map(|id| tokenizer.token_bytes(id).to_vec())
        .map(|bytes| if bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) { Vec::new() } else { bytes })
        .collect();
    for (id, name) in tokenizer.control_tokens() {
        if let Some(word) = words.get_mut(id as usize) {
            *word = [&[TokTrie::SPECIAL_TOKEN_MARKER], name.as_bytes()].concat();
        }
    }
    let info = TokRxInfo::new(u32::try_from(words.len()).ok()?, *ends.first()?);
    let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
    let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = llguidance::earley::SlicedBiasComputer::general_slices();
    let mut factory = match ParserFactory::new(&environment, InferenceCapabilities::default(), &slices) {
        Ok(factory) => factory,
        Err(error) => {
            tracing::error!(%error, "the vocabulary cannot be constrained");
            return None;
        }
    };
    *factory.limits_mut() = limits();
    factory.quiet();
    Some(factory)
}

/// Refuses what would cost much before the library looks at it.
fn check_size(format: Option<&Format>, calls: Option<&Calls>) -> Result<(), String> {
    let mut left = Size { bytes: MAX_SCHEMA_BYTES, values: MAX_SCHEMA_VALUES };
    if let Some(Format::Schema(schema)) = format {
        left.take(schema, MAX_SCHEMA_DEPTH)?;
    }
    for function in calls.into_iter().flat_map(|calls| &calls.functions) {
        if let Some(schema) = &function.parameters {
            left.take(schema, MAX_SCHEMA_DEPTH)?;
        }
    }
    Ok(())
}

struct Size {
    bytes: usize,
    values: usize,
}

impl Size {
    fn take(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        let too_large = || {
            format!(
                "it is larger than {MAX_SCHEMA_BYTES} bytes, {MAX_SCHEMA_VALUES} values or {MAX_SCHEMA_DEPTH} levels"
            )
        };
        let depth = depth.checked_sub(1).ok_or_else(too_large)?;
        self.values = self.values.checked_sub(1).ok_or_else(too_large)?;
        match value {
            Value::String(text) => {
                self.bytes = self.bytes.checked_sub(text.len()).ok_or_else(too_large)?;
            }
            Value::Array(list) => list.iter().try_for_each(|value| self.take(value, depth))?,
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.bytes = self.bytes.checked_sub(name.len()).ok_or_else(too_large)?;
                    if name == "multipleOf" && value.is_number() && !is_small_multiple(value) {
                        return Err(format!(
                            "multipleOf takes up to {MAX_MULTIPLE}, with up to four decimals"
                        ));
                    }
                    self.take(value, depth)?;
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        Ok(())
    }
}

fn is_small_multiple(value: &Value) -> bool {
    let written = value.to_string();
    let (whole, decimals) = written.split_once('.').unwrap_or((&written, ""));
    decimals.len() <= 4
        && format!("{whole}{decimals}").parse().is_ok_and(|number: u64| (1..=MAX_MULTIPLE).contains(&number))
}

/// What the library says, as the end of one sentence.
fn reason(error: &str) -> String {
    let line = error.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it is not usable");
    // Lines of a grammar that the caller never saw say nothing.
    let line = line.rsplit("failed to compile JSON schema:").next().unwrap_or(line).trim();
    let line = match line {
        "NoExtensionBias" => "no answer can follow it",
        bug if bug.starts_with("panic:") => "it is not usable",
        line => line,
    };
    let mut short: String = line.chars().take(MAX_REASON_CHARS).collect();
    short.truncate(short.trim_end_matches(['.', ' ']).len());
    short
}

/// What an answer is held to, and how far it has come.
pub struct Constraint {
    matcher: Matcher,
}

impl Constraint {
    /// The same constraint at its beginning, for another answer.
    pub fn fresh(&self) -> Self {
        Self { matcher: self.matcher.deep_clone() }
    }

    /// Takes the tokens that cannot come next out of `scores`. If that leaves none, because a bias bans all of them,
    /// those that can come get their score in `plain` back: an answer that keeps to its shape goes first.
    ///
    /// # Errors
    /// One sentence, when the grammar became too costly to follow.
    pub fn restrict(&mut self, plain: &[f32], scores: &mut [f32]) -> Result<(), String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|error| reason(&error.to_string()))?;
        let is_allowed = |id: usize| id < allowed.len() && allowed.get(id);
        let mut left = false;
        for (id, score) in scores.iter_mut().enumerate() {
            if !is_allowed(id) {
                *score = f32::NEG_INFINITY;
            }
            left |= score.is_finite();
        }
        if !left {
            for (id, (score, plain)) in scores.iter_mut().zip(plain).enumerate() {
                if is_allowed(id) {
                    *score = if plain.is_finite() { *plain } else { 0.0 };
                }
            }
        }
        Ok(())
    }

    /// Notes the token that was chosen; `true` when the answer is complete and nothing can follow.
    ///
    /// # Errors
    /// One sentence, when the token could not come or the grammar became too costly to follow.
    pub fn accept(&mut self, token: u32) -> Result<bool, String> {
        self.matcher.consume_token(token).map_err(|error| reason(&error.to_string()))?;
        Ok(self.matcher.is_stopped())
    }
}

#[cfg(test)]
mod tests;
