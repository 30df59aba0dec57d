//! Tool calls as models write them: `<tool_call>{"name": …, "arguments": {…}}</tool_call>` in the middle of text.

use cxmpute_runtime::random;
use cxmpute_wire::openai::{FunctionCall, ToolCall};
use serde::Deserialize;
use serde_json::Value;

use crate::text::overlap;

const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// Separates text from tool calls. Text passes at once; from the first mark on everything is kept until the end.
#[derive(Debug, Default)]
pub struct ToolFilter {
    held: String,
    in_call: bool,
}

impl ToolFilter {
    /// Adds text; returns what is certainly not a tool call.
    pub fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        if self.in_call {
            return String::new();
        }
        if let Some(place) = self.held.find(OPEN) {
            self.in_call = true;
            let rest = self.held.split_off(place);
            return std::mem::replace(&mut self.held, rest);
        }
        let rest = self.held.split_off(self.held.len() - overlap(&self.held, OPEN));
        std::mem::replace(&mut self.held, rest)
    }

    /// Ends the text: the calls, or the rest of the text if it holds no well-formed call.
    pub fn finish(self) -> Result<Vec<ToolCall>, String> {
        if !self.in_call {
            return Err(self.held);
        }
        parse_calls(&self.held).ok_or(self.held)
    }
}

#[derive(Deserialize)]
struct Call {
    name: String,
    #[serde(alias = "parameters", default)]
    arguments: Value,
}

fn parse_calls(text: &str) -> Option<Vec<ToolCall>> {
    let mut calls = Vec::new();
    for part in text.split(OPEN).skip(1) {
        let body = part.split(CLOSE).next()?;
        let call: Call = serde_json::from_str(body.trim()).ok()?;
        let arguments = match call.arguments {
            Value::String(text) => text,
            Value::Null => "{}".to_owned(),
            other => other.to_string(),
        };
        let id = data_encoding::HEXLOWER.encode(&random::bytes::<12>());
        calls.push(ToolCall {
            id: format!("call_{id}"),
            kind: "function".into(),
            function: FunctionCall { name: call.name, arguments },
        });
    }
    Some(calls).filter(|calls| !calls.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(parts: &[&str]) -> (String, Result<Vec<ToolCall>, String>) {
        let mut filter = ToolFilter::default();
        let text = parts.iter().map(|part| filter.push(part)).collect();
        (text, filter.finish())
    }

    #[test]
    fn calls_are_taken_out_of_the_text() {
        let (text, calls) = filtered(&[
            "So: <tool",
            "_call>{\"name\":\"f\",\"argu",
            "ments\":{\"b\":1,\"a\":2}}</tool_call>",
        ]);
        assert_eq!(text, "So: ");
        let calls = calls.unwrap();
        assert_eq!((calls.len(), calls[0].function.name.as_str()), (1, "f"));
        assert_eq!(calls[0].function.arguments, "{\"b\":1,\"a\":2}");
        assert!(calls[0].id.starts_with("call_"));
        let two =
            "<tool_call>{\"name\":\"f\"}</tool_call>\n<tool_call> {\"name\":\"g\",\"arguments\":\"{}\"}";
        assert_eq!(filtered(&[two]).1.unwrap().len(), 2);
    }

    #[test]
    fn text_that_is_no_call_stays_text() {
        assert_eq!(filtered(&["1 <", " 2 <tool"]), ("1 < 2 ".into(), Err("<tool".into())));
        assert_eq!(filtered(&["<tool_call>oops"]), (String::new(), Err("<tool_call>oops".into())));
    }
}
