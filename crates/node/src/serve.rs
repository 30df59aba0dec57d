//! Work: from the tunnel to an engine and back. The engine's headers never leave this machine; its bytes do, and the
//! gateway parses every one of them.

use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::{Clock, Tasks};
use cxmpute_tunnel::{WorkHead, WorkPath, WorkRequest, WorkResponder};
use cxmpute_wire::openai::{DrawRequest, ImageResponse, commands_engine, read_size};
use cxmpute_wire::{Code, form};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::engines::{EngineError, Question, Reply};
use crate::events::EventGate;
use crate::services::Services;
use crate::supervise::Place;

/// Largest request body that is taken.
const BODY_LIMIT_BYTES: usize = 24 * 1024 * 1024;
/// Most of an engine's refusal that is read.
const REFUSAL_LIMIT_BYTES: usize = 8 * 1024;
/// Time the engine gets to refuse before the node accepts for it; the gateway waits 2 s for either (NR17).
const REFUSAL_TIME: Duration = Duration::from_millis(1200);
/// Said of work that is given up because the owner takes the machine back.
const WITHDRAWN: &str = "the owner of this node needs the machine";
/// Longest sentence of an engine that is handed on.
const MESSAGE_LIMIT_CHARS: usize = 500;

/// Serves one piece of work to its end, or refuses it.
pub async fn serve(mut work: WorkRequest, services: Services, clock: Clock, tasks: Tasks) {
    let deadline = Instant::now() + work.head.deadline.duration();
    let decide_by = Instant::now() + REFUSAL_TIME;
    let place = match services.enter(&work.head.service, work.head.generation) {
        Ok(place) => place,
        Err(code) => return work.refuse(code, refusal_text(code)),
    };
    let body = match tokio::time::timeout_at(deadline, work.body(BODY_LIMIT_BYTES)).await {
        Ok(Ok(body)) => {
            services.count_transfer(body.len());
            body
        }
        Ok(Err(cxmpute_tunnel::BodyError::TooLarge)) => {
            return work.refuse(Code::BodyTooLarge, "the request is too large");
        }
        Ok(Err(cxmpute_tunnel::BodyError::Gone)) | Err(_) => return,
    };
    let planned = work.head.service.model().unwrap_or_default();
    let body = match place.adapter.renames(planned) {
        None => body,
        Some(model) => match renamed(&work.head, planned, &body, model) {
            Some(body) => body,
            None => return work.refuse(Code::InvalidJson, "the request is no JSON object"),
        },
    };
    let body = match work.head.path {
        WorkPath::Draw => match allowed_drawing(&body) {
            Ok(body) => body,
            Err(message) => return work.refuse(Code::InvalidParameter, message),
        },
        _ => body,
    };
    let path = work.head.path;
    let adapter = place.adapter.clone();
    let question = Question { path, request: work.head.request_id.clone(), body };
    let mut asking = std::pin::pin!(adapter.ask(question, &tasks));
    // Nothing is promised before the engine has had its say: what it refuses costs the user only a redirect.
    let early = tokio::select! {
        biased;
        () = place.withdrawn() => return work.refuse(Code::Draining, WITHDRAWN),
        answer = &mut asking => Some(answer),
        () = work.cancelled() => return,
        () = tokio::time::sleep_until(decide_by) => None,
    };
    let (answer, responder) = match early {
        Some(Ok(reply)) if reply.status().is_success() => {
            let Ok(responder) = work.accept() else { return };
            (Ok(reply), responder)
        }
        Some(Ok(reply)) => {
            let (code, message) = engine_refusal(reply).await;
            return work.refuse(code, &message);
        }
        Some(Err(error)) => {
            tracing::debug!(%error, service = %work.head.service, "the engine did not answer");
            if matches!(error, EngineError::Unreachable(_)) {
                place.unreachable();
                return work.refuse(Code::NotReady, "the engine cannot be reached");
            }
            let code = match error {
                EngineError::OtherWork(_) => Code::InvalidParameter,
                _ => Code::EngineFailed,
            };
            return work.refuse(code, broken_text(&error));
        }
        None => {
            let Ok(mut responder) = work.accept() else {
                return;
            };
            let answer = tokio::select! {
                biased;
                () = place.withdrawn() => return report(responder, path, Code::OwnerWithdrew, WITHDRAWN).await,
                answer = asking => answer,
                () = responder.cancelled() => return,
                () = tokio::time::sleep_until(deadline) => {
                    return report(responder, path, Code::DeadlineExceeded, "the engine was too slow").await;
                }
            };
            (answer, responder)
        }
    };
    match answer {
        Ok(reply) if reply.status().is_success() => {
            let relayed = relay(reply, responder, &services, &place, &clock, path, deadline);
            // A gateway that neither reads nor cancels does not hold a slot for ever.
            let _ = tokio::time::timeout_at(deadline + REFUSAL_TIME, relayed).await;
        }
        Ok(reply) => {
            let (code, message) = engine_refusal(reply).await;
            report(responder, path, code, &message).await;
        }
        Err(error) => report(responder, path, Code::EngineFailed, broken_text(&error)).await,
    }
}

/// Hands the engine's answer on until its end, the gateway's loss of interest, the byte limit or the deadline.
async fn relay(
    mut reply: Reply,
    mut responder: WorkResponder,
    services: &Services,
    place: &Place,
    clock: &Clock,
    path: WorkPath,
    deadline: Instant,
) {
    let limit = responder.head.max_bytes;
    let late = tokio::time::sleep_until(deadline);
    let mut late = std::pin::pin!(late);
    let mut gate = path.is_stream().then(EventGate::default);
    let mut sent = 0u64;
    loop {
        let chunk = tokio::select! {
            // First, because its engine is being ended: what that does to the answer is no fault of the node (NR48).
            biased;
            () = place.withdrawn() => {
                return give_up(responder, (path, sent), Code::OwnerWithdrew, WITHDRAWN).await;
            }
            chunk = reply.chunk() => chunk,
            // Dropping the reply hangs up on the engine, which stops generating.
            () = responder.cancelled() => return,
            () = &mut late => {
                return give_up(responder, (path, sent), Code::DeadlineExceeded, "the time for this request is over").await;
            }
        };
        let (bytes, ended) = match (chunk, &mut gate) {
            (Some(Err(error)), _) => {
                return give_up(responder, (path, sent), Code::EngineFailed, broken_text(&error)).await;
            }
            (Some(Ok(bytes)), None) => (bytes, false),
            (None, None) => (Bytes::new(), true),
            (Some(Ok(bytes)), Some(gate)) => match gate.push(bytes) {
                Ok(events) => (events, gate.is_done()),
                Err(_) => {
                    return give_up(responder, (path, sent), Code::EngineFailed, "the engine sent no events")
                        .await;
                }
            },
            (None, Some(gate)) => match gate.end() {
                Some(events) => (events, true),
                None => {
                    return give_up(responder, (path, sent), Code::EngineFailed, "the engine broke off")
                        .await;
                }
            },
        };
        services.count_transfer(bytes.len());
        let more = bytes.len() as u64;
        if sent.saturating_add(more) > limit {
            return give_up(responder, (path, sent), Code::EngineFailed, "the engine's answer is too long")
                .await;
        }
        if responder.send(bytes).await.is_err() {
            return;
        }
        sent += more;
        if ended {
            place.succeeded(clock);
            return responder.finish();
        }
    }
}

/// Ends an answer that will not be complete. Behind the first part of a body that is no stream of events there is no place for a
/// word: such a stream is reset, and nobody takes it for whole.
async fn give_up(responder: WorkResponder, (path, sent): (WorkPath, u64), code: Code, message: &str) {
    if sent == 0 || path.is_stream() {
        report(responder, path, code, message).await;
    }
}

/// An error after ACCEPT: one event of a stream, or the whole body.
async fn report(mut responder: WorkResponder, path: WorkPath, code: Code, message: &str) {
    let error = json!({"error": {"code": code, "message": message, "status": code.status()}});
    let text = if path.is_stream() { format!("data: {error}\n\n") } else { error.to_string() };
    if responder.send(Bytes::from(text)).await.is_ok() {
        responder.finish();
    }
}

/// What an engine's refusal means to the gateway. Only faults of the request itself are blamed on the request.
async fn engine_refusal(reply: Reply) -> (Code, String) {
    let status = reply.status().as_u16();
    let body = tokio::time::timeout(REFUSAL_TIME, reply.whole(REFUSAL_LIMIT_BYTES)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    let error: Value = serde_json::from_slice(&body).unwrap_or_default();
    let given = error["error"]["code"].as_str().and_then(|code| code.parse::<Code>().ok());
    let code = match status {
        400 | 413 | 422 => given.filter(|code| code.status() < 500).unwrap_or(Code::InvalidParameter),
        429 => Code::QueueFull,
        503 => Code::NotReady,
        _ => Code::EngineFailed,
    };
    let message = error["error"]["message"].as_str().unwrap_or("the engine refused the request");
    (code, message.chars().take(MESSAGE_LIMIT_CHARS).collect())
}

const fn broken_text(error: &EngineError) -> &'static str {
    match error {
        EngineError::Unreachable(_) => "the engine cannot be reached",
        EngineError::NotReady(_) => "the engine is not ready",
        EngineError::Broken(_) => "the engine broke off",
        EngineError::TooLong => "the engine's answer is too long",
        EngineError::OtherWork(_) => "the engine does other work",
    }
}

const fn refusal_text(code: Code) -> &'static str {
    match code {
        Code::CapacityFull => "all slots are taken",
        Code::Draining => "this node is leaving",
        Code::GenerationStale => "the work belongs to an older plan",
        _ => "the service is not ready on this node",
    }
}

/// The request under the engine's own name of the model.
fn renamed(head: &WorkHead, planned: &str, body: &[u8], model: &str) -> Option<Bytes> {
    match head.path {
        WorkPath::Transcription => form::with_model(&head.request_id, body, planned, model).map(Bytes::from),
        _ => with_model(body, model),
    }
}

/// What may reach an owner's server that draws: the fields of [`DrawRequest`] and no others, within bounds of our own,
/// whatever the gateway let through (NR40).
fn allowed_drawing(body: &[u8]) -> Result<Bytes, &'static str> {
    /// Pictures of one request, steps of each, and their longest side: no more than a gateway may ask for.
    const PICTURES: u64 = 4;
    const STEPS: u64 = 50;
    const SIDE: u32 = 2_048;
    let request: DrawRequest = serde_json::from_slice(body).map_err(|_| "the request is no drawing")?;
    let sides = read_size(&request.size).ok_or("the size is none")?;
    let bounded = (1..=PICTURES).contains(&request.n)
        && request.num_inference_steps.is_none_or(|steps| (1..=STEPS).contains(&steps))
        && [sides.0, sides.1].iter().all(|side| (1..=SIDE).contains(side))
        && request.response_format == ImageResponse::B64Json;
    if !bounded {
        return Err("the drawing is larger than any may be");
    }
    if commands_engine(&request.prompt) || request.negative_prompt.as_deref().is_some_and(commands_engine) {
        return Err("the prompt holds a command to the server");
    }
    serde_json::to_vec(&request).map(Bytes::from).map_err(|_| "the request cannot be written")
}

fn with_model(body: &[u8], model: &str) -> Option<Bytes> {
    let mut request: Value = serde_json::from_slice(body).ok()?;
    request.as_object_mut()?.insert("model".to_owned(), Value::String(model.to_owned()));
    serde_json::to_vec(&request).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drawing_reaches_a_server_by_its_own_fields_and_within_bounds() {
        let good = json!({"model": "m", "prompt": "a cat", "n": 1, "size": "512x512", "response_format": "b64_json"});
        let with = |name: &str, value: Value| {
            let mut body = good.clone();
            body[name] = value;
            allowed_drawing(body.to_string().as_bytes())
        };
        let passed = with("lora_path", json!("/etc/passwd")).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&passed).unwrap(), good);
        for (name, value) in [
            ("n", json!(0)),
            ("n", json!(5)),
            ("num_inference_steps", json!(51)),
            ("size", json!("4096x64")),
            ("size", json!("auto")),
            ("response_format", json!("url")),
            ("prompt", json!("a cat <lora:x:1>")),
            ("negative_prompt", json!("<sd_cpp_extra_args>{}")),
        ] {
            assert!(with(name, value.clone()).is_err(), "{name} {value}");
        }
        assert!(allowed_drawing(b"[]").is_err());
    }

    #[test]
    fn only_the_model_name_of_a_request_changes() {
        let body = with_model(br#"{"messages":[],"model":"a","seed":18446744073709551615}"#, "b:c").unwrap();
        assert_eq!(&body[..], br#"{"messages":[],"model":"b:c","seed":18446744073709551615}"#);
        assert!(with_model(b"[]", "b").is_none() && with_model(b"{", "b").is_none());
    }
}
