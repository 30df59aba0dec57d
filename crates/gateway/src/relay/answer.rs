//! What leaves the gateway: events and whole answers with our ids, our model name and our fields (GR5, GR15). The
//! frequent event, a piece of text, is written around a text that is prepared once per stream; a test holds it to
//! the types of `wire`.

use std::sync::OnceLock;

use bytes::Bytes;
use cxmpute_wire::openai::{
    ChatChoice, ChatChunk, ChatLogprobs, ChatResponse, ChunkChoice, CompletionChoice, CompletionLogprobs,
    CompletionResponse, Delta, ErrorEnvelope, FinishReason, FunctionCall, FunctionDelta, ResponseMessage,
    Role, ToolCall, ToolCallDelta, Usage,
};
use serde::Serialize;

use super::events::Dialect;
use super::logprobs::Logprobs;
use crate::limits;
use crate::one_line::write_json;

/// Writes the events of one answer.
#[derive(Debug)]
pub struct Writer {
    dialect: Dialect,
    id: String,
    created: i64,
    model: String,
    with_usage: bool,
    /// Whether calls are written in the old form, `function_call`.
    old_form: bool,
    /// Everything before and after `"index":N,"delta":{"content":"…"}` of a text event; a whole answer has none.
    around_text: OnceLock<(Vec<u8>, Vec<u8>)>,
}

/// The last event of a complete stream.
pub const DONE: &[u8] = b"data: [DONE]\n\n";

impl Writer {
    /// A writer for one answer. `with_usage` prints `usage: null` in every chunk (GR10); `old_form` writes calls as
    /// `function_call`.
    #[must_use]
    pub fn new(
        dialect: Dialect,
        id: String,
        created: i64,
        model: String,
        with_usage: bool,
        old_form: bool,
    ) -> Self {
        Self { dialect, id, created, model, with_usage, old_form, around_text: OnceLock::new() }
    }

    fn print_around_text(&self) -> (Vec<u8>, Vec<u8>) {
        let object = match self.dialect {
            Dialect::Chat => "chat.completion.chunk",
            Dialect::Completion => "text_completion",
        };
        let json = |text: &str| serde_json::Value::from(text).to_string();
        let text_head = format!(
            "data: {{\"id\":{},\"object\":\"{object}\",\"created\":{},\"model\":{},\"choices\":[{{\"index\":",
            json(&self.id),
            self.created,
            json(&self.model)
        );
        let usage = if self.with_usage { ",\"usage\":null" } else { "" };
        let text_tail =
            format!(",\"finish_reason\":null,\"logprobs\":null}}]{usage},\"system_fingerprint\":null}}\n\n");
        (text_head.into_bytes(), text_tail.into_bytes())
    }

    /// More text of a choice.
    #[must_use]
    pub fn text(&self, choice: usize, text: &str) -> Bytes {
        let (head, tail) = self.around_text.get_or_init(|| self.print_around_text());
        let mut out = Vec::with_capacity(head.len() + tail.len() + text.len() + 48);
        out.extend_from_slice(head);
        let (open, close): (&[u8], &[u8]) = match self.dialect {
            Dialect::Chat => (b",\"delta\":{\"content\":", b"}"),
            Dialect::Completion => (b",\"text\":", b""),
        };
        out.extend_from_slice(choice.to_string().as_bytes());
        out.extend_from_slice(open);
        write_json(&mut out, text);
        out.extend_from_slice(close);
        out.extend_from_slice(tail);
        out.into()
    }

    /// More text of a choice, with what is known of its tokens.
    #[must_use]
    pub fn text_with(&self, choice: usize, text: String, logprobs: Logprobs) -> Bytes {
        match self.dialect {
            Dialect::Chat => {
                let delta = Delta { content: Some(text), ..Delta::default() };
                let logprobs = chat_logprobs(logprobs);
                self.chunk(ChunkChoice { index: choice as u64, delta, finish_reason: None, logprobs })
            }
            Dialect::Completion => self.legacy_chunk(CompletionChoice {
                index: choice as u64,
                text,
                finish_reason: None,
                logprobs: legacy_logprobs(logprobs),
            }),
        }
    }

    /// The first chunk of a choice: who speaks.
    #[must_use]
    pub fn opening(&self, choice: usize) -> Option<Bytes> {
        let delta = Delta { role: Some(Role::Assistant), content: Some(String::new()), ..Delta::default() };
        (self.dialect == Dialect::Chat).then(|| self.change(choice, delta, None))
    }

    /// Parts of tool calls.
    #[must_use]
    pub fn tools(&self, choice: usize, calls: Vec<ToolCallDelta>) -> Bytes {
        let delta = if self.old_form {
            // The rules let one call through, so its parts follow each other.
            let mut whole = FunctionDelta::default();
            for part in calls.into_iter().filter_map(|call| call.function) {
                whole.name = whole.name.or(part.name);
                whole.arguments.get_or_insert_default().push_str(&part.arguments.unwrap_or_default());
            }
            Delta { function_call: Some(whole), ..Delta::default() }
        } else {
            Delta { tool_calls: Some(calls), ..Delta::default() }
        };
        self.change(choice, delta, None)
    }

    /// The end of a choice.
    #[must_use]
    pub fn finish(&self, choice: usize, reason: FinishReason) -> Bytes {
        match self.dialect {
            Dialect::Chat => self.change(choice, Delta::default(), Some(reason)),
            Dialect::Completion => self.legacy_chunk(CompletionChoice {
                index: choice as u64,
                text: String::new(),
                finish_reason: Some(reason),
                logprobs: None,
            }),
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
                choices: outputs
                    .map(|(index, output)| output.into_chat_choice(index as u64, self.old_form))
                    .collect(),
                usage: Some(usage),
                system_fingerprint: None,
            }),
            Dialect::Completion => {
                let choices = outputs
                    .map(|(index, output)| CompletionChoice {
                        index: index as u64,
                        text: output.text,
                        finish_reason: output.finish,
                        logprobs: output.logprobs.and_then(legacy_logprobs),
                    })
                    .collect();
                serde_json::to_vec(&self.completion(choices, Some(usage)))
            }
        };
        body.unwrap_or_default().into()
    }

    fn change(&self, choice: usize, delta: Delta, finish_reason: Option<FinishReason>) -> Bytes {
        self.chunk(ChunkChoice { index: choice as u64, delta, finish_reason, logprobs: None })
    }

    fn chunk(&self, choice: ChunkChoice) -> Bytes {
        event(&self.chat_chunk(vec![choice], self.with_usage.then_some(None)))
    }

    fn legacy_chunk(&self, choice: CompletionChoice) -> Bytes {
        let chunk = self.completion(vec![choice], None);
        if !self.with_usage {
            return event(&chunk);
        }
        event(&LegacyChunk {
            id: &chunk.id,
            object: &chunk.object,
            created: chunk.created,
            model: &chunk.model,
            choices: &chunk.choices,
            usage: None,
            system_fingerprint: None,
        })
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

/// A chunk of a legacy completion that says `usage: null`.
#[derive(Serialize)]
struct LegacyChunk<'a> {
    id: &'a str,
    object: &'a str,
    created: i64,
    model: &'a str,
    choices: &'a [CompletionChoice],
    usage: Option<()>,
    system_fingerprint: Option<()>,
}

fn chat_logprobs(logprobs: Logprobs) -> Option<ChatLogprobs> {
    match logprobs {
        Logprobs::Chat(tokens) => Some(ChatLogprobs { content: Some(tokens), refusal: None }),
        Logprobs::Legacy(_) => None,
    }
}

fn legacy_logprobs(logprobs: Logprobs) -> Option<CompletionLogprobs> {
    match logprobs {
        Logprobs::Legacy(lists) => Some(lists),
        Logprobs::Chat(_) => None,
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
    /// Probabilities of its tokens, where they were asked for.
    pub logprobs: Option<Logprobs>,
}

impl Output {
    /// Adds parts of tool calls.
    pub fn add_calls(&mut self, parts: &[ToolCallDelta]) {
        for part in parts {
            let Ok(place) = usize::try_from(part.index) else { continue };
            if place >= limits::CALLS {
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

    fn into_chat_choice(self, index: u64, old_form: bool) -> ChatChoice {
        let called = !self.calls.is_empty();
        let content = if called && self.text.is_empty() { None } else { Some(self.text) };
        let mut message = ResponseMessage {
            role: Role::Assistant,
            content,
            refusal: None,
            tool_calls: None,
            function_call: None,
        };
        if old_form {
            message.function_call = self.calls.into_iter().next().map(|call| call.function);
        } else if called {
            message.tool_calls = Some(self.calls);
        }
        ChatChoice {
            index,
            message,
            finish_reason: self.finish,
            logprobs: self.logprobs.and_then(chat_logprobs),
        }
    }
}

/// An error inside a running stream: one event, and no end marker after it (GR14).
#[must_use]
pub fn error_event(envelope: &ErrorEnvelope) -> Bytes {
    event(envelope)
}

fn event(value: &impl Serialize) -> Bytes {
    let mut out = b"data: ".to_vec();
    write_json(&mut out, value);
    out.extend_from_slice(b"\n\n");
    out.into()
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::openai::FunctionDelta;
    use proptest::prelude::*;

    use super::*;

    fn writer(dialect: Dialect, with_usage: bool) -> Writer {
        Writer::new(dialect, "chatcmpl-1".into(), 7, "ti\"ny".into(), with_usage, false)
    }

    proptest! {
        #[test]
        fn a_text_event_is_exactly_what_the_wire_type_prints(text in ".*", choice in 0usize..9, with_usage in any::<bool>()) {
            let chat = writer(Dialect::Chat, with_usage);
            let delta = Delta { content: Some(text.clone()), ..Delta::default() };
            prop_assert_eq!(chat.text(choice, &text), chat.change(choice, delta, None));
            let legacy = writer(Dialect::Completion, with_usage);
            let whole = CompletionChoice { index: choice as u64, text: text.clone(), finish_reason: None, logprobs: None };
            prop_assert_eq!(legacy.text(choice, &text), legacy.legacy_chunk(whole));
        }
    }

    #[test]
    fn an_event_is_one_line_for_every_client() {
        let said = "a\u{2028}b\u{2029}\u{85}c é â \n\r\0";
        let bytes = writer(Dialect::Chat, false).text(0, said);
        let line = std::str::from_utf8(&bytes)
            .unwrap()
            .strip_prefix("data: ")
            .unwrap()
            .strip_suffix("\n\n")
            .unwrap();
        assert!(!line.contains(['\n', '\r', '\0', '\u{2028}', '\u{2029}', '\u{85}']), "{line}");
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(value["choices"][0]["delta"]["content"], said);
    }

    #[test]
    fn usage_is_null_in_chunks_only_when_asked_for() {
        let text = |bytes: Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        assert!(!text(writer(Dialect::Chat, false).text(0, "a")).contains("usage"));
        assert!(text(writer(Dialect::Chat, true).text(0, "a")).contains("\"usage\":null"));
        assert!(writer(Dialect::Chat, false).usage(Usage::new(1, 2)).is_none());
        let chunk = text(writer(Dialect::Chat, true).usage(Usage::new(1, 2)).unwrap());
        let legacy = writer(Dialect::Completion, true);
        for chunk in [legacy.text(0, "a"), legacy.finish(0, FinishReason::Stop)] {
            assert!(text(chunk).contains("\"usage\":null"));
        }
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
        let choice = output.clone().into_chat_choice(0, false);
        assert_eq!(choice.message.content, None);
        let old = output.into_chat_choice(0, true).message;
        assert_eq!((old.function_call.unwrap().name.as_str(), old.tool_calls), ("sum", None));
    }

    #[test]
    fn calls_in_the_old_form_have_neither_ids_nor_lists() {
        let old = Writer::new(Dialect::Chat, "chatcmpl-1".into(), 7, "tiny".into(), false, true);
        let function = FunctionDelta { name: Some("f".into()), arguments: Some("{".into()) };
        let part = ToolCallDelta { index: 0, id: Some("x".into()), kind: None, function: Some(function) };
        let text = String::from_utf8(old.tools(0, vec![part]).to_vec()).unwrap();
        assert!(text.contains(r#""delta":{"function_call":{"name":"f","arguments":"{"}}"#), "{text}");
    }
}
