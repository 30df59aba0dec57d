//! A chat's answer as a message.

use cxmpute_wire::Code;
use cxmpute_wire::anthropic::{
    AnswerBlock, BlockDelta, Message, MessageChange, MessageErrorBody, MessageEvent, MessageUsage, StopReason,
};
use cxmpute_wire::openai::{
    ChatChunk, ChatResponse, Delta, ErrorEnvelope, FinishReason, ToolCallDelta, Usage,
};
use serde_json::{Map, Value};

use crate::api::translation::{OpenCall, Translate, write_event};

/// A whole answer.
pub fn message(chat: ChatResponse) -> Message {
    let mut message = empty(chat.id, chat.model);
    message.usage = chat.usage.map(usage).unwrap_or_default();
    let Some(choice) = chat.choices.into_iter().next() else { return message };
    let text = choice.message.content.filter(|text| !text.is_empty());
    message.content.extend(text.map(|text| AnswerBlock::Text { text }));
    for call in choice.message.tool_calls.unwrap_or_default() {
        let input = input(&call.function.arguments);
        message.content.push(AnswerBlock::ToolUse { id: call.id, name: call.function.name, input });
    }
    let called = message.content.iter().any(|block| matches!(block, AnswerBlock::ToolUse { .. }));
    message.stop_reason = Some(stop_reason(choice.finish_reason, called));
    message
}

fn empty(id: String, model: String) -> Message {
    Message {
        id,
        kind: "message".to_owned(),
        role: "assistant".to_owned(),
        model,
        content: Vec::new(),
        stop_reason: None,
        stop_sequence: None,
        usage: MessageUsage::default(),
    }
}

/// The arguments of a call as an object. What is none, because the answer was cut or the model wrote nonsense, is kept as
/// a text, in the way Anthropic advises for such arguments.
fn input(arguments: &str) -> Map<String, Value> {
    if arguments.trim().is_empty() {
        return Map::new();
    }
    serde_json::from_str(arguments)
        .unwrap_or_else(|_| Map::from_iter([("INVALID_JSON".to_owned(), Value::from(arguments))]))
}

/// Engines say that an answer ended, not which stop text ended it.
fn stop_reason(finish: Option<FinishReason>, called: bool) -> StopReason {
    match finish {
        Some(FinishReason::Length) => StopReason::MaxTokens,
        Some(FinishReason::ContentFilter) => StopReason::Refusal,
        _ if called => StopReason::ToolUse,
        _ => StopReason::EndTurn,
    }
}

fn usage(usage: Usage) -> MessageUsage {
    MessageUsage {
        input_tokens: usage.prompt_tokens,
        output_tokens: usage.completion_tokens,
        cost: usage.cost,
        cost_details: usage.cost_details,
        source: usage.source,
        code: usage.code,
    }
}

/// A stream of events. Blocks of text end when a call begins. A call ends when the next begins and its arguments are
/// whole; else at the end of the answer, for the parts of several calls may be mixed.
pub struct MessageStream {
    id: String,
    model: String,
    started: bool,
    /// Position of the next block.
    next: usize,
    text: Option<usize>,
    calls: Vec<OpenCall>,
    finish: Option<FinishReason>,
    usage: MessageUsage,
}

impl MessageStream {
    /// A stream that has not begun.
    pub fn new(id: String, model: String) -> Self {
        Self {
            id,
            model,
            started: false,
            next: 0,
            text: None,
            calls: Vec::new(),
            finish: None,
            usage: MessageUsage::default(),
        }
    }

    fn start(&mut self, out: &mut Vec<u8>) {
        if !std::mem::replace(&mut self.started, true) {
            write(out, &MessageEvent::MessageStart { message: empty(self.id.clone(), self.model.clone()) });
        }
    }

    fn begin(&mut self, content_block: AnswerBlock, out: &mut Vec<u8>) -> usize {
        let index = self.next;
        self.next += 1;
        write(out, &MessageEvent::ContentBlockStart { index, content_block });
        index
    }

    fn change(&mut self, delta: Delta, out: &mut Vec<u8>) {
        if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
            let index = match self.text {
                Some(index) => index,
                None => self.begin(AnswerBlock::Text { text: String::new() }, out),
            };
            self.text = Some(index);
            write(out, &MessageEvent::ContentBlockDelta { index, delta: BlockDelta::TextDelta { text } });
        }
        for part in delta.tool_calls.unwrap_or_default() {
            self.call(part, out);
        }
    }

    fn call(&mut self, part: ToolCallDelta, out: &mut Vec<u8>) {
        let (name, arguments) = part.function.map_or((None, None), |part| (part.name, part.arguments));
        if !self.calls.iter().any(|call| call.place == part.index) {
            self.close(false, out);
            let (id, name) = (part.id.unwrap_or_default(), name.unwrap_or_default());
            let index = self.begin(AnswerBlock::ToolUse { id, name, input: Map::new() }, out);
            self.calls.push(OpenCall { place: part.index, index, ..OpenCall::default() });
        }
        let Some(call) = self.calls.iter_mut().find(|call| call.place == part.index && !call.closed) else {
            return;
        };
        if let Some(partial_json) = arguments.filter(|text| !text.is_empty()) {
            call.arguments.push_str(&partial_json);
            let delta = BlockDelta::InputJsonDelta { partial_json };
            write(out, &MessageEvent::ContentBlockDelta { index: call.index, delta });
        }
    }

    /// Ends the blocks to which nothing can be added; at the end of the answer, all.
    fn close(&mut self, all: bool, out: &mut Vec<u8>) {
        if let Some(index) = self.text.take() {
            write(out, &MessageEvent::ContentBlockStop { index });
        }
        for call in self.calls.iter_mut().filter(|call| !call.closed) {
            if all || call.is_whole() {
                call.closed = true;
                write(out, &MessageEvent::ContentBlockStop { index: call.index });
            }
        }
    }
}

impl Translate for MessageStream {
    fn chunk(&mut self, chunk: ChatChunk, out: &mut Vec<u8>) {
        // Another model than the first may answer.
        self.model = chunk.model;
        self.start(out);
        if let Some(Some(counted)) = chunk.usage {
            self.usage = usage(counted);
        }
        for choice in chunk.choices {
            self.change(choice.delta, out);
            if choice.finish_reason.is_some() {
                self.finish = choice.finish_reason;
                self.close(true, out);
            }
        }
    }

    fn done(&mut self, out: &mut Vec<u8>) {
        self.start(out);
        self.close(true, out);
        let stop_reason = Some(stop_reason(self.finish, !self.calls.is_empty()));
        let delta = MessageChange { stop_reason, stop_sequence: None };
        write(out, &MessageEvent::MessageDelta { delta, usage: std::mem::take(&mut self.usage) });
        write(out, &MessageEvent::MessageStop);
    }

    fn failed(&mut self, error: ErrorEnvelope, out: &mut Vec<u8>) {
        let code = error.error.code.unwrap_or_default();
        let status = code.parse::<Code>().map_or(500, Code::status);
        let kind = MessageErrorBody::kind_of(status).to_owned();
        let body = MessageErrorBody {
            kind,
            message: error.error.message,
            code,
            param: error.error.param,
            extra: error.error.extra,
        };
        write(out, &MessageEvent::Error { error: body, request_id: error.request_id });
    }

    fn waiting(&mut self, out: &mut Vec<u8>) {
        write(out, &MessageEvent::Ping);
    }
}

fn write(out: &mut Vec<u8>, event: &MessageEvent) {
    write_event(out, event.name(), event);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::translation::tests::{call, change, end, error, translated};

    fn stream() -> MessageStream {
        MessageStream::new("msg_1".into(), "m".into())
    }

    async fn events(pieces: Vec<String>) -> Vec<(String, Value)> {
        translated(pieces, stream()).await.into_iter().flatten().collect()
    }

    fn names(events: &[(String, Value)]) -> Vec<&str> {
        events.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[tokio::test]
    async fn a_text_is_streamed_piece_by_piece() {
        let opening = change(json!({"role": "assistant", "content": ""}));
        let pieces = [
            vec![
                ": waiting\n\n".into(),
                opening,
                change(json!({"content": "Hel"})),
                change(json!({"content": "lo"})),
            ],
            end("stop"),
        ]
        .concat();
        let frames = translated(pieces, stream()).await;
        let each: Vec<Vec<&str>> = frames.iter().map(|frame| names(frame)).collect();
        let wanted: [&[&str]; 6] = [
            &["ping"],
            &["message_start"],
            &["content_block_start", "content_block_delta"],
            &["content_block_delta"],
            &["content_block_stop"],
            &["message_delta", "message_stop"],
        ];
        assert_eq!(each, wanted);
        let events: Vec<&Value> = frames.iter().flatten().map(|(_, event)| event).collect();
        assert_eq!(
            *events[1],
            json!({"type": "message_start", "message": {"id": "msg_1", "type": "message", "role": "assistant", "model": "m",
                "content": [], "stop_reason": null, "stop_sequence": null, "usage": {"input_tokens": 0, "output_tokens": 0}}})
        );
        assert_eq!(
            *events[4],
            json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "lo"}})
        );
        assert_eq!(
            *events[6],
            json!({"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": null},
                "usage": {"input_tokens": 5, "output_tokens": 3, "cost": "0.000011"}})
        );
    }

    #[tokio::test]
    async fn calls_have_blocks_of_their_own_even_when_their_parts_are_mixed() {
        let text = change(json!({"content": "Look:"}));
        let one_by_one = [
            vec![
                text.clone(),
                call(0, Some("f"), ""),
                call(0, None, "{\"a\":"),
                call(0, None, "1}"),
                call(1, Some("g"), "{}"),
            ],
            end("tool_calls"),
        ]
        .concat();
        let got = events(one_by_one).await;
        let marks: Vec<(&str, Option<u64>)> =
            got.iter().map(|(name, event)| (name.as_str(), event["index"].as_u64())).collect();
        let (start, delta, stop) = ("content_block_start", "content_block_delta", "content_block_stop");
        let wanted = [
            ("message_start", None),
            (start, Some(0)),
            (delta, Some(0)),
            (stop, Some(0)),
            (start, Some(1)),
            (delta, Some(1)),
            (delta, Some(1)),
            (stop, Some(1)),
            (start, Some(2)),
            (delta, Some(2)),
            (stop, Some(2)),
            ("message_delta", None),
            ("message_stop", None),
        ];
        assert_eq!(marks, wanted);
        assert_eq!(
            got[4].1["content_block"],
            json!({"type": "tool_use", "id": "call_0", "name": "f", "input": {}})
        );
        assert_eq!(got[11].1["delta"]["stop_reason"], "tool_use");
        let mixed =
            [vec![call(0, Some("f"), "{\"a\":"), call(1, Some("g"), "{}"), call(0, None, "1}")], end("stop")]
                .concat();
        let got = events(mixed).await;
        let arguments = |index: u64| -> String {
            let parts = got.iter().filter(|(name, event)| name == delta && event["index"] == index);
            parts.filter_map(|(_, event)| event["delta"]["partial_json"].as_str()).collect()
        };
        assert_eq!((arguments(0).as_str(), arguments(1).as_str()), ("{\"a\":1}", "{}"));
        assert_eq!(names(&got).iter().filter(|name| **name == stop).count(), 2);
        assert_eq!(
            got[got.len() - 2].1["delta"]["stop_reason"],
            "tool_use",
            "a named call ends with `stop` in a chat"
        );
    }

    #[tokio::test]
    async fn a_stream_that_breaks_ends_in_an_error_and_not_in_a_stop() {
        let got = events(vec![change(json!({"content": "Hel"})), error()]).await;
        assert_eq!(names(&got).last(), Some(&"error"));
        assert!(!names(&got).contains(&"message_stop"));
        assert_eq!(
            got.last().unwrap().1["error"],
            json!({"type": "api_error", "message": "The node was lost.", "code": "provider_lost"})
        );
        assert_eq!(names(&events(vec![error()]).await), ["error"]);
        let cut = events(vec![change(json!({"content": "Hel"}))]).await;
        assert!(!names(&cut).contains(&"message_stop"));
    }

    #[test]
    fn whole_answers_have_blocks_and_a_reason() {
        let chat = |message: Value, finish: &str| -> Message {
            let chat = json!({"id": "msg_1", "object": "chat.completion", "created": 7, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": finish}],
                "usage": {"prompt_tokens": 5, "completion_tokens": 3, "cost": "0.000011"}});
            super::message(serde_json::from_value(chat).unwrap())
        };
        let text = chat(json!({"role": "assistant", "content": "Hi"}), "length");
        assert_eq!(text.content, [AnswerBlock::Text { text: "Hi".into() }]);
        assert_eq!((text.stop_reason, text.usage.output_tokens), (Some(StopReason::MaxTokens), 3));
        for (arguments, input) in [
            ("{\"a\":1}", json!({"a": 1})),
            ("", json!({})),
            ("{\"a\":", json!({"INVALID_JSON": "{\"a\":"})),
            ("[1]", json!({"INVALID_JSON": "[1]"})),
        ] {
            let calls =
                json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]);
            let called =
                chat(json!({"role": "assistant", "content": null, "tool_calls": calls}), "tool_calls");
            assert_eq!(
                serde_json::to_value(&called.content).unwrap(),
                json!([{"type": "tool_use", "id": "c", "name": "f", "input": input}])
            );
            assert_eq!(called.stop_reason, Some(StopReason::ToolUse));
        }
        assert_eq!(chat(json!({"role": "assistant", "content": ""}), "stop").content, []);
    }
}
