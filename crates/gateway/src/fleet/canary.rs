//! The check before work: one real completion through the node's own tunnel, asked for by the gateway and looked at
//! (DESIGN D14). It costs nobody and is no event of the ledger.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_market::catalogue::ModelEntry;
use cxmpute_runtime::random;
use cxmpute_tunnel::{WorkHead, WorkPath};
use cxmpute_wire::control::ServiceState;
use cxmpute_wire::openai::{ChatRequest, EmbeddingList, EmbeddingValue};
use cxmpute_wire::{Millis, RequestId, ServiceKind};

use super::node::{Check, Member};
use super::registry::Fleet;
use crate::relay::events::{Asked, Claim, Dialect, EventCutter, EventReader, Piece};

/// Time for the whole check; a cold engine on a slow machine needs some.
const PATIENCE: Duration = Duration::from_secs(60);
/// Output tokens that are asked for.
const TOKENS: u64 = 8;
/// Most bytes of the answer that are read.
const BYTES: usize = 256 * 1024;
/// Questions by turns: a small model may answer one of them with nothing.
const QUESTIONS: [&str; 4] =
    ["Say hello.", "What is your name?", "Tell me a short story.", "Count to three."];

/// Why a check failed; the text is for the log.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

impl Failed {
    fn new(reason: impl ToString) -> Self {
        Self(reason.to_string())
    }
}

/// Starts the check of a service that is ready and whose check is due.
pub(super) fn start_if_due(fleet: &Fleet, member: &Arc<Member>) {
    let tries = {
        let mut state = member.state.lock();
        match state.check {
            Check::Due { at, tries } if state.state == ServiceState::Ready && at <= fleet.now() => {
                state.check = Check::Running { tries };
                tries
            }
            _ => return,
        }
    };
    let (fleet, member) = (fleet.clone(), member.clone());
    let tasks = fleet.parts().tasks.clone();
    tasks.spawn("node-check", async move {
        let outcome = tokio::time::timeout(PATIENCE, check(&fleet, &member, tries))
            .await
            .unwrap_or_else(|_| Err(Failed::new("no complete answer in time")));
        conclude(&fleet, &member, tries, outcome);
    });
}

fn conclude(fleet: &Fleet, member: &Arc<Member>, tries: u32, outcome: Result<(), Failed>) {
    let (provision, service) = (&member.node.session.provision_id, &member.service);
    let passed = outcome.is_ok();
    let label = if passed { "passed" } else { "failed" };
    metrics::counter!("cxmpute_node_checks_total", "outcome" => label).increment(1);
    match outcome {
        Ok(()) => {
            let mut state = member.state.lock();
            state.check = Check::Passed;
            state.proven = true;
            state.kept = false;
            drop(state);
            tracing::info!(%provision, %service, "the check completion came back right: the service gets work");
            fleet.pool(service).pump();
            member.node.news.notify_one();
        }
        Err(reason) => {
            let tries = tries.saturating_add(1);
            let wait = Duration::from_secs(1 << tries.min(5));
            let works = member.health.lock().works(fleet.now());
            let kept = {
                let mut state = member.state.lock();
                state.check = Check::Due { at: fleet.now() + wait, tries };
                state.kept &= works;
                state.kept
            };
            if member.node.link.is_closed() {
                return;
            }
            tracing::warn!(%provision, %service, %reason, kept, "the check completion failed");
            retry_later(fleet, member, wait);
        }
    }
}

/// Heartbeats start due checks as well, but a check should not wait for one.
fn retry_later(fleet: &Fleet, member: &Arc<Member>, wait: Duration) {
    let (fleet, member) = (fleet.clone(), member.clone());
    let tasks = fleet.parts().tasks.clone();
    let soft = tasks.soft();
    tasks.spawn("node-check-later", async move {
        tokio::select! {
            () = tokio::time::sleep(wait) => start_if_due(&fleet, &member),
            _ = member.node.link.closed() => {}
            () = soft.cancelled() => {}
        }
    });
}

async fn check(fleet: &Fleet, member: &Member, tries: u32) -> Result<(), Failed> {
    let entry = fleet.entry(&member.service).ok_or_else(|| Failed::new("no catalogue entry"))?;
    let question = QUESTIONS[tries as usize % QUESTIONS.len()];
    let (path, body) = match entry.kind {
        ServiceKind::Llm => (WorkPath::ChatCompletions, chat_body(&entry, question)),
        ServiceKind::Embeddings => {
            (WorkPath::Embeddings, serde_json::json!({"model": entry.id, "input": [question]}))
        }
        kind => return Err(Failed::new(format!("no check for {kind}"))),
    };
    let id = uuid::Builder::from_unix_timestamp_millis(
        u64::try_from(fleet.parts().clock.now().0).unwrap_or(0),
        &random::bytes::<10>(),
    );
    let head = WorkHead {
        request_id: RequestId::from_tail(&id.into_uuid().simple().to_string()),
        attempt: 1,
        epoch: member.node.session.epoch,
        service: member.service.clone(),
        generation: member.node.generation(),
        path,
        deadline: Millis::from(PATIENCE),
        max_tokens: TOKENS,
        max_bytes: BYTES as u64,
    };
    let mut stream = member.node.link.open(&head, Bytes::from(body.to_string())).map_err(Failed::new)?;
    let accepted = stream.accepted().await.map_err(Failed::new)?;
    if accepted.request_id != head.request_id || accepted.epoch != head.epoch {
        return Err(Failed::new("the acceptance names other work"));
    }
    match entry.kind {
        ServiceKind::Llm => {
            let mut pieces = VecDeque::new();
            let mut cutter = EventCutter::new(BYTES);
            let asked = Asked { dialect: Dialect::Chat, choices: 1, logprobs: None };
            let mut reader = EventReader::new(asked);
            let mut seen = 0;
            while let Some(chunk) = stream.chunk().await {
                let chunk = chunk.map_err(Failed::new)?;
                seen += chunk.len();
                if seen > BYTES {
                    return Err(Failed::new("the answer is too long"));
                }
                cutter.push(&chunk, |data| reader.read(data, &mut pieces)).map_err(Failed::new)?;
                if pieces.back() == Some(&Piece::Done) {
                    break;
                }
            }
            let prompt = exact_prompt(fleet, &entry, question).await;
            judge_chat(pieces, prompt)
        }
        _ => {
            let mut whole = Vec::new();
            while let Some(chunk) = stream.chunk().await {
                whole.extend_from_slice(&chunk.map_err(Failed::new)?);
                if whole.len() > BYTES {
                    return Err(Failed::new("the answer is too long"));
                }
            }
            judge_embedding(&whole, entry.dimensions)
        }
    }
}

fn chat_body(entry: &ModelEntry, question: &str) -> serde_json::Value {
    serde_json::json!({
        "model": entry.id,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": TOKENS,
        "temperature": 0.0,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

async fn exact_prompt(fleet: &Fleet, entry: &ModelEntry, question: &str) -> Option<u64> {
    let counter = fleet.parts().counters.of(entry).await?;
    let request: ChatRequest = serde_json::from_value(chat_body(entry, question)).ok()?;
    let counted = tokio::task::spawn_blocking(move || counter.count_prompt(&request)).await.ok()?;
    counted.ok().map(|tokens| tokens.0)
}

/// The answer must hold text, an end and, if it claims usage, one that can be true.
fn judge_chat(pieces: VecDeque<Piece>, prompt: Option<u64>) -> Result<(), Failed> {
    let mut text = String::new();
    let (mut finished, mut done) = (false, false);
    for piece in pieces {
        match piece {
            Piece::Text { text: more, .. } => text.push_str(&more),
            Piece::Tools { .. } => return Err(Failed::new("a tool call nobody asked for")),
            Piece::Finish { .. } => finished = true,
            Piece::Failed { code } => {
                return Err(Failed(format!(
                    "the engine failed ({})",
                    code.map_or("?", |code| code.as_str())
                )));
            }
            Piece::Claim(Claim { prompt: claimed, completion, .. }) => {
                let prompt_off = prompt.is_some_and(|exact| claimed.abs_diff(exact) > (exact / 4).max(8));
                if completion > TOKENS || prompt_off {
                    return Err(Failed::new("the claimed usage cannot be true"));
                }
            }
            Piece::Done => done = true,
        }
    }
    if !(finished && done) {
        return Err(Failed::new("the answer has no end"));
    }
    if text.trim().is_empty() {
        return Err(Failed::new("the answer is empty"));
    }
    Ok(())
}

fn judge_embedding(body: &[u8], dimensions: Option<u64>) -> Result<(), Failed> {
    let list: EmbeddingList = serde_json::from_slice(body).map_err(|_| Failed::new("no embedding list"))?;
    let [item] = list.data.as_slice() else { return Err(Failed::new("not one vector")) };
    let EmbeddingValue::Float(vector) = &item.embedding else {
        return Err(Failed::new("not a list of numbers"));
    };
    let right_length = dimensions.is_none_or(|length| vector.len() as u64 == length);
    if vector.is_empty() || !right_length || vector.iter().any(|number| !number.is_finite()) {
        return Err(Failed::new("the vector has a wrong length or no finite numbers"));
    }
    if vector.iter().all(|number| *number == 0.0) {
        return Err(Failed::new("the vector is zero"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::openai::FinishReason;

    use super::*;

    fn answer(text: &str, claim: Option<(u64, u64)>) -> VecDeque<Piece> {
        let mut pieces = VecDeque::new();
        if !text.is_empty() {
            pieces.push_back(Piece::Text { choice: 0, text: text.to_owned(), logprobs: None });
        }
        pieces.push_back(Piece::Finish { choice: 0, reason: FinishReason::Length });
        pieces
            .extend(claim.map(|(prompt, completion)| Piece::Claim(Claim { prompt, completion, cached: 0 })));
        pieces.push_back(Piece::Done);
        pieces
    }

    #[test]
    fn only_a_whole_sensible_answer_passes() {
        assert!(judge_chat(answer("Hello", Some((12, 8))), Some(12)).is_ok());
        assert!(judge_chat(answer("Hello", None), None).is_ok());
        assert!(judge_chat(answer("", None), None).is_err());
        assert!(judge_chat(answer(" \n", None), None).is_err());
        assert!(judge_chat(answer("Hello", Some((12, 9))), Some(12)).is_err(), "more than was asked for");
        assert!(judge_chat(answer("Hello", Some((100, 8))), Some(12)).is_err(), "a prompt that was not sent");
        let mut cut = answer("Hello", None);
        cut.pop_back();
        assert!(judge_chat(cut, None).is_err());
        let mut failed = answer("Hello", None);
        failed.push_front(Piece::Failed { code: None });
        assert!(judge_chat(failed, None).is_err());
    }

    #[test]
    fn a_vector_has_the_right_length_and_numbers() {
        let list = |vector: &str| {
            format!(
                r#"{{"object":"list","model":"m","data":[{{"object":"embedding","index":0,"embedding":{vector}}}],
                "usage":{{"prompt_tokens":1,"total_tokens":1}}}}"#
            )
        };
        assert!(judge_embedding(list("[0.5,-0.5]").as_bytes(), Some(2)).is_ok());
        for bad in ["[0.5]", "[0,0]", "[]", "\"AAAA\"", "[1e60,0.1]"] {
            assert!(judge_embedding(list(bad).as_bytes(), Some(2)).is_err(), "{bad}");
        }
    }
}
