//! Routes that speak another API's words over the relay of chats: what they ask becomes a chat, and the chat's answer is
//! written in their words. Whole answers are read and printed again; of a stream, each chunk is translated in the moment
//! in which the connection takes it, so that what counts as handed out is what the client got, and a client that leaves
//! drops the chat's body with ours.

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, to_bytes};
use axum::response::Response;
use bytes::Bytes;
use cxmpute_wire::openai::{ChatChunk, ChatResponse, ErrorEnvelope};
use http::HeaderMap;
use http_body::Frame;
use serde::Serialize;

use crate::error::{ApiError, ApiResult};
use crate::limits;
use crate::one_line::write_json;
use crate::relay::events::{EventCutter, EventFault};

/// Writes the stream of a chat in another API's words.
pub trait Translate: Send + Unpin + 'static {
    /// A part of the answer, or its usage.
    fn chunk(&mut self, chunk: ChatChunk, out: &mut Vec<u8>);
    /// The answer is whole and settled.
    fn done(&mut self, out: &mut Vec<u8>);
    /// The stream broke; nothing follows.
    fn failed(&mut self, error: ErrorEnvelope, out: &mut Vec<u8>);
    /// Nothing happened for a while.
    fn waiting(&mut self, out: &mut Vec<u8>);
}

/// Writes one event with its name.
pub fn write_event(out: &mut Vec<u8>, name: &str, event: &impl Serialize) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    write_json(out, event);
    out.extend_from_slice(b"\n\n");
}

/// The answer's id, as the head of every answer to work names it.
pub fn answer_id(headers: &HeaderMap) -> String {
    headers.get("x-generation-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned()
}

/// The same answer with its stream in other words.
pub fn stream(response: Response, translate: impl Translate) -> Response {
    response.map(|chat| {
        Body::new(Translated {
            chat,
            cutter: EventCutter::new(limits::TRANSLATED_EVENT),
            translate,
            inside: false,
            broken: false,
        })
    })
}

/// The same answer with its body in other words.
///
/// # Errors
/// The body is no chat, which its writer rules out.
pub async fn whole<T: Serialize>(
    response: Response,
    print: impl FnOnce(ChatResponse) -> T,
) -> ApiResult<Response> {
    let (head, body) = response.into_parts();
    let bytes = to_bytes(body, usize::MAX).await.map_err(ApiError::internal)?;
    let chat = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
    let printed = serde_json::to_vec(&print(chat)).map_err(ApiError::internal)?;
    Ok(Response::from_parts(head, Body::from(printed)))
}

struct Translated<T> {
    chat: Body,
    cutter: EventCutter,
    translate: T,
    /// Whether the last piece ended inside an event.
    inside: bool,
    broken: bool,
}

impl<T: Translate> Translated<T> {
    /// What a piece of the chat's stream is in other words; nothing where it says nothing that they have a word for.
    fn translate(&mut self, bytes: &Bytes) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        // The relay sends its comments as pieces of their own.
        if bytes.starts_with(b":") && !self.inside {
            self.translate.waiting(&mut out);
            return out;
        }
        self.inside = !bytes.ends_with(b"\n\n");
        let translate = &mut self.translate;
        let read = self.cutter.push(bytes, |data| {
            if data == "[DONE]" {
                translate.done(&mut out);
            } else if let Ok(chunk) = serde_json::from_str(data) {
                translate.chunk(chunk, &mut out);
            } else {
                let error = serde_json::from_str(data).map_err(|_| EventFault::Shape)?;
                translate.failed(error, &mut out);
            }
            Ok(())
        });
        if let Err(fault) = read {
            // The relay writes what is read here; this is for a fault of ours.
            self.broken = true;
            translate.failed(ApiError::internal(fault).envelope(None), &mut out);
        }
        out
    }
}

impl<T: Translate> http_body::Body for Translated<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let body = self.get_mut();
        while !body.broken {
            match Pin::new(&mut body.chat).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let Ok(bytes) = frame.into_data() else { continue };
                    let out = body.translate(&bytes);
                    if !out.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(out.into()))));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(None),
                other => return other,
            }
        }
        Poll::Ready(None)
    }
}

/// What a chat calls the fields of a request that came in other words.
pub struct Names {
    /// Where each message of the chat came from, such as `input[2]`.
    pub messages: Vec<String>,
    /// The field that holds the messages.
    pub list: &'static str,
    /// Fields of the chat and of the request; what stands below them keeps its name.
    pub fields: &'static [(&'static str, &'static str)],
    /// Parts of the names of a tool's fields, in the chat and in the request.
    pub tools: &'static [(&'static str, &'static str)],
}

impl Names {
    /// A refusal of the chat, in the words of the request.
    pub fn refuse(&self, mut error: ApiError) -> ApiError {
        let Some(param) = error.param.take() else { return error };
        let named = if param == "messages" {
            self.list.to_owned()
        } else if let Some(rest) = param.strip_prefix("messages[") {
            let place = rest.split(']').next().and_then(|place| place.parse::<usize>().ok());
            place.and_then(|place| self.messages.get(place)).map_or(self.list, String::as_str).to_owned()
        } else if param.starts_with("tools[") {
            self.tools.iter().fold(param, |param, (chat, ours)| param.replace(chat, ours))
        } else {
            let below = |field: &str| {
                param.strip_prefix(field).filter(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            match self.fields.iter().find_map(|(chat, ours)| Some((*chat, *ours, below(chat)?))) {
                Some((chat, ours, rest)) => {
                    error.message = error.message.replace(chat, ours).into();
                    format!("{ours}{rest}")
                }
                None => param,
            }
        };
        error.param = Some(named);
        error
    }
}

/// One call of an answer while it is streamed.
#[derive(Debug, Default)]
pub struct OpenCall {
    /// Its place among the calls of the chat.
    pub place: u64,
    /// Its place in the translated answer.
    pub index: usize,
    /// Its name.
    pub id: String,
    /// The function.
    pub name: String,
    /// Its arguments so far.
    pub arguments: String,
    /// Whether its end has been written.
    pub closed: bool,
}

impl OpenCall {
    /// Whether its arguments are JSON to the end, so that nothing can follow that means anything.
    pub fn is_whole(&self) -> bool {
        serde_json::from_str::<serde::de::IgnoredAny>(&self.arguments).is_ok()
    }
}

#[cfg(test)]
pub mod tests {
    use futures_util::stream as streams;
    use http_body_util::BodyExt as _;
    use serde_json::{Value, json};

    use super::*;

    /// A chunk of a chat, as text of an event.
    pub fn chunk(choices: Value, usage: Value) -> String {
        let chunk = json!({"id": "x_1", "object": "chat.completion.chunk", "created": 7, "model": "m",
            "choices": choices, "usage": usage, "system_fingerprint": null});
        format!("data: {chunk}\n\n")
    }

    /// A change of the only choice.
    pub fn change(delta: Value) -> String {
        chunk(json!([{"index": 0, "delta": delta, "finish_reason": null, "logprobs": null}]), Value::Null)
    }

    /// Part of a call.
    pub fn call(place: u64, name: Option<&str>, arguments: &str) -> String {
        let id = name.map(|_| format!("call_{place}"));
        change(json!({"tool_calls": [{"index": place, "id": id, "type": "function",
            "function": {"name": name, "arguments": arguments}}]}))
    }

    /// The end of the choice, usage and `[DONE]`.
    pub fn end(reason: &str) -> Vec<String> {
        let usage =
            json!({"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "cost": "0.000011"});
        vec![
            chunk(json!([{"index": 0, "delta": {}, "finish_reason": reason, "logprobs": null}]), Value::Null),
            chunk(json!([]), usage),
            "data: [DONE]\n\n".to_owned(),
        ]
    }

    /// An error event.
    pub fn error() -> String {
        let error = ApiError::new(cxmpute_wire::Code::ProviderLost, "The node was lost.");
        format!("data: {}\n\n", serde_json::to_string(&error.envelope(None)).unwrap())
    }

    /// What becomes of a stream that arrives in these pieces: each frame's events, named and read.
    pub async fn translated(pieces: Vec<String>, translate: impl Translate) -> Vec<Vec<(String, Value)>> {
        let pieces = pieces.into_iter().map(|piece| Ok::<_, std::io::Error>(Bytes::from(piece)));
        let mut body = stream(Response::new(Body::from_stream(streams::iter(pieces))), translate).into_body();
        let mut frames = Vec::new();
        while let Some(frame) = body.frame().await {
            let bytes = frame.unwrap().into_data().unwrap();
            let text = std::str::from_utf8(&bytes).unwrap();
            assert!(text.ends_with("\n\n"), "{text:?}");
            let events = text.split_terminator("\n\n").filter(|event| !event.starts_with(':')).map(|event| {
                let (name, data) = event.split_once('\n').unwrap();
                let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
                let name = name.strip_prefix("event: ").unwrap();
                assert_eq!(data["type"], name);
                (name.to_owned(), data)
            });
            frames.push(events.collect());
        }
        frames
    }

    #[derive(Default)]
    struct Counting(usize);

    impl Translate for Counting {
        fn chunk(&mut self, _: ChatChunk, out: &mut Vec<u8>) {
            self.0 += 1;
            write_event(out, "chunk", &json!({"type": "chunk", "n": self.0}));
        }
        fn done(&mut self, out: &mut Vec<u8>) {
            write_event(out, "done", &json!({"type": "done"}));
        }
        fn failed(&mut self, _: ErrorEnvelope, out: &mut Vec<u8>) {
            write_event(out, "failed", &json!({"type": "failed"}));
        }
        fn waiting(&mut self, _: &mut Vec<u8>) {}
    }

    #[tokio::test]
    async fn events_are_read_wherever_the_pieces_are_cut() {
        let whole =
            [change(json!({"content": "a\u{e9}"})), change(json!({"content": "b"})), end("stop").concat()]
                .concat();
        let counted = |frames: Vec<Vec<(String, Value)>>| -> Vec<String> {
            frames.into_iter().flatten().map(|(name, _)| name).collect()
        };
        let wanted = counted(translated(vec![whole.clone()], Counting::default()).await);
        assert_eq!(wanted, ["chunk", "chunk", "chunk", "chunk", "done"]);
        for cut in (1..whole.len()).filter(|cut| whole.is_char_boundary(*cut)) {
            let pieces = vec![whole[..cut].to_owned(), whole[cut..].to_owned()];
            assert_eq!(counted(translated(pieces, Counting::default()).await), wanted, "{cut}");
        }
        let broken = vec!["data: {}\n\n".to_owned(), change(json!({}))];
        assert_eq!(counted(translated(broken, Counting::default()).await), ["failed"]);
    }

    #[test]
    fn an_event_is_one_line_for_every_client() {
        let said = "a\u{2028}b\u{2029}c\u{85}d";
        let mut out = Vec::new();
        write_event(&mut out, "said", &json!({"text": said}));
        let text = std::str::from_utf8(&out).unwrap();
        let line = text.strip_prefix("event: said\ndata: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!line.contains(['\n', '\u{2028}', '\u{2029}', '\u{85}']), "{line}");
        assert_eq!(serde_json::from_str::<Value>(line).unwrap()["text"], said);
    }

    #[tokio::test]
    async fn a_piece_is_translated_when_it_is_taken_and_leaving_drops_the_chat() {
        let (sender, receiver) = tokio::sync::mpsc::channel::<Result<Bytes, std::io::Error>>(1);
        let chat = streams::unfold(receiver, async |mut receiver| {
            receiver.recv().await.map(|next| (next, receiver))
        });
        let mut body = stream(Response::new(Body::from_stream(chat)), Counting::default()).into_body();
        sender.send(Ok(change(json!({})).into())).await.unwrap();
        assert!(body.frame().await.unwrap().unwrap().into_data().unwrap().starts_with(b"event: chunk\n"));
        drop(body);
        assert!(sender.is_closed());
    }

    #[test]
    fn refusals_name_the_fields_that_were_sent() {
        let names = Names {
            messages: vec!["instructions".into(), "input[0]".into()],
            list: "input",
            fields: &[("response_format.json_schema", "text.format"), ("response_format", "text.format")],
            tools: &[(".function.", ".")],
        };
        for (chat, ours) in [
            ("messages", "input"),
            ("messages[1].content[2].image_url", "input[0]"),
            ("messages[9]", "input"),
            ("response_format.json_schema.name", "text.format.name"),
            ("response_format", "text.format"),
            ("tools[3].function.name", "tools[3].name"),
            ("temperature", "temperature"),
        ] {
            let refused = names.refuse(ApiError::invalid_parameter(chat, format!("{chat} is wrong.")));
            assert_eq!(refused.param.as_deref(), Some(ours));
        }
    }
}
