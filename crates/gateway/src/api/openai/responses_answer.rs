//! A chat's answer as a response.

use cxmpute_wire::openai::{
    ChatChunk, ChatResponse, Delta, ErrorEnvelope, FinishReason, IncompleteDetails, InputDetails, OutputItem,
    OutputPart, ResponseEvent, ResponseFailure, ResponseObject, ResponseStatus, ResponseUsage, ToolCallDelta,
    Usage,
};

use crate::api::translation::{OpenCall, Translate, write_event};

/// A whole answer; `response` is the one that has not begun.
pub fn respond(mut response: ResponseObject, chat: ChatResponse) -> ResponseObject {
    response.model = chat.model;
    response.created_at = chat.created;
    response.usage = chat.usage.map(usage);
    let Some(choice) = chat.choices.into_iter().next() else { return response };
    finish(&mut response, choice.finish_reason);
    let tail = tail(&response.id);
    let mut output = Vec::new();
    if let Some(text) = choice.message.content.filter(|text| !text.is_empty()) {
        output.push(said(&tail, 0, text, ResponseStatus::Completed));
    }
    for call in choice.message.tool_calls.unwrap_or_default() {
        let (name, arguments) = (call.function.name, call.function.arguments);
        let call = OpenCall { index: output.len(), id: call.id, name, arguments, ..OpenCall::default() };
        output.push(called(&tail, &call, ResponseStatus::Completed));
    }
    if let Some(last) = output.last_mut() {
        // Where an answer was cut, its last item was.
        set_status(last, response.status);
    }
    response.output = output;
    response
}

/// Ends an answer as its chat ended.
fn finish(response: &mut ResponseObject, reason: Option<FinishReason>) {
    let cut = match reason {
        Some(FinishReason::Length) => Some("max_output_tokens"),
        Some(FinishReason::ContentFilter) => Some("content_filter"),
        _ => None,
    };
    response.status = if cut.is_some() { ResponseStatus::Incomplete } else { ResponseStatus::Completed };
    response.incomplete_details = cut.map(|reason| IncompleteDetails { reason: reason.to_owned() });
}

/// What ids of items share with the id of their answer.
fn tail(id: &str) -> String {
    id.strip_prefix("resp_").unwrap_or(id).to_owned()
}

fn said(tail: &str, index: usize, text: String, status: ResponseStatus) -> OutputItem {
    let content =
        if status == ResponseStatus::InProgress { Vec::new() } else { vec![OutputPart::text(text)] };
    OutputItem::Message { id: format!("msg_{tail}_{index}"), status, role: "assistant".to_owned(), content }
}

fn called(tail: &str, call: &OpenCall, status: ResponseStatus) -> OutputItem {
    OutputItem::FunctionCall {
        id: format!("fc_{tail}_{}", call.index),
        status,
        call_id: call.id.clone(),
        name: call.name.clone(),
        arguments: call.arguments.clone(),
    }
}

fn set_status(item: &mut OutputItem, to: ResponseStatus) {
    match item {
        OutputItem::Message { status, .. } | OutputItem::FunctionCall { status, .. } => *status = to,
    }
}

fn id_of(item: &OutputItem) -> String {
    match item {
        OutputItem::Message { id, .. } | OutputItem::FunctionCall { id, .. } => id.clone(),
    }
}

fn usage(usage: Usage) -> ResponseUsage {
    ResponseUsage {
        input_tokens: usage.prompt_tokens,
        input_tokens_details: InputDetails {
            cached_tokens: usage.prompt_tokens_details.unwrap_or_default().cached_tokens,
            cache_write_tokens: 0,
        },
        output_tokens: usage.completion_tokens,
        output_tokens_details: usage.completion_tokens_details.unwrap_or_default(),
        total_tokens: usage.total_tokens,
        cost: usage.cost,
        cost_details: usage.cost_details,
        source: usage.source,
        code: usage.code,
    }
}

/// A text while it is streamed.
struct OpenText {
    index: usize,
    text: String,
}

/// A stream of events. A text ends when a call begins. A call ends when the next begins and its arguments are whole; else
/// at the end of the answer, for the parts of several calls may be mixed.
pub struct ResponseStream {
    response: ResponseObject,
    tail: String,
    started: bool,
    /// Number of the next event.
    number: u64,
    text: Option<OpenText>,
    calls: Vec<OpenCall>,
    finish: Option<FinishReason>,
}

impl ResponseStream {
    /// A stream of the response that has not begun.
    pub fn new(response: ResponseObject) -> Self {
        Self {
            tail: tail(&response.id),
            response,
            started: false,
            number: 0,
            text: None,
            calls: Vec::new(),
            finish: None,
        }
    }

    fn write(&mut self, out: &mut Vec<u8>, event: impl FnOnce(u64) -> ResponseEvent) {
        let event = event(self.number);
        self.number += 1;
        write_event(out, event.name(), &event);
    }

    fn start(&mut self, out: &mut Vec<u8>) {
        if std::mem::replace(&mut self.started, true) {
            return;
        }
        let response = Box::new(self.response.clone());
        let again = response.clone();
        self.write(out, |sequence_number| ResponseEvent::Created { sequence_number, response });
        self.write(out, |sequence_number| ResponseEvent::InProgress { sequence_number, response: again });
    }

    /// Begins an item, which keeps its place in the output.
    fn begin(&mut self, item: OutputItem, out: &mut Vec<u8>) {
        let output_index = self.response.output.len();
        self.response.output.push(item.clone());
        self.write(out, |sequence_number| ResponseEvent::ItemAdded { sequence_number, output_index, item });
    }

    fn say(&mut self, delta: String, out: &mut Vec<u8>) {
        let index = match &mut self.text {
            Some(open) => {
                open.text.push_str(&delta);
                open.index
            }
            None => {
                let index = self.response.output.len();
                let item = said(&self.tail, index, String::new(), ResponseStatus::InProgress);
                let item_id = id_of(&item);
                self.begin(item, out);
                self.write(out, |sequence_number| ResponseEvent::PartAdded {
                    sequence_number,
                    item_id,
                    output_index: index,
                    content_index: 0,
                    part: OutputPart::text(""),
                });
                self.text = Some(OpenText { index, text: delta.clone() });
                index
            }
        };
        let item_id = id_of(&self.response.output[index]);
        self.write(out, |sequence_number| ResponseEvent::TextDelta {
            sequence_number,
            item_id,
            output_index: index,
            content_index: 0,
            delta,
            logprobs: Vec::new(),
        });
    }

    fn call(&mut self, part: ToolCallDelta, out: &mut Vec<u8>) {
        let (name, arguments) = part.function.map_or((None, None), |part| (part.name, part.arguments));
        if !self.calls.iter().any(|call| call.place == part.index) {
            self.close(None, out);
            let call = OpenCall {
                place: part.index,
                index: self.response.output.len(),
                id: part.id.unwrap_or_default(),
                name: name.unwrap_or_default(),
                ..OpenCall::default()
            };
            self.begin(called(&self.tail, &call, ResponseStatus::InProgress), out);
            self.calls.push(call);
        }
        let open = self.calls.iter_mut().find(|call| call.place == part.index && !call.closed);
        let (Some(call), Some(delta)) = (open, arguments.filter(|text| !text.is_empty())) else { return };
        call.arguments.push_str(&delta);
        let output_index = call.index;
        let item_id = id_of(&self.response.output[output_index]);
        self.write(out, |sequence_number| ResponseEvent::ArgumentsDelta {
            sequence_number,
            item_id,
            output_index,
            delta,
        });
    }

    /// Ends the items to which nothing can be added; at the end of the answer, all, and the last of them as the answer
    /// ended.
    fn close(&mut self, end: Option<ResponseStatus>, out: &mut Vec<u8>) {
        let last = self.response.output.len().saturating_sub(1);
        let status = |index: usize| match end {
            Some(end) if index == last => end,
            _ => ResponseStatus::Completed,
        };
        if let Some(OpenText { index, text }) = self.text.take() {
            self.end_text(index, text, status(index), out);
        }
        for at in 0..self.calls.len() {
            let call = &mut self.calls[at];
            if call.closed || (end.is_none() && !call.is_whole()) {
                continue;
            }
            call.closed = true;
            let output_index = call.index;
            let arguments = call.arguments.clone();
            let item = called(&self.tail, call, status(output_index));
            let item_id = id_of(&item);
            self.write(out, |sequence_number| ResponseEvent::ArgumentsDone {
                sequence_number,
                item_id,
                output_index,
                arguments,
            });
            self.end(output_index, item, out);
        }
    }

    fn end_text(&mut self, output_index: usize, text: String, status: ResponseStatus, out: &mut Vec<u8>) {
        let item = said(&self.tail, output_index, text.clone(), status);
        let (item_id, part) = (id_of(&item), OutputPart::text(text.clone()));
        let of_part = item_id.clone();
        self.write(out, |sequence_number| ResponseEvent::TextDone {
            sequence_number,
            item_id,
            output_index,
            content_index: 0,
            text,
            logprobs: Vec::new(),
        });
        self.write(out, |sequence_number| ResponseEvent::PartDone {
            sequence_number,
            item_id: of_part,
            output_index,
            content_index: 0,
            part,
        });
        self.end(output_index, item, out);
    }

    fn end(&mut self, output_index: usize, item: OutputItem, out: &mut Vec<u8>) {
        self.response.output[output_index] = item.clone();
        self.write(out, |sequence_number| ResponseEvent::ItemDone { sequence_number, output_index, item });
    }

    fn change(&mut self, delta: Delta, out: &mut Vec<u8>) {
        if let Some(text) = delta.content.filter(|text| !text.is_empty()) {
            self.say(text, out);
        }
        for part in delta.tool_calls.unwrap_or_default() {
            self.call(part, out);
        }
    }
}

impl Translate for ResponseStream {
    fn chunk(&mut self, chunk: ChatChunk, out: &mut Vec<u8>) {
        // Another model than the first may answer.
        self.response.model = chunk.model;
        self.response.created_at = chunk.created;
        self.start(out);
        if let Some(Some(counted)) = chunk.usage {
            self.response.usage = Some(usage(counted));
        }
        for choice in chunk.choices {
            self.change(choice.delta, out);
            if choice.finish_reason.is_some() {
                self.finish = choice.finish_reason;
                let mut ended = self.response.clone();
                finish(&mut ended, self.finish);
                self.close(Some(ended.status), out);
            }
        }
    }

    fn done(&mut self, out: &mut Vec<u8>) {
        self.start(out);
        finish(&mut self.response, self.finish);
        let status = self.response.status;
        self.close(Some(status), out);
        let response = Box::new(self.response.clone());
        self.write(out, |sequence_number| match status {
            ResponseStatus::Incomplete => ResponseEvent::Incomplete { sequence_number, response },
            _ => ResponseEvent::Completed { sequence_number, response },
        });
    }

    fn failed(&mut self, error: ErrorEnvelope, out: &mut Vec<u8>) {
        self.start(out);
        self.response.status = ResponseStatus::Failed;
        self.response.error = Some(ResponseFailure {
            code: "server_error".to_owned(),
            message: error.error.message,
            kind: error.error.code.unwrap_or_default(),
        });
        if let Some(OpenText { index, text }) = self.text.take() {
            self.response.output[index] = said(&self.tail, index, text, ResponseStatus::Incomplete);
        }
        for call in self.calls.iter().filter(|call| !call.closed) {
            self.response.output[call.index] = called(&self.tail, call, ResponseStatus::Incomplete);
        }
        let response = Box::new(self.response.clone());
        self.write(out, |sequence_number| ResponseEvent::Failed { sequence_number, response });
    }

    fn waiting(&mut self, out: &mut Vec<u8>) {
        // OpenAI has no event for it; a comment keeps the connection open.
        out.extend_from_slice(b": waiting\n\n");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::api::translation::tests::{call, change, end, error, translated};

    fn begun() -> ResponseObject {
        ResponseObject::begun("resp_1".into(), 0, "m".into())
    }

    async fn events(pieces: Vec<String>) -> Vec<Value> {
        let frames = translated(pieces, ResponseStream::new(begun())).await;
        let events: Vec<Value> = frames.into_iter().flatten().map(|(_, event)| event).collect();
        for (number, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], number);
        }
        events
    }

    fn names(events: &[Value]) -> Vec<&str> {
        events
            .iter()
            .map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap())
            .collect()
    }

    #[tokio::test]
    async fn a_text_is_streamed_piece_by_piece() {
        let start = vec![": waiting\n\n".into(), change(json!({"role": "assistant", "content": ""}))];
        let text = vec![change(json!({"content": "Hel"})), change(json!({"content": "lo"}))];
        let got = events([start, text, end("stop")].concat()).await;
        assert_eq!(
            names(&got),
            [
                "created",
                "in_progress",
                "output_item.added",
                "content_part.added",
                "output_text.delta",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done",
                "completed",
            ]
        );
        assert_eq!(
            got[2]["item"],
            json!({"type": "message", "id": "msg_1_0", "status": "in_progress", "role": "assistant", "content": []})
        );
        assert_eq!(got[6]["text"], "Hello");
        let whole = &got[9]["response"];
        let item = json!({"type": "message", "id": "msg_1_0", "status": "completed", "role": "assistant",
            "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]});
        assert_eq!(whole["output"], json!([item]));
        assert_eq!(
            (&got[8]["item"], &whole["status"], &whole["created_at"]),
            (&item, &json!("completed"), &json!(7))
        );
        assert_eq!(
            whole["usage"],
            json!({"input_tokens": 5, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
                "output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 8, "cost": "0.000011"})
        );
    }

    #[tokio::test]
    async fn calls_are_items_of_their_own_even_when_their_parts_are_mixed() {
        let parts = vec![
            change(json!({"content": "Look:"})),
            call(0, Some("f"), "{\"a\":"),
            call(1, Some("g"), "{}"),
            call(0, None, "1}"),
        ];
        let got = events([parts, end("tool_calls")].concat()).await;
        let output = &got.last().unwrap()["response"]["output"];
        assert_eq!(
            output[1],
            json!({"type": "function_call", "id": "fc_1_1", "status": "completed", "call_id": "call_0", "name": "f", "arguments": "{\"a\":1}"})
        );
        assert_eq!((&output[2]["call_id"], &output[2]["arguments"]), (&json!("call_1"), &json!("{}")));
        let done: Vec<&Value> =
            got.iter().filter(|event| event["type"] == "response.function_call_arguments.done").collect();
        assert_eq!((done.len(), &done[0]["arguments"]), (2, &json!("{\"a\":1}")));
        let first_call =
            names(&got).iter().position(|name| *name == "function_call_arguments.delta").unwrap();
        assert!(
            names(&got)[..first_call].contains(&"output_text.done"),
            "the text ends where the call begins"
        );
    }

    #[tokio::test]
    async fn a_cut_answer_is_incomplete_and_a_broken_one_failed() {
        let cut = events([vec![change(json!({"content": "Hel"}))], end("length")].concat()).await;
        let last = cut.last().unwrap();
        assert_eq!(last["type"], "response.incomplete");
        assert_eq!(last["response"]["incomplete_details"], json!({"reason": "max_output_tokens"}));
        assert_eq!(last["response"]["output"][0]["status"], "incomplete");
        let broken = events(vec![change(json!({"content": "Hel"})), error()]).await;
        let last = broken.last().unwrap();
        assert_eq!(
            (&last["type"], &last["response"]["status"]),
            (&json!("response.failed"), &json!("failed"))
        );
        assert_eq!(
            last["response"]["error"],
            json!({"code": "server_error", "message": "The node was lost.", "type": "provider_lost"})
        );
        assert_eq!(last["response"]["output"][0]["content"][0]["text"], "Hel");
        assert_eq!(names(&events(vec![error()]).await), ["created", "in_progress", "failed"]);
        let lost = events(vec![change(json!({"content": "Hel"}))]).await;
        assert_eq!(names(&lost).last(), Some(&"output_text.delta"));
    }

    #[test]
    fn whole_answers_have_items_and_a_status() {
        let chat = json!({"id": "resp_1", "object": "chat.completion", "created": 7, "model": "m",
            "choices": [{"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": "Hi",
                "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{\"a\""}}]}}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}});
        let got = serde_json::to_value(respond(begun(), serde_json::from_value(chat).unwrap())).unwrap();
        assert_eq!((&got["status"], &got["usage"]["total_tokens"]), (&json!("incomplete"), &json!(8)));
        assert_eq!(
            (&got["output"][0]["status"], &got["output"][0]["content"][0]["text"]),
            (&json!("completed"), &json!("Hi"))
        );
        assert_eq!(
            got["output"][1],
            json!({"type": "function_call", "id": "fc_1_1", "status": "incomplete", "call_id": "c", "name": "f", "arguments": "{\"a\""})
        );
    }
}
