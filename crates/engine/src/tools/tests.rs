//! Calls of every family, whole and in pieces.

use super::*;

/// Text outside of calls, and the calls, of an answer that comes in pieces.
fn parsed(mut parser: ToolParser, pieces: &[&str]) -> (String, Vec<(String, String)>) {
    let mut parts: Vec<Part> = pieces.iter().flat_map(|piece| parser.push(Span::plain(*piece))).collect();
    parts.extend(parser.finish());
    let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
    for part in parts {
        match part {
            Part::Text(span) => text.push_str(&span.text),
            Part::Call(name) => calls.push((name, String::new())),
            Part::Arguments(more) => calls.last_mut().unwrap().1.push_str(&more),
        }
    }
    assert_eq!(parser.called(), !calls.is_empty());
    (text, calls)
}

fn call(name: &str, arguments: &str) -> (String, String) {
    (name.to_owned(), arguments.to_owned())
}

#[test]
fn calls_are_taken_out_of_the_text() {
    let pieces = ["So: <tool", "_call>{\"name\":\"f\",\"argu", "ments\":{\"b\":1,\"a\":2}}</tool_call>"];
    let expected = ("So: ".to_owned(), vec![call("f", "{\"b\":1,\"a\":2}")]);
    assert_eq!(parsed(ToolParser::lenient(HERMES, true), &pieces), expected);
    assert_eq!(parsed(ToolParser::live(HERMES), &pieces), expected);
    let two = "<tool_call>{\"name\":\"f\"}</tool_call>\n<tool_call> {\"name\":\"g\",\"arguments\":\"{}\"}";
    assert_eq!(parsed(ToolParser::lenient(HERMES, true), &[two]).1, [call("f", "{}"), call("g", "{}")]);
}

#[test]
fn text_that_is_no_call_stays_text() {
    let lenient = |pieces: &[&str]| parsed(ToolParser::lenient(HERMES, true), pieces);
    assert_eq!(lenient(&["1 <", " 2 <tool"]), ("1 < 2 <tool".into(), vec![]));
    assert_eq!(lenient(&["<tool_call>oops"]), ("<tool_call>oops".into(), vec![]));
    assert_eq!(parsed(ToolParser::lenient(LLAMA, true), &["a {", "}"]), ("a {}".into(), vec![]));
    assert_eq!(parsed(ToolParser::lenient(LLAMA, true), &["{\"a\":", "1}"]), ("{\"a\":1}".into(), vec![]));
}

#[test]
fn every_family_is_read_whole_and_byte_by_byte() {
    let (first, second) = ("{\"x\": \"a}\\\"]\", \"y\": [{}]}", "{}");
    for (syntax, text) in [
        (
            HERMES,
            format!(
                "<tool_call>\n{{\"name\": \"f\", \"arguments\": {first}}}\n</tool_call>\n<tool_call>\n{{\"name\": \"g\", \"arguments\": {second}}}\n</tool_call>"
            ),
        ),
        (
            MISTRAL,
            format!(
                "[TOOL_CALLS][{{\"name\": \"f\", \"arguments\": {first}}}, {{\"name\": \"g\", \"arguments\": {second}}}]"
            ),
        ),
        (MISTRAL_TAGGED, format!("[TOOL_CALLS]f[ARGS]{first}[TOOL_CALLS]g[ARGS]{second}")),
        (
            PHI,
            format!(
                "<|tool_call|>[{{\"name\": \"f\", \"arguments\": {first}}}, {{\"name\": \"g\", \"arguments\": {second}}}]<|/tool_call|>"
            ),
        ),
        (
            LLAMA,
            format!(
                "{{\"name\": \"f\", \"parameters\": {first}}}; {{\"name\": \"g\", \"parameters\": {second}}}"
            ),
        ),
    ] {
        let (told, calls) = parsed(ToolParser::lenient(syntax, true), &[&text]);
        let compact: Vec<Value> = calls.iter().map(|call| serde_json::from_str(&call.1).unwrap()).collect();
        assert_eq!((told.as_str(), calls.len()), ("", 2), "{text}");
        assert_eq!(compact, [first, second].map(|json| serde_json::from_str::<Value>(json).unwrap()));
        let bytes: Vec<String> = text.chars().map(String::from).collect();
        let bytes: Vec<&str> = bytes.iter().map(String::as_str).collect();
        let live = parsed(ToolParser::live(syntax), &bytes);
        assert_eq!(live, (String::new(), vec![call("f", first), call("g", second)]), "{text}");
    }
}

#[test]
fn a_live_call_is_told_before_it_is_complete() {
    let mut parser = ToolParser::live(HERMES);
    let first = parser.push(Span::plain("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\""));
    assert_eq!(first, [Part::Call("f".into()), Part::Arguments("{\"a\"".into())]);
    assert_eq!(parser.push(Span::plain(": 1")), [Part::Arguments(": 1".into())]);
    assert_eq!(parser.finish(), []);
}

#[test]
fn the_template_tells_the_syntax() {
    assert_eq!(Syntax::of_template("{{ messages }}"), None);
    assert_eq!(Syntax::of_template("{{ tools }}<tool_call>"), Some(HERMES));
    assert_eq!(Syntax::of_template("{{ tools }}[TOOL_CALLS]"), Some(MISTRAL));
    assert_eq!(Syntax::of_template("{{ tools }}[TOOL_CALLS][ARGS]"), Some(MISTRAL_TAGGED));
    assert_eq!(Syntax::of_template("{{ tools }}<|tool_call|>"), Some(PHI));
    assert_eq!(Syntax::of_template("<|start_header_id|>{{ tools }}"), Some(LLAMA));
}
