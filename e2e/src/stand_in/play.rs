//! How a stand-in plays one piece of work.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_tunnel::{NodeHandle, WorkRequest, WorkResponder};
use cxmpute_wire::{Code, Epoch, RequestId};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::voice::{Voice, event};
use super::{Mood, Note, Stage, errand, script};

/// Largest request a stand-in reads.
const BODY_LIMIT: usize = 32 << 20;

/// Tokens of the prompt that a stand-in claims: far too many, so that a gateway that believes it is noticed.
const CLAIMED_PROMPT: u64 = 1_000_000;

/// What the prompt asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Say(u64),
    Hold(u64),
    Endless,
    /// A script that was learnt.
    Play(String),
    /// So many tokens with a pause of so many milliseconds before each.
    Pace(u64, u64),
    /// The gateway checks the service: answered truthfully, whatever the mood, and not noted.
    Check,
}

impl Part {
    fn read(prompt: &str) -> Self {
        let mut words = prompt.split_whitespace();
        let (verb, object) = (words.next(), words.next().unwrap_or_default());
        match (verb, object.parse()) {
            (Some("say"), Ok(count)) => Self::Say(count),
            (Some("hold"), Ok(count)) => Self::Hold(count),
            (Some("endless"), Err(_)) => Self::Endless,
            (Some("pace"), Ok(count)) => {
                Self::Pace(count, words.next().and_then(|pause| pause.parse().ok()).unwrap_or(0))
            }
            (Some("play"), Err(_)) => Self::Play(object.to_owned()),
            _ => Self::Check,
        }
    }
}

/// Plays one piece of work.
pub(super) async fn perform(mut request: WorkRequest, tunnel: NodeHandle, stage: Arc<Stage>) {
    let Ok(body) = request.body(BODY_LIMIT).await else { return };
    let path = request.head.path;
    let (asked, part, voice) = match errand::read(&request.head, &body) {
        Some(task) => {
            let part = if task.is_check {
                Part::Check
            } else if stage.state.lock().scripts.contains_key(path.as_str()) {
                Part::Play(path.as_str().to_owned())
            } else {
                Part::Say(0)
            };
            (task.asked, part, Voice::of(path, task.answer))
        }
        None => {
            let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
            let (part, voice) = (Part::read(prompt(&asked)), Voice::new(path, &asked));
            (asked, part, voice)
        }
    };
    let limit = request.head.max_tokens;
    if part == Part::Check {
        if stage.state.lock().mood == Mood::Shy {
            stage.state.lock().checks_failed += 1;
            return request.refuse(Code::EngineFailed, "this stand-in fails checks");
        }
        if let Ok(mut responder) = request.accept() {
            let _ = say(&mut responder, &voice, 3.min(limit), 0, limit, |_| {}).await;
            responder.finish();
        }
        return;
    }
    let (note, mood, script) = {
        let mut state = stage.state.lock();
        let refused = asked["model"].as_str().is_some_and(|model| state.refused.contains(model));
        state.notes.push(Note {
            request_id: request.head.request_id.to_string(),
            attempt: request.head.attempt,
            asked: Arc::new(asked),
            sent: 0,
            last_sent: None,
            accepted: None,
            cancelled: None,
            finished: None,
        });
        let script = match &part {
            Part::Play(name) => Some(state.scripts.get(name).cloned().unwrap_or_default()),
            _ => None,
        };
        (state.notes.len() - 1, if refused { Mood::Rejecting } else { state.mood }, script)
    };
    let write = |change: &dyn Fn(&mut Note)| change(&mut stage.state.lock().notes[note]);
    let sent = |count: u64| {
        let mut state = stage.state.lock();
        state.notes[note].sent = count;
        state.notes[note].last_sent = Some(Instant::now());
    };
    match mood {
        Mood::Rejecting => return request.refuse(Code::EngineFailed, "this stand-in rejects"),
        Mood::Blackhole => {
            request.cancelled().await;
            return write(&|note| note.cancelled = Some(Instant::now()));
        }
        Mood::Refusing => return request.refuse(Code::CapacityFull, "this stand-in refuses"),
        Mood::Impersonating => {
            request.head.request_id = RequestId::from_tail("00000000000000000000000000000000")
        }
        Mood::Outdated => request.head.epoch = Epoch(request.head.epoch.0 - 1),
        Mood::Willing
        | Mood::Losing { .. }
        | Mood::Failing
        | Mood::Resetting { .. }
        | Mood::Late { .. }
        | Mood::Withdrawing { .. }
        | Mood::Shy => {}
    }
    let headers = script.as_ref().map(|script| script.headers.clone()).unwrap_or_default();
    let accepted = request.accept_with(headers);
    write(&|note| note.accepted = Some(Instant::now()));
    let Ok(mut responder) = accepted else {
        return write(&|note| note.cancelled = Some(Instant::now()));
    };
    let ended = match (mood, part) {
        _ if script.is_some() => {
            let steps = script.map(|script| script.steps).unwrap_or_default();
            script::perform(&mut responder, &steps, &stage.go_on, &sent).await
        }
        (Mood::Failing, _) => {
            let error =
                json!({"error": {"code": "engine_failed", "message": "this stand-in fails", "status": 500}});
            let _ = responder.send(event(&error)).await;
            Ok(())
        }
        (Mood::Withdrawing { after }, _) => {
            let _ = tokens(&mut responder, &voice, after.min(limit), &sent).await;
            let error = json!({"error": {"code": Code::OwnerWithdrew, "message": "the owner needs it", "status": 503}});
            let told = if voice.whole.is_some() { error.to_string().into() } else { event(&error) };
            let _ = responder.send(told).await;
            Ok(())
        }
        (Mood::Losing { after }, _) => {
            let _ = tokens(&mut responder, &voice, after.min(limit), &sent).await;
            if after > 0 {
                stage.lose.notified().await;
            }
            tunnel.close(Code::Draining);
            return;
        }
        (Mood::Resetting { after }, _) => {
            // Dropped without an end, the stream is reset.
            let _ = tokens(&mut responder, &voice, after.min(limit), &sent).await;
            return;
        }
        (Mood::Late { by }, _) => {
            tokio::select! {
                () = responder.cancelled() => Err(()),
                () = tokio::time::sleep(by) => say(&mut responder, &voice, 1, CLAIMED_PROMPT, limit, &sent).await,
            }
        }
        (_, Part::Pace(count, pause)) => {
            paced(&mut responder, &voice, count.min(limit), Duration::from_millis(pause), limit, &sent).await
        }
        (_, Part::Say(count)) => {
            say(&mut responder, &voice, count.min(limit), CLAIMED_PROMPT, limit, &sent).await
        }
        (_, Part::Hold(count)) => match tokens(&mut responder, &voice, count.min(limit), &sent).await {
            Ok(()) => {
                responder.cancelled().await;
                Err(())
            }
            Err(()) => Err(()),
        },
        (_, Part::Endless) => tokens(&mut responder, &voice, limit, &sent).await,
        (_, Part::Check | Part::Play(_)) => Ok(()),
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
    voice: &Voice,
    count: u64,
    prompt_tokens: u64,
    limit: u64,
    sent: impl Fn(u64),
) -> Result<(), ()> {
    if let Some(whole) = &voice.whole {
        return send(responder, whole.clone()).await;
    }
    tokens(responder, voice, count, sent).await?;
    end(responder, voice, count, prompt_tokens, limit).await
}

/// The end of an answer of `count` tokens.
async fn end(
    responder: &mut WorkResponder,
    voice: &Voice,
    count: u64,
    prompt_tokens: u64,
    limit: u64,
) -> Result<(), ()> {
    let reason = if count >= limit { "length" } else { "stop" };
    for choice in 0..voice.choices {
        send(responder, event(&voice.finish(choice, reason))).await?;
    }
    if prompt_tokens > 0 {
        send(responder, event(&voice.usage(prompt_tokens, count))).await?;
    }
    send(responder, Bytes::from_static(b"data: [DONE]\n\n")).await
}

async fn paced(
    responder: &mut WorkResponder,
    voice: &Voice,
    count: u64,
    pause: Duration,
    limit: u64,
    sent: impl Fn(u64),
) -> Result<(), ()> {
    for number in 0..count {
        tokio::select! {
            () = responder.cancelled() => return Err(()),
            () = tokio::time::sleep(pause) => {}
        }
        send(responder, event(&voice.token(number))).await?;
        sent(number + 1);
    }
    end(responder, voice, count, CLAIMED_PROMPT, limit).await
}

async fn tokens(
    responder: &mut WorkResponder,
    voice: &Voice,
    count: u64,
    sent: impl Fn(u64),
) -> Result<(), ()> {
    if voice.whole.is_some() {
        return Ok(());
    }
    for number in 0..count {
        send(responder, event(&voice.token(number))).await?;
        sent(number + 1);
    }
    Ok(())
}

/// Sends bytes; a cancel that comes while the gateway does not read ends it.
async fn send(responder: &mut WorkResponder, bytes: Bytes) -> Result<(), ()> {
    responder.send(bytes).await.map_err(|_| ())
}

/// The text that names the part: the last message, the first prompt or the first input.
fn prompt(asked: &Value) -> &str {
    let last = asked["messages"].as_array().and_then(|messages| messages.last());
    let first = |field: &str| -> Option<&str> {
        let value = asked.get(field)?;
        value.as_str().or_else(|| value.get(0)?.as_str())
    };
    last.and_then(|message| message["content"].as_str())
        .or_else(|| first("prompt"))
        .or_else(|| first("input"))
        .unwrap_or_default()
}
