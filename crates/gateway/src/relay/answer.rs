//! What leaves the gateway: events and whole answers with our ids, our model name and our fields (GR5, GR15). The
//! frequent event, a piece of text, is written around a text that is prepared once per stream; a test holds it to
//! the types of `wire`.

use bytes::Bytes;
use cxmpute_wire::openai::{
    ChatChoice, ChatChunk, ChatResponse, ChunkChoice, CompletionChoice, CompletionResponse, Delta,
    ErrorEnvelope, FinishReason, FunctionCall, ResponseMessage, Role, ToolCall, ToolCallDelta, Usage,
};
use serde::Serialize;

use super::events::Dialect;

/// Writes the events of one answer.
#[derive(Debug)]
pub struct Writer {
    dialect: Dialect,
    id: String,
    created: i64,
    model: String,
    with_usage: bool,
    /// Everything before and after `"index":N,"delta":{"content":"…"}` of a text event.
    text_head: Vec<u8>,
    text_tail: Vec<u8>,
}

/// The last event of a complete stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

impl Writer {
    /// A writer for one answer. `with_usage` prints `usage: null` in every chunk (GR10).
    #[must_use]
    pub fn new(dialect: Dialect, id: String, created: i64, model: String, with_usage: bool) -> Self {
        let object = match dialect {
            Dialect::Chat => "chat.completion.chunk",
            Dialect::Completion => "text_completion",
        };
        let json = |text: &str| serde_json::Value::from(text).to_string();
        let text_head = format!(
            "data: {{\"id\":{},\"object\":\"{object}\",\"created\":{created},\"model\":{},\"choices\":[{{\"index\":",
            json(&id),
            json(&model)
        );
        let usage = if with_usage && dialect == Dialect::Chat { ",\"usage\":null" } else { "" };
        let text_tail =
            format!(",\"finish_reason\":null,\"logprobs\":null}}]{usage},\"system_fingerprint\":null}}\n\n");
        Self {
            dialect,
            id,
            created,
            model,
            with_usage,
            text_head: text_head.into_bytes(),
            text_tail: text_tail.into_bytes(),
        }
    }

    /// More text of a choice.
    #[must_use]
    pub fn text(&self, choice: usize, text: &str) -> Bytes {
        let mut out = Vec::with_capacity(self.text_head.len() + self.text_tail.len() + text.len() + 48);
        out.extend_from_slice(&self.text_head);
        let (open, close): (&[u8], &[u8]) = match self.dialect {
            Dialect::Chat => (b",\"delta\":{\"content\":", b"}"),
            Dialect::Completion => (b",\"text\":", b""),
        };
        out.extend_from_slice(choice.to_string().as_bytes());
        out.extend_from_slice(open);
        // Writing into a vector does not fail, and a text is always JSON.
        let _ = serde_json::to_writer(&mut out, text);
        out.extend_from_slice(close);
        out.extend_from_slice(&self.text_tail);
        out.into()
    }

    /// The first chunk of a choice: who speaks.
    #[must_use]
    pub fn opening(&self, choice: usize) -> Option<Bytes> {
        let delta = Delta { role: Some(Role::Assistant), content: Some(String::new()), tool_calls: None };
        (self.dialect == Dialect::Chat).then(|| self.chunk(choice, delta, None))
    }

    /// Parts of tool calls.
    #[must_use]
    pub fn tools(&self, choice: usize, calls: Vec<ToolCallDelta>) -> Bytes {
        self.chunk(choice, Delta { tool_calls: Some(calls), ..Delta::default() }, None)
    }

    /// The end of a choice.
    #[must_use]
    pub fn finish(&self, choice: usize, reason: FinishReason) -> Bytes {
        match self.dialect {
            Dialect::Chat => self.chunk(choice, Delta::default(), Some(reason)),
            Dialect::Completion => event(&self.completion(
                vec![CompletionChoice {
                    index: choice as u64,
                    text: String::new(),
                    finish_reason: Some(reason),
                    logprobs: None,
                }],
                None,
            )),
        }
    }

    /// The usage chunk, where it was asked for.
    #[must_use]
    pub fn usage(&self, usage: Usage) -> Option<Bytes> {
        self.with_usage.then(|| match self.dialect {
            Dialect::Chat => event(&self.chat_chunk(Vec::new(), Some(Some(usage)))),
            Dialect::Completion => event(&self.completion(Vec::new(), Some(usage))),
        })
    }

    /// The whole answer of a request that is not streamed.
    #[must_use]
    pub fn whole(&self, outputs: Vec<Output>, usage: Usage) -> Bytes {
        let outputs = outputs.into_iter().enumerate();
        let body = match self.dialect {
            Dialect::Chat => serde_json::to_vec(&ChatResponse {
                id: self.id.clone(),
                object: "chat.completion".to_owned(),
                created: self.created,
                model: self.model.clone(),
                choices: outputs.map(|(index, output)| output.into_chat_choice(index as u64)).collect(),
                usage: Some(usage),
                system_fingerprint: None,
            }),
            Dialect::Completion => {
                let choices = outputs
                    .map(|(index, output)| CompletionChoice {
                        index: index as u64,
                        text: output.text,
                        finish_reason: output.finish,
                        logprobs: None,
                    })
                    .collect();
                serde_json::to_vec(&self.completion(choices, Some(usage)))
            }
        };
        body.unwrap_or_default().into()
    }

    fn chunk(&self, choice: usize, delta: Delta, finish_reason: Option<FinishReason>) -> Bytes {
        let choice = ChunkChoice { index: choice as u64, delta, finish_reason, logprobs: None };
        event(&self.chat_chunk(vec![choice], self.with_usage.then_some(None)))
    }

    fn chat_chunk(&self, choices: Vec<ChunkChoice>, usage: Option<Option<Usage>>) -> ChatChunk {
        ChatChunk {
            id: self.id.clone(),
            object: "chat.completion.chunk".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            system_fingerprint: None,
        }
    }

    fn completion(&self, choices: Vec<CompletionChoice>, usage: Option<Usage>) -> CompletionResponse {
        CompletionResponse {
            id: self.id.clone(),
            object: "text_completion".to_owned(),
            created: self.created,
            model: self.model.clone(),
            choices,
            usage,
            system_fingerprint: None,
        }
    }
}

/// What one choice came to.
#[derive(Debug, Default, Clone)]
pub struct Output {
    /// The visible text.
    pub text: String,
    /// Calls of tools, put together from their parts.
    pub calls: Vec<ToolCall>,
    /// Why it ended.
    pub finish: Option<FinishReason>,
}

impl Output {
    /// Adds parts of tool calls.
    pub fn add_calls(&mut self, parts: &[ToolCallDelta]) {
        for part in parts {
            let Ok(place) = usize::try_from(part.index) else { continue };
            if place >= 128 {
                continue;
            }
            while self.calls.len() <= place {
                let function = FunctionCall { name: String::new(), arguments: String::new() };
                self.calls.push(ToolCall { id: String::new(), kind: "function".to_owned(), function });
            }
            let call = &mut self.calls[place];
            if let Some(id) = &part.id {
                call.id.clone_from(id);
            }
            if let Some(function) = &part.function {
                call.function.name.push_str(function.name.as_deref().unwrap_or_default());
                call.function.arguments.push_str(function.arguments.as_deref().unwrap_or_default());
            }
        }
    }

    fn into_chat_choice(self, index: u64) -> ChatChoice {
        let calls = (!self.calls.is_empty()).then_some(self.calls);
        let content = if calls.is_some() && self.text.is_empty() { None } else { Some(self.text) };
        let message = ResponseMessage { role: Role::Assistant, content, refusal: None, tool_calls: calls };
        ChatChoice { index, message, finish_reason: self.finish, logprobs: None }
    }
}

/// An error inside a running stream: one event, and no end marker after it (GR14).
#[must_use]
pub fn error_event(envelope: &ErrorEnvelope) -> Bytes {
    event(envelope)
}

fn event(value: &impl Serialize) -> Bytes {
    let mut out = b"data: ".to_vec();
    // The types of `wire` are always JSON, and writing into a vector does not fail.
    let _ = serde_json::to_writer(&mut out, value);
    out.extend_from_slice(b"\n\n");
    out.into()
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::openai::FunctionDelta;
    use proptest::prelude::*;

    use super::*;

    fn writer(dialect: Dialect, with_usage: bool) -> Writer {
        Writer::new(dialect, "chatcmpl-1".into(), 7, "ti\"ny".into(), with_usage)
    }

    proptest! {
        #[test]
        fn a_text_event_is_exactly_what_the_wire_type_prints(text in ".*", choice in 0usize..9, with_usage in any::<bool>()) {
            let chat = writer(Dialect::Chat, with_usage);
            let delta = Delta { content: Some(text.clone()), ..Delta::default() };
            prop_assert_eq!(chat.text(choice, &text), chat.chunk(choice, delta, None));
            let legacy = writer(Dialect::Completion, with_usage);
            let whole = CompletionChoice { index: choice as u64, text: text.clone(), finish_reason: None, logprobs: None };
            prop_assert_eq!(legacy.text(choice, &text), event(&legacy.completion(vec![whole], None)));
        }
    }

    #[test]
    fn usage_is_null_in_chunks_only_when_asked_for() {
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        assert!(!text(writer(Dialect::Chat, false).text(0, "a")).contains("usage"));
        assert!(text(writer(Dialect::Chat, true).text(0, "a")).contains("\"usage\":null"));
        assert!(writer(Dialect::Chat, false).usage(Usage::new(1, 2)).is_none());
        let chunk = text(writer(Dialect::Chat, true).usage(Usage::new(1, 2)).unwrap());
        assert!(chunk.contains("\"choices\":[]") && chunk.contains("\"total_tokens\":3"), "{chunk}");
    }

    #[test]
    fn tool_calls_are_put_together_from_their_parts() {
        let part = |id: Option<&str>, name: Option<&str>, arguments: &str| ToolCallDelta {
            index: 0,
            id: id.map(str::to_owned),
            kind: None,
            function: Some(FunctionDelta {
                name: name.map(str::to_owned),
                arguments: Some(arguments.to_owned()),
            }),
        };
        let mut output = Output::default();
        output.add_calls(&[part(Some("call_1"), Some("sum"), "{\"a\"")]);
        output.add_calls(&[part(None, None, ":1}")]);
        assert_eq!(output.calls[0].function.name, "sum");
        assert_eq!(output.calls[0].function.arguments, "{\"a\":1}");
        let choice = output.into_chat_choice(0);
        assert_eq!(choice.message.content, None);
    }
}
