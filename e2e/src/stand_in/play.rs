//! How a stand-in plays one piece of work.

use std::sync::Arc;

use bytes::Bytes;
use cxmpute_tunnel::{NodeHandle, WorkRequest, WorkResponder};
use cxmpute_wire::{Code, Epoch, RequestId};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Mood, Note, Stage};

/// Largest request a stand-in reads.
const BODY_LIMIT: usize = 8 << 20;

/// What the prompt asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Script {
    Say(u64),
    Hold(u64),
    Endless,
    /// The gateway checks the service: answered truthfully, whatever the mood, and not noted.
    Check,
}

impl Script {
    fn read(prompt: &str) -> Self {
        let mut words = prompt.split_whitespace();
        match (words.next(), words.next().and_then(|count| count.parse().ok())) {
            (Some("say"), Some(count)) => Self::Say(count),
            (Some("hold"), Some(count)) => Self::Hold(count),
            (Some("endless"), None) => Self::Endless,
            _ => Self::Check,
        }
    }
}

/// The text of token number `n`: a word the tiny model's tokenizer knows, so that events and tokens go together.
pub(super) fn word(n: u64) -> &'static str {
    if n == 0 { "The" } else { " the" }
}

/// Plays one piece of work.
pub(super) async fn perform(mut request: WorkRequest, tunnel: NodeHandle, stage: Arc<Stage>) {
    let Ok(body) = request.body(BODY_LIMIT).await else { return };
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let script = Script::read(prompt(&asked));
    let limit = request.head.max_tokens;
    if script == Script::Check {
        if let Ok(mut responder) = request.accept() {
            let _ = say(&mut responder, 3.min(limit), 0, limit, |_| {}).await;
            responder.finish();
        }
        return;
    }
    let (note, mood) = {
        let mut state = stage.state.lock();
        state.notes.push(Note {
            request_id: request.head.request_id.to_string(),
            attempt: request.head.attempt,
            sent: 0,
            last_sent: None,
            accepted: None,
            cancelled: None,
            finished: None,
        });
        (state.notes.len() - 1, state.mood)
    };
    match mood {
        Mood::Refusing => return request.refuse(Code::CapacityFull, "this stand-in refuses"),
        Mood::Impersonating => {
            request.head.request_id = RequestId::from_tail("00000000000000000000000000000000")
        }
        Mood::Outdated => request.head.epoch = Epoch(request.head.epoch.0 - 1),
        Mood::Willing | Mood::Losing { .. } | Mood::Failing => {}
    }
    let Ok(mut responder) = request.accept() else { return };
    let write = |change: &dyn Fn(&mut Note)| change(&mut stage.state.lock().notes[note]);
    write(&|note| note.accepted = Some(Instant::now()));
    let sent = |count: u64| {
        let mut state = stage.state.lock();
        state.notes[note].sent = count;
        state.notes[note].last_sent = Some(Instant::now());
    };
    let ended = match (mood, script) {
        (Mood::Failing, _) => {
            let error =
                json!({"error": {"code": "engine_failed", "message": "this stand-in fails", "status": 500}});
            let _ = responder.send(event(&error)).await;
            Ok(())
        }
        (Mood::Losing { after }, _) => {
            let _ = tokens(&mut responder, after.min(limit), &sent).await;
            if after > 0 {
                stage.lose.notified().await;
            }
            tunnel.close(Code::Draining);
            return;
        }
        (_, Script::Say(count)) => say(&mut responder, count.min(limit), 1, limit, &sent).await,
        (_, Script::Hold(count)) => match tokens(&mut responder, count.min(limit), &sent).await {
            Ok(()) => {
                responder.cancelled().await;
                Err(())
            }
            Err(()) => Err(()),
        },
        (_, Script::Endless) => tokens(&mut responder, limit, &sent).await,
        (_, Script::Check) => Ok(()),
    };
    let now = Some(Instant::now());
    if ended.is_ok() {
        responder.finish();
        write(&|note| note.finished = now);
    } else {
        write(&|note| note.cancelled = now);
    }
}

async fn say(
    responder: &mut WorkResponder,
    count: u64,
    prompt_tokens: u64,
    limit: u64,
    sent: impl Fn(u64),
) -> Result<(), ()> {
    tokens(responder, count, sent).await?;
    let reason = if count >= limit { "length" } else { "stop" };
    send(responder, &chunk(json!([{"index": 0, "delta": {}, "finish_reason": reason}]))).await?;
    if prompt_tokens == 0 {
        return responder.send(Bytes::from_static(b"data: [DONE]\n\n")).await.map_err(|_| ());
    }
    let mut usage = chunk(json!([]));
    usage["usage"] = json!({"prompt_tokens": prompt_tokens.max(1_000_000), "completion_tokens": count, "total_tokens": prompt_tokens.max(1_000_000) + count});
    send(responder, &usage).await?;
    responder.send(Bytes::from_static(b"data: [DONE]\n\n")).await.map_err(|_| ())
}

async fn tokens(responder: &mut WorkResponder, count: u64, sent: impl Fn(u64)) -> Result<(), ()> {
    for number in 0..count {
        let delta = if number == 0 {
            json!({"role": "assistant", "content": word(number)})
        } else {
            json!({"content": word(number)})
        };
        send(responder, &chunk(json!([{"index": 0, "delta": delta, "finish_reason": null}]))).await?;
        sent(number + 1);
    }
    Ok(())
}

/// Sends one event; a cancel that comes while the gateway does not read ends it.
async fn send(responder: &mut WorkResponder, value: &Value) -> Result<(), ()> {
    responder.send(event(value)).await.map_err(|_| ())
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

fn chunk(choices: Value) -> Value {
    json!({"id": "chatcmpl-stand-in", "object": "chat.completion.chunk", "created": 0, "model": "stand-in", "choices": choices})
}

fn prompt(asked: &Value) -> &str {
    let last = asked["messages"].as_array().and_then(|messages| messages.last());
    last.and_then(|message| message["content"].as_str())
        .or_else(|| asked["prompt"].as_str())
        .unwrap_or_default()
}
