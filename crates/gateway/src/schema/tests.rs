use serde_json::json;

use super::*;

fn refusal(schema: &Value) -> Option<String> {
    Schema::compile(schema).err().map(|fault| fault.to_string())
}

fn nested(levels: usize) -> Value {
    (1..levels)
        .fold(json!({"type": "string"}), |inner, _| json!({"type": "object", "properties": {"a": inner}}))
}

#[test]
fn ordinary_schemas_judge_texts() {
    let schema = Schema::compile(&json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": "^[a-z]+$"},
            "home": {"$ref": "#/$defs/address"},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}},
        },
        "required": ["name"],
        "additionalProperties": false,
        "$defs": {"address": {"anyOf": [{"type": "null"}, {"type": "object", "required": ["city"]}]}},
    }))
    .unwrap();
    for (text, verdict) in [
        (r#"{"name":"ada"}"#, Verdict::Follows),
        (r#" {"name":"ada","home":{"city":"x"},"tags":["a"]} "#, Verdict::Follows),
        (r#"{"name":"Ada"}"#, Verdict::Breaks),
        (r#"{"name":"ada","more":1}"#, Verdict::Breaks),
        (r#"{"name":"ada","home":{}}"#, Verdict::Breaks),
        (r#"{"name":"ada"} and more"#, Verdict::Breaks),
        ("{\"name\":\"ad", Verdict::Breaks),
        ("", Verdict::Breaks),
    ] {
        assert_eq!(schema.judge(text), verdict, "{text}");
    }
}

#[test]
fn schemas_that_hurt_or_point_elsewhere_are_refused() {
    let many: serde_json::Map<String, Value> =
        (0..=limits::PATTERNS).map(|at| (format!("k{at}"), json!({"pattern": "a"}))).collect();
    for (schema, why) in [
        (json!(true), "object"),
        (json!({"description": "x".repeat(limits::SCHEMA)}), "bytes"),
        (nested(limits::SCHEMA_DEPTH + 1), "deeper"),
        (json!({"$ref": "#"}), "back to itself"),
        (
            json!({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"allOf": [{"$ref": "#"}]}}}),
            "back to itself",
        ),
        (json!({"$ref": "https://example.org/schema.json"}), "point into"),
        (json!({"$ref": "file:///etc/passwd"}), "point into"),
        (json!({"properties": {"a": {"$ref": "other.json#/x"}}}), "point into"),
        (json!({"$ref": "#/$defs/none"}), "nothing"),
        (json!({"properties": {"a": {"$id": "https://example.org/x"}}}), "$id"),
        (json!({"type": "dog"}), ""),
        (json!({"pattern": "("}), ""),
        (json!({"pattern": "(a+)+$(?=b)"}), ""),
        (json!({"pattern": "a".repeat(limits::PATTERN + 1)}), "regular"),
        (json!({"properties": many}), "regular"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"not": {"type": "string"}}), "not"),
        (json!({"properties": {"a": 7}}), "no schema"),
    ] {
        let refused = refusal(&schema).unwrap_or_else(|| panic!("{schema}"));
        assert!(refused.contains(why), "{refused}");
    }
    assert_eq!(refusal(&nested(limits::SCHEMA_DEPTH)), None);
    Schema::check(&json!({"type": "array", "uniqueItems": true}), Use::Hint).unwrap();
    assert!(Schema::check(&json!({"$ref": "#"}), Use::Hint).is_err());
}

#[test]
fn a_property_may_have_any_name() {
    let schema = json!({"type": "object", "properties": {"$ref": {"type": "string"}, "not": {"type": "null"}, "a/b~c": {}},
        "required": ["$ref"], "enum": [{"$ref": "x"}]});
    assert_eq!(Schema::compile(&schema).unwrap().judge(r#"{"$ref":"x"}"#), Verdict::Follows);
}

/// A list, a tree and a menu are recursive and cheap; alternatives that each lead back double with every level.
#[test]
fn recursion_is_allowed_as_long_as_it_does_not_branch_without_bound() {
    let list =
        json!({"type": "object", "properties": {"next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}}});
    let tree = json!({"properties": {"l": {"$ref": "#"}, "r": {"$ref": "#"}, "v": {"type": "integer"}}});
    let menu = json!({"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"children": {"type": "array", "items": {"$ref": "#/$defs/n"}}}}}});
    for schema in [&list, &tree, &menu] {
        assert_eq!(refusal(schema), None, "{schema}");
    }
    let deep = "{\"next\":".repeat(100) + "null" + &"}".repeat(100);
    assert_eq!(Schema::compile(&list).unwrap().judge(&deep), Verdict::Follows);
    let branch = |ways: usize| json!({"anyOf": vec![json!({"properties": {"a": {"$ref": "#"}}, "required": ["b"]}); ways]});
    assert!(refusal(&branch(8)).unwrap().contains("alternatives"));
    let two = Schema::compile(&branch(2)).unwrap();
    let deep = "{\"a\":".repeat(60) + "{}" + &"}".repeat(60);
    assert_eq!(two.judge(&deep), Verdict::Unchecked, "2^60 steps are not taken");
    let chain: serde_json::Map<String, Value> = (0..200)
        .map(|at| {
            let next = json!({"$ref": format!("#/$defs/d{}", at + 1)});
            (format!("d{at}"), json!({"anyOf": [next.clone(), next]}))
        })
        .chain([("d200".to_owned(), json!({"type": "null"}))])
        .collect();
    assert!(refusal(&json!({"$ref": "#/$defs/d0", "$defs": chain})).unwrap().contains("alternatives"));
}
