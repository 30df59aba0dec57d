//! Whatever the scores, an answer keeps to its shape.

use std::path::Path;
use std::time::Duration;

use cxmpute_runtime::Clock;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::*;
use crate::grammar::Callable;
use crate::sample::{Sampler, Sampling};
use crate::text::Span;
use crate::tools::{Part, Syntax, ToolParser};

const WILD: Sampling = Sampling { temperature: 2.0, top_p: 1.0, top_k: None, min_p: 0.0 };
/// Longest answer that is tried.
const MOST: usize = 600;

fn grammars() -> &'static Grammars {
    static GRAMMARS: OnceLock<Grammars> = OnceLock::new();
    GRAMMARS.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/tiny-model/cxm-tiny-q8.gguf");
        Grammars::new(TokenCounter::from_gguf(&path).unwrap())
    })
}

/// The answer of a model whose scores are noise, with an inclination to come to an end; `None` if it does not.
fn answered(constraint: &Constraint, seed: u64) -> Option<String> {
    let tokenizer = grammars().counter.tokenizer();
    let mut constraint = constraint.fresh();
    let mut noise = StdRng::seed_from_u64(seed);
    let mut sampler = Sampler::new(WILD, seed);
    let closing: Vec<bool> = (0..768)
        .map(|id| {
            tokenizer.is_end(id) || matches!(tokenizer.token_bytes(id), [b'"' | b'}' | b']' | b'[' | b'<'])
        })
        .collect();
    let mut text = Vec::new();
    for _ in 0..MOST {
        let plain: Vec<f32> = closing
            .iter()
            .map(|closes| noise.random::<f32>() * 12.0 + if *closes { 9.0 } else { 0.0 })
            .collect();
        let mut scores = plain.clone();
        constraint.restrict(&plain, &mut scores).unwrap();
        let token = sampler.choose(&scores).expect("some token can always come");
        if tokenizer.is_end(token) {
            return Some(String::from_utf8(text).expect("whole characters"));
        }
        text.extend_from_slice(tokenizer.token_bytes(token));
        if constraint.accept(token).unwrap() {
            return Some(String::from_utf8(text).expect("whole characters"));
        }
    }
    None
}

fn compile(schema: Value) -> Result<Constraint, String> {
    Ok(grammars().compile(Some(&Format::Schema(schema)), None)?.unwrap())
}

/// A schema as a request may bring it, of at most this depth.
fn any_schema(depth: u32) -> BoxedStrategy<Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "integer"})),
        (-50i64..50, 0i64..90)
            .prop_map(|(low, width)| json!({"type": "integer", "minimum": low, "maximum": low + width})),
        Just(json!({"type": "number"})),
        (1u32..200).prop_map(|of| json!({"type": "integer", "minimum": 0, "multipleOf": of})),
        (-50i64..50).prop_map(|low| json!({"type": "integer", "exclusiveMinimum": low})),
        (-9i32..9, 1i32..9).prop_map(
            |(low, width)| json!({"type": "number", "minimum": low, "exclusiveMaximum": low + width})
        ),
        (0u32..3, 3u32..9)
            .prop_map(|(low, high)| json!({"type": "string", "minLength": low, "maxLength": high})),
        Just(json!({"type": "string", "pattern": "^[a-f]{2,4}-[0-9]+$", "maxLength": 12})),
        Just(json!({"type": "string", "format": "date"})),
        Just(json!({"enum": ["red", "green", 3, null, true]})),
        Just(json!({"const": "only \"this\""})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": ["string", "null"], "maxLength": 5})),
    ];
    leaf.prop_recursive(depth, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), 0usize..2, 2usize..4)
                .prop_map(|(items, low, high)| json!({"type": "array", "items": items, "minItems": low, "maxItems": high})),
            (prop::collection::btree_map("[a-c é]{1,3}", inner.clone(), 0..4), any::<u8>()).prop_map(
                |(properties, mask)| {
                    let required: Vec<&String> =
                        properties.keys().enumerate().filter(|(place, _)| mask >> place & 1 == 1).map(|(_, key)| key).collect();
                    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
                }
            ),
            (inner.clone(), inner).prop_map(|(one, other)| json!({"anyOf": [one, other]})),
        ]
    })
    .boxed()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_answer_is_valid_by_its_schema(schema in any_schema(3), seed: u64) {
        let constraint = compile(schema.clone()).map_err(|error| TestCaseError::fail(format!("{schema}: {error}")))?;
        let validator = jsonschema::validator_for(&schema).unwrap();
        for seed in [seed, seed.wrapping_add(1)] {
            if let Some(text) = answered(&constraint, seed) {
                let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
                prop_assert!(validator.is_valid(&value), "{} by {}", text, schema);
            }
        }
    }

    #[test]
    fn every_object_is_json(seed: u64) {
        let constraint = grammars().compile(Some(&Format::Object), None).unwrap().unwrap();
        if let Some(text) = answered(&constraint, seed) {
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            prop_assert!(value.is_object(), "{}", text);
        }
    }
}

fn functions() -> Vec<Callable> {
    let city = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"], "additionalProperties": false});
    vec![
        Callable { name: "get_weather".into(), parameters: Some(city) },
        Callable { name: "a.b-c".into(), parameters: None },
    ]
}

/// In the vocabulary of the tiny model all marks are plain text.
fn every_syntax() -> Vec<Syntax> {
    [
        "{{ tools }}<tool_call>",
        "{{ tools }}[TOOL_CALLS]",
        "{{ tools }}[TOOL_CALLS][ARGS]",
        "{{ tools }}<|tool_call|>",
        "{{ tools }}<|start_header_id|>",
    ]
    .map(|template| Syntax::of_template(template).unwrap())
    .to_vec()
}

#[test]
fn forced_calls_are_valid_in_every_syntax() {
    for syntax in every_syntax() {
        let mut most = 0;
        for several in [false, true] {
            let calls = Calls { syntax, functions: functions(), several, forced: true };
            let constraint = grammars().compile(None, Some(&calls)).unwrap().unwrap();
            let mut complete = 0;
            for seed in 0..24 {
                let Some(text) = answered(&constraint, seed) else { continue };
                complete += 1;
                let told = told(ToolParser::live(syntax), &text);
                let kept = self::told(ToolParser::lenient(syntax, true), &text);
                assert_eq!(told.len(), kept.len(), "{text}");
                assert!(!told.is_empty() && (several || told.len() == 1), "{text}");
                most = most.max(told.len());
                for (name, arguments) in told {
                    let arguments: Value =
                        serde_json::from_str(&arguments).unwrap_or_else(|error| panic!("{text}: {error}"));
                    let function = functions().into_iter().find(|function| function.name == name);
                    let schema = function
                        .unwrap_or_else(|| panic!("{text}"))
                        .parameters
                        .unwrap_or(json!({"type": "object"}));
                    assert!(jsonschema::validator_for(&schema).unwrap().is_valid(&arguments), "{text}");
                }
            }
            assert!(complete >= 8, "{complete} complete answers of {syntax:?}");
        }
        assert!(most > 1, "never several calls in {syntax:?}");
    }
}

fn told(mut parser: ToolParser, text: &str) -> Vec<(String, String)> {
    let mut parts = parser.push(Span::plain(text));
    parts.extend(parser.finish());
    let mut calls: Vec<(String, String)> = Vec::new();
    for part in parts {
        match part {
            Part::Text(span) => panic!("`{}` is left of {text}", span.text),
            Part::Call(name) => calls.push((name, String::new())),
            Part::Arguments(more) => calls.last_mut().unwrap().1.push_str(&more),
        }
    }
    calls
}

#[test]
fn free_text_stays_free_until_a_call_begins() {
    let tokenizer = grammars().counter.tokenizer();
    let calls = Calls { syntax: every_syntax()[0], functions: functions(), several: true, forced: false };
    let constraint = grammars().compile(None, Some(&calls)).unwrap().unwrap();
    let follows = |text: &str| {
        let mut constraint = constraint.fresh();
        let tokens = tokenizer.encode(text).unwrap();
        tokens.iter().all(|token| {
            let plain = vec![0.0; tokenizer.vocabulary_size()];
            let mut scores = plain.clone();
            constraint.restrict(&plain, &mut scores).unwrap();
            let may = scores[*token as usize].is_finite();
            may && constraint.accept(*token).is_ok()
        })
    };
    assert!(follows("Well, 1 < 2 and <tool> is no call: {\"a\"}.\n"));
    assert!(follows(
        "Well: <tool_call>{\"name\":\"get_weather\",\"arguments\":{\"city\":\"Rome\"}}</tool_call>"
    ));
    assert!(follows(
        "<tool_call>\n{\"name\": \"a.b-c\", \"arguments\": {\"x\": [1, -2.5e3]}}\n</tool_call>\n<tool_call>\n{\"name\""
    ));
    assert!(!follows("<tool_call>{\"name\":\"get_time\""));
    assert!(!follows("<tool_call>nothing"));
    assert!(!follows("<tool_call>{\"name\":\"get_weather\",\"arguments\":{\"town\""));
}

#[test]
fn white_space_cannot_go_on() {
    let constraint =
        compile(json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": false}))
            .unwrap();
    let tokenizer = grammars().counter.tokenizer();
    let mut constraint = constraint.fresh();
    let mut text = Vec::new();
    // A model that wants nothing but white space.
    for _ in 0..200 {
        let blank =
            |id: u32| tokenizer.token_bytes(id).iter().filter(|byte| byte.is_ascii_whitespace()).count();
        let plain: Vec<f32> = (0..768).map(|id| if blank(id) > 0 { 50.0 } else { 0.0 }).collect();
        let mut scores = plain.clone();
        constraint.restrict(&plain, &mut scores).unwrap();
        let token = Sampler::new(Sampling { temperature: 0.0, ..WILD }, 0).choose(&scores).unwrap();
        text.extend_from_slice(tokenizer.token_bytes(token));
        if tokenizer.is_end(token) || constraint.accept(token).unwrap() {
            return;
        }
    }
    let spaces = text.iter().filter(|byte| byte.is_ascii_whitespace()).count();
    assert!(spaces < 20, "{spaces} in {}", String::from_utf8_lossy(&text));
}

#[test]
fn what_cannot_be_guaranteed_is_refused_with_its_reason() {
    for schema in [
        json!({"type": "nothing"}),
        json!({"type": "object", "properties": 5}),
        json!({"$ref": "https://example.com/schema.json"}),
        json!({"not": {"type": "string"}}),
        json!({"type": "array", "items": {"type": "integer"}, "uniqueItems": true}),
        json!({"type": "string", "pattern": "("}),
        json!({"type": "string", "minLength": 5, "maxLength": 2}),
        json!({"if": {}, "then": {}}),
        json!({"$ref": "#"}),
        json!({"type": "integer", "multipleOf": 999_999_937}),
        json!({"type": "number", "multipleOf": 0.000_001}),
        json!({"type": "number", "multipleOf": 0}),
        json!(false),
    ] {
        let Err(reason) = compile(schema.clone()) else { panic!("{schema} is accepted") };
        assert!(
            !reason.is_empty() && !reason.contains('\n') && reason.chars().count() <= MAX_REASON_CHARS,
            "{reason:?}"
        );
        assert!(!reason.contains("panic") && !reason.contains("NoExtensionBias"), "{reason}");
    }
}

/// Compiling is bounded: hostile schemas are refused or cheap. Generous beside the 50 ms of a quiet machine and a
/// release build, far below what the same schemas cost without bounds.
#[test]
fn hostile_schemas_cost_little() {
    let nested = |levels: usize, wrap: fn(Value) -> Value| {
        (0..levels).fold(json!({"type": "string"}), |inner, _| wrap(inner))
    };
    let wide = |count: usize| {
        (0..count)
            .map(|number| (format!("field_{number}"), json!({"type": "string"})))
            .collect::<serde_json::Map<_, _>>()
    };
    let hostile = [
        nested(60, |inner| json!({"type": "array", "items": inner})),
        nested(23, |inner| json!({"type": "array", "items": inner})),
        nested(9, |inner| json!({"allOf": [inner.clone(), {"anyOf": [inner, {"type": "object"}]}]})),
        nested(11, |inner| json!({"anyOf": [{"type": "array", "items": inner.clone()}, inner]})),
        json!({"type": "object", "properties": wide(4_000)}),
        json!({"type": "object", "properties": wide(400), "minProperties": 200}),
        json!({"type": "string", "maxLength": 2_000_000_000}),
        json!({"type": "string", "minLength": 1_000_000}),
        json!({"type": "array", "items": {"type": "string"}, "minItems": 1_000_000_000, "maxItems": 2_000_000_000}),
        json!({"type": "string", "pattern": "^((a{1,500}){1,500}){1,500}$"}),
        json!({"type": "string", "pattern": "(x+x+)+y(x+x+)+y(.*a.{30}b)+"}),
        json!({"type": "string", "pattern": "^(.*a.{200}|.*b.{199}|.*c.{198})$"}),
        json!({"type": "integer", "multipleOf": 999_999_937, "minimum": 12_345_678, "maximum": i64::MAX}),
        json!({"enum": (0..4_000).map(|number| format!("value {number}")).collect::<Vec<_>>()}),
        json!({"$ref": "#"}),
        json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        json!({"x-guidance": {"whitespace_flexible": true}, "type": "object"}),
    ];
    let _ = compile(json!({}));
    let clock = Clock::system();
    for schema in hostile {
        let shown: String = schema.to_string().chars().take(120).collect();
        let format = Format::Schema(schema);
        let begun = clock.mono();
        let compiled = grammars().compile(Some(&format), None);
        let took = clock.mono() - begun;
        let result = compiled.map(drop);
        assert!(took < Duration::from_millis(500), "{took:?} {result:?} {shown}");
    }
}
