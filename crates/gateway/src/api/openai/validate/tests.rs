use serde_json::{Value, json};

use super::*;

fn chat(more: Value) -> Option<String> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "x"}]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    let request: ChatRequest = serde_json::from_value(body).unwrap();
    check_chat(&request).and_then(|()| check_tools(&request)).err().and_then(|error| error.param.clone())
}

fn completion(more: Value) -> Option<String> {
    let mut body = json!({"model": "m", "prompt": "x"});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    let request: CompletionRequest = serde_json::from_value(body).unwrap();
    check_completion(&request).err().and_then(|error| error.param.clone())
}

fn tool(name: &str) -> Value {
    json!({"type": "function", "function": {"name": name, "parameters": {"type": "object"}}})
}

fn biases(count: usize) -> Value {
    (0..count).map(|id| (id.to_string(), json!(1))).collect::<serde_json::Map<_, _>>().into()
}

#[test]
fn sampling_is_held_to_its_ranges() {
    for (field, good, bad) in [
        ("n", vec![json!(1), json!(8)], vec![json!(0), json!(9), json!(1_000_000_000)]),
        ("temperature", vec![json!(0), json!(2)], vec![json!(2.1), json!(-0.1)]),
        ("top_p", vec![json!(0.01), json!(1)], vec![json!(0), json!(1.01)]),
        ("top_k", vec![json!(0), json!(limits::TOP_K)], vec![json!(limits::TOP_K + 1)]),
        ("min_p", vec![json!(0), json!(1)], vec![json!(-0.1), json!(1.1)]),
        ("frequency_penalty", vec![json!(-2), json!(2)], vec![json!(-2.1), json!(2.1)]),
        ("presence_penalty", vec![json!(-2), json!(2)], vec![json!(-2.1), json!(2.1)]),
        ("repetition_penalty", vec![json!(0.1), json!(2)], vec![json!(0), json!(2.1), json!(-1)]),
        (
            "logit_bias",
            vec![json!({}), json!({"9223372036854775807": -100}), biases(limits::BIASES)],
            vec![
                biases(limits::BIASES + 1),
                json!({"9223372036854775808": 0}),
                json!({"-1": 0}),
                json!({"a": 0}),
                json!({"": 0}),
                json!({"1": 101}),
            ],
        ),
        (
            "stop",
            vec![json!("x"), json!(["a", "b", "c", "d"])],
            vec![
                json!(""),
                json!(["a", "b", "c", "d", "e"]),
                json!(vec!["a"; 10_000]),
                json!("x".repeat(257)),
            ],
        ),
    ] {
        for value in good {
            assert_eq!(chat(json!({field: value})), None, "{field}");
            assert_eq!(completion(json!({field: value})), None, "{field}");
        }
        for value in bad {
            assert_eq!(chat(json!({field: value})).as_deref(), Some(field));
            assert_eq!(completion(json!({field: value})).as_deref(), Some(field));
        }
    }
}

#[test]
fn fields_of_chats_name_themselves() {
    let metadata = |count: usize, key: usize, value: usize| -> Value {
        let entry = |at: usize| (format!("{at:0>key$}"), json!("v".repeat(value)));
        (0..count).map(entry).collect::<serde_json::Map<_, _>>().into()
    };
    let format = |name: &str| json!({"type": "json_schema", "json_schema": {"name": name, "schema": {}}});
    for (more, field) in [
        (json!({}), None),
        (json!({"logprobs": true, "top_logprobs": 20}), None),
        (json!({"logprobs": true, "top_logprobs": 21}), Some("top_logprobs")),
        (json!({"top_logprobs": 1}), Some("top_logprobs")),
        (json!({"logprobs": false, "top_logprobs": 1}), Some("top_logprobs")),
        (json!({"max_tokens": 5, "max_completion_tokens": 6}), Some("max_tokens")),
        (json!({"max_tokens": 5, "max_completion_tokens": 5}), None),
        (json!({"metadata": metadata(16, 64, 512)}), None),
        (json!({"metadata": metadata(17, 64, 512)}), Some("metadata")),
        (json!({"metadata": metadata(1, 65, 1)}), Some("metadata")),
        (json!({"metadata": metadata(1, 1, 513)}), Some("metadata")),
        (json!({"reasoning_effort": "low"}), None),
        (json!({"reasoning_effort": "very"}), Some("reasoning_effort")),
        (json!({"response_format": {"type": "text"}}), None),
        (json!({"response_format": {"type": "json_object"}}), None),
        (json!({"response_format": format("a-b_1")}), None),
        (json!({"response_format": format("a b")}), Some("response_format.json_schema.name")),
        (json!({"stream_options": {"include_usage": true}}), Some("stream_options")),
        (json!({"stream_options": {"include_usage": true}, "stream": true}), None),
    ] {
        assert_eq!(chat(more.clone()).as_deref(), field, "{more}");
    }
}

#[test]
fn tools_are_named_once_and_chosen_among() {
    let many: Vec<Value> = (0..=limits::TOOLS).map(|at| tool(&format!("f{at}"))).collect();
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let schema =
        |schema: Value| json!([{"type": "function", "function": {"name": "f", "parameters": schema}}]);
    let deep = (0..limits::SCHEMA_DEPTH).fold(json!({}), |inner, _| json!({"items": inner}));
    for (more, field) in [
        (json!({"tools": [tool("f"), tool("g")], "tool_choice": named("g")}), None),
        (json!({"tools": many[..limits::TOOLS]}), None),
        (json!({"tools": many}), Some("tools")),
        (json!({"tools": vec![tool("f"); 10_000]}), Some("tools")),
        (json!({"tools": [tool("f"), tool("f")]}), Some("tools[1].function.name")),
        (json!({"tools": [tool("")]}), Some("tools[0].function.name")),
        (json!({"tools": [tool(&"f".repeat(65))]}), Some("tools[0].function.name")),
        (json!({"tools": [tool("a.b")]}), Some("tools[0].function.name")),
        (json!({"tools": [{"type": "retrieval", "function": {"name": "f"}}]}), Some("tools[0].type")),
        (json!({"tools": [tool("f")], "tool_choice": named("g")}), Some("tool_choice")),
        (json!({"tools": [], "tool_choice": "required"}), Some("tool_choice")),
        (json!({"tool_choice": "auto"}), Some("tool_choice")),
        (json!({"tool_choice": "none"}), None),
        (json!({"tools": schema(json!([]))}), Some("tools[0].function.parameters")),
        (json!({"tools": schema(json!({"$ref": "#"}))}), Some("tools[0].function.parameters")),
        (json!({"tools": schema(json!({"$ref": "http://x/"}))}), Some("tools[0].function.parameters")),
        (json!({"tools": schema(deep)}), Some("tools[0].function.parameters")),
        (
            json!({"tools": schema(json!({"title": "x".repeat(limits::SCHEMA)}))}),
            Some("tools[0].function.parameters"),
        ),
        (json!({"tools": schema(json!({"uniqueItems": true}))}), None),
    ] {
        assert_eq!(
            chat(more.clone()).as_deref(),
            field,
            "{}",
            &more.to_string()[..more.to_string().len().min(200)]
        );
    }
}

#[test]
fn fields_of_legacy_completions_name_themselves() {
    for (more, field) in [
        (json!({"n": 2, "best_of": 2}), None),
        (json!({"best_of": 1}), None),
        (json!({"n": 1, "best_of": 3}), Some("best_of")),
        (json!({"suffix": "x"}), Some("suffix")),
        (json!({"suffix": ""}), None),
        (json!({"logprobs": 0}), None),
        (json!({"logprobs": 6}), Some("logprobs")),
        (json!({"echo": true}), None),
        (json!({"echo": true, "logprobs": 1}), Some("echo")),
        (json!({"prompt": ""}), Some("prompt")),
        (json!({"prompt": []}), Some("prompt")),
        (json!({"prompt": ["a", "b", "c"], "n": 6}), Some("prompt")),
        (json!({"prompt": ["a", "b"], "n": 8}), None),
    ] {
        assert_eq!(completion(more.clone()).as_deref(), field, "{more}");
    }
}
