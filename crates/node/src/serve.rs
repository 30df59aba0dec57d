//! Work: from the tunnel to an engine and back. The engine's headers never leave this machine; its bytes do, and the
//! gateway parses every one of them.

use std::sync::Arc;

use bytes::Bytes;
use cxmpute_runtime::Tasks;
use cxmpute_tunnel::{WorkPath, WorkRequest, WorkResponder};
use cxmpute_wire::Code;
use serde_json::Value;

use crate::agent::Running;
use crate::engines::{EngineError, Reply};
use crate::supervise::Place;

/// Largest request body that is taken.
const BODY_LIMIT_BYTES: usize = 24 * 1024 * 1024;
/// Most of an engine's error that is read.
const ERROR_LIMIT_BYTES: usize = 8 * 1024;

/// Serves one piece of work to its end, or refuses it.
pub async fn serve(mut work: WorkRequest, running: Arc<Running>, tasks: Tasks) {
    let place = match running.enter(&work.head.service) {
        Ok(place) => place,
        Err(code) => return work.refuse(code, refusal_text(code)),
    };
    if running.is_draining() {
        return work.refuse(Code::Draining, refusal_text(Code::Draining));
    }
    let body = match work.body(BODY_LIMIT_BYTES).await {
        Ok(body) => body,
        Err(cxmpute_tunnel::BodyError::TooLarge) => {
            return work.refuse(Code::BodyTooLarge, "the request is too large");
        }
        Err(cxmpute_tunnel::BodyError::Gone) => return,
    };
    let Some(body) = with_model(&body, &place.model) else {
        return work.refuse(Code::InvalidJson, "the request is no JSON object");
    };
    // The connection comes before the promise: an engine that just died costs the user nothing but a redirect.
    let link = match place.endpoint.connect(&tasks).await {
        Ok(link) => link,
        Err(error) => {
            tracing::debug!(%error, service = %work.head.service, "engine not reachable");
            return work.refuse(Code::NotReady, "the engine cannot be reached");
        }
    };
    let deadline = work.head.deadline.duration();
    let path = work.head.path;
    let limit = usize::try_from(work.head.max_bytes).unwrap_or(usize::MAX);
    let Ok(mut responder) = work.accept() else { return };
    let answer = tokio::select! {
        reply = link.post(path.as_str(), body) => reply,
        () = responder.cancelled() => return,
        () = tokio::time::sleep(deadline) => return report(responder, path, Code::DeadlineExceeded, "the engine was too slow", 504).await,
    };
    match answer {
        Ok(reply) if reply.status.is_success() => {
            relay(reply, responder, &place, limit, path, deadline).await
        }
        Ok(reply) => {
            let status = reply.status.as_u16();
            let (code, message) = engine_error(reply, status).await;
            report(responder, path, code, &message, status).await;
        }
        Err(error) => report(responder, path, Code::EngineFailed, broken_text(&error), 502).await,
    }
}

/// Hands the engine's bytes on until its end, the gateway's loss of interest, the byte limit or the deadline.
async fn relay(
    mut reply: Reply,
    mut responder: WorkResponder,
    place: &Place,
    limit: usize,
    path: WorkPath,
    deadline: std::time::Duration,
) {
    let mut sent = 0usize;
    let late = tokio::time::sleep(deadline);
    let mut late = std::pin::pin!(late);
    loop {
        let chunk = tokio::select! {
            chunk = reply.chunk() => chunk,
            // Dropping the reply hangs up on the engine, which stops generating.
            () = responder.cancelled() => return,
            () = &mut late => {
                return report(responder, path, Code::DeadlineExceeded, "the time for this request is over", 504).await;
            }
        };
        match chunk {
            Some(Ok(bytes)) => {
                sent = sent.saturating_add(bytes.len());
                if sent > limit {
                    return report(
                        responder,
                        path,
                        Code::EngineFailed,
                        "the engine's answer is too long",
                        502,
                    )
                    .await;
                }
                if responder.send(bytes).await.is_err() {
                    return;
                }
            }
            Some(Err(error)) => {
                return report(responder, path, Code::EngineFailed, broken_text(&error), 502).await;
            }
            None => {
                place.succeeded();
                return responder.finish();
            }
        }
    }
}

/// An error after ACCEPT: one event of a stream, or the whole body.
async fn report(mut responder: WorkResponder, path: WorkPath, code: Code, message: &str, status: u16) {
    let error = serde_json::json!({"error": {"code": code, "message": message, "status": status}});
    let text = match path {
        // The blank line in front ends an event that may have been cut in the middle.
        WorkPath::ChatCompletions | WorkPath::Completions => format!("\n\ndata: {error}\n\n"),
        WorkPath::Embeddings => error.to_string(),
    };
    if responder.send(Bytes::from(text)).await.is_ok() {
        responder.finish();
    }
}

async fn engine_error(reply: Reply, status: u16) -> (Code, String) {
    let body = reply.whole(ERROR_LIMIT_BYTES).await.unwrap_or_default();
    let error: Value = serde_json::from_slice(&body).unwrap_or_default();
    let message = error["error"]["message"].as_str().unwrap_or("the engine refused the request");
    let given = error["error"]["code"].as_str().and_then(|code| code.parse().ok());
    let code = given.unwrap_or(match status {
        400..=499 if status == 429 => Code::QueueFull,
        400..=499 => Code::InvalidParameter,
        _ => Code::EngineFailed,
    });
    (code, message.chars().take(500).collect())
}

const fn broken_text(error: &EngineError) -> &'static str {
    match error {
        EngineError::Unreachable(_) => "the engine cannot be reached",
        EngineError::Broken(_) => "the engine broke off",
    }
}

const fn refusal_text(code: Code) -> &'static str {
    match code {
        Code::CapacityFull => "all slots are taken",
        Code::Draining => "this node is leaving",
        _ => "the service is not ready on this node",
    }
}

/// The request under the engine's own name of the model.
fn with_model(body: &[u8], model: &str) -> Option<Bytes> {
    let mut request: Value = serde_json::from_slice(body).ok()?;
    request.as_object_mut()?.insert("model".to_owned(), Value::String(model.to_owned()));
    serde_json::to_vec(&request).ok().map(Bytes::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_model_name_of_a_request_changes() {
        let body = with_model(br#"{"messages":[],"model":"a","seed":18446744073709551615}"#, "b:c").unwrap();
        assert_eq!(&body[..], br#"{"messages":[],"model":"b:c","seed":18446744073709551615}"#);
        assert!(with_model(b"[]", "b").is_none() && with_model(b"{", "b").is_none());
    }
}
