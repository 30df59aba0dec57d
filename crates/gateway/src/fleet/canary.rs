//! The check before work: one real completion through the node's own tunnel, asked for by the gateway and looked at
//! (DESIGN D14). It costs nobody and is no event of the ledger.

mod drawing;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use cxmpute_egress::judge::Class;
use cxmpute_market::catalogue::{Capability, ModelEntry};
use cxmpute_tunnel::{WorkHead, WorkPath};
use cxmpute_wire::control::ServiceState;
use cxmpute_wire::openai::{ChatRequest, EmbeddingList, EmbeddingValue, Heard};
use cxmpute_wire::scrape::ScrapeResponse;
use cxmpute_wire::sight::ReadText;
use cxmpute_wire::wave::Wave;
use cxmpute_wire::{Millis, RequestId, ServiceKind, form};

use super::node::{Check, Member};
use super::registry::Fleet;
use crate::relay::events::{Asked, Claim, Dialect, EventCutter, EventReader, Piece};
use crate::request_id;

/// Time for the whole check; a cold engine on a slow machine needs some.
const PATIENCE: Duration = Duration::from_secs(60);
/// Output tokens that are asked for.
const TOKENS: u64 = 8;
/// Most bytes of the answer that are read.
const BYTES: usize = 256 * 1024;
/// Questions by turns: a small model may answer one of them with nothing.
const QUESTIONS: [&str; 4] =
    ["Say hello.", "What is your name?", "Tell me a short story.", "Count to three."];

/// A recording of the words that [`SAID`] writes, and a picture with the text [`WRITTEN`]; made by `tools/fixtures/canary.sh`.
const DIGITS: &[u8] = include_bytes!("canary/digits.wav");
const PAGE: &[u8] = include_bytes!("canary/page.png");
/// What is said in [`DIGITS`].
const SAID: &str = "four seven one one";
/// What is written in [`PAGE`].
const WRITTEN: &str = "Page 4711 of 9";
/// An address that no guard lets out.
const PRIVATE: &str = "http://127.0.0.1/";
/// The code by which a guard says so.
const REFUSED: &str = Class::Loopback.code();

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
    let request_id = request_id::fresh(&fleet.parts().clock);
    let (path, body) = task(&entry, question, tries, &request_id);
    let most = if entry.kind == ServiceKind::Image { drawing::bytes(&entry) } else { BYTES };
    let head = WorkHead {
        request_id,
        attempt: 1,
        epoch: member.node.session.epoch,
        service: member.service.clone(),
        generation: member.node.generation(),
        path,
        deadline: Millis::from(PATIENCE),
        max_tokens: TOKENS,
        max_bytes: most as u64,
    };
    let mut stream = member.node.link.open(&head, body).map_err(Failed::new)?;
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
        kind => {
            let mut whole = Vec::new();
            while let Some(chunk) = stream.chunk().await {
                whole.extend_from_slice(&chunk.map_err(Failed::new)?);
                if whole.len() > most {
                    return Err(Failed::new("the answer is too long"));
                }
            }
            match kind {
                ServiceKind::Tts => judge_speech(&whole),
                ServiceKind::Stt => judge_transcript(&whole),
                ServiceKind::Vision => judge_reading(&whole),
                ServiceKind::Image => drawing::judge(&entry, whole).await,
                ServiceKind::Scrape => judge_guard(&whole),
                ServiceKind::Embeddings | ServiceKind::Llm => judge_embedding(&whole, entry.dimensions),
            }
        }
    }
}

/// What the node is asked to do.
fn task(entry: &ModelEntry, question: &str, tries: u32, request: &RequestId) -> (WorkPath, Bytes) {
    let (path, body) = match entry.kind {
        ServiceKind::Llm => (WorkPath::ChatCompletions, chat_body(entry, question)),
        ServiceKind::Embeddings => {
            (WorkPath::Embeddings, serde_json::json!({"model": entry.id, "input": [question]}))
        }
        ServiceKind::Tts => {
            let voice = entry.voices.values().next().map_or("alloy", String::as_str);
            let body = serde_json::json!({"model": entry.id, "input": question, "voice": voice, "response_format": "wav"});
            (WorkPath::Speech, body)
        }
        ServiceKind::Stt => {
            let fields = [("response_format", "verbose_json".to_owned())];
            return (WorkPath::Transcription, form::compose(request, &entry.id, &fields, DIGITS).into());
        }
        ServiceKind::Vision => {
            let image = base64::engine::general_purpose::STANDARD.encode(PAGE);
            (WorkPath::Read, serde_json::json!({"model": entry.id, "image": image}))
        }
        ServiceKind::Image => (WorkPath::Draw, drawing::body(entry, tries)),
        // What a fetcher must never do is what is checked: nothing leaves the node's machine.
        ServiceKind::Scrape => (WorkPath::Scrape, serde_json::json!({"urls": [PRIVATE]})),
    };
    (path, body.to_string().into())
}

fn chat_body(entry: &ModelEntry, question: &str) -> serde_json::Value {
    let content = if entry.can(Capability::Vision) {
        // Whether it sees right is not judged, but whether its engine takes pictures at all is.
        let url = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(PAGE));
        serde_json::json!([{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}])
    } else {
        question.into()
    };
    serde_json::json!({
        "model": entry.id,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": TOKENS,
        "temperature": 0.0,
        "stream": true,
        "stream_options": {"include_usage": true},
    })
}

/// The count of the prompt; none where it holds a picture, which engines count each in their own way.
async fn exact_prompt(fleet: &Fleet, entry: &ModelEntry, question: &str) -> Option<u64> {
    if entry.can(Capability::Vision) {
        return None;
    }
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

/// A text of a few words takes from a fifth of a second to half a minute.
fn judge_speech(body: &[u8]) -> Result<(), Failed> {
    let wave = Wave::read(body).map_err(Failed::new)?;
    match wave.millis() {
        _ if wave.is_silent() => Err(Failed::new("the speech is silence")),
        200..=30_000 => Ok(()),
        millis => Err(Failed(format!("the speech takes {millis} ms"))),
    }
}

/// Small models hear other words; a model that hears digits must hear these.
fn judge_transcript(body: &[u8]) -> Result<(), Failed> {
    let heard: Heard = serde_json::from_slice(body).map_err(|_| Failed::new("no transcript"))?;
    let words: Vec<String> = heard.text.split_whitespace().map(str::to_lowercase).collect();
    let digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"];
    let only_digits = words.iter().all(|word| digits.contains(&word.as_str()));
    if words.is_empty() || (only_digits && words.join(" ") != SAID) {
        return Err(Failed::new("the transcript is not what was said"));
    }
    Ok(())
}

fn judge_reading(body: &[u8]) -> Result<(), Failed> {
    let read: ReadText = serde_json::from_slice(body).map_err(|_| Failed::new("no reading"))?;
    if read.text.trim() == WRITTEN && !read.words.is_empty() {
        return Ok(());
    }
    Err(Failed::new("the text is not what is written"))
}

fn judge_guard(body: &[u8]) -> Result<(), Failed> {
    let answer: ScrapeResponse = serde_json::from_slice(body).map_err(|_| Failed::new("no results"))?;
    let [result] = answer.results.as_slice() else { return Err(Failed::new("not one result")) };
    let refused = result.error.as_ref().is_some_and(|error| error.code == REFUSED);
    if refused && !result.success && result.data.is_none() {
        return Ok(());
    }
    Err(Failed::new("an address of the node's own machine was not refused"))
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
    fn speech_is_heard_and_has_a_length() {
        let of = |samples: &[u8]| judge_speech(&Wave { rate: 16_000, channels: 1, samples }.pack());
        assert!(judge_speech(DIGITS).is_ok());
        assert!(of(&[0; 32_000]).is_err(), "silence");
        assert!(of(&[1; 320]).is_err(), "too short");
        assert!(judge_speech(b"RIFF").is_err());
    }

    #[test]
    fn a_transcript_has_words_and_digits_are_the_right_ones() {
        let of = |text: &str| judge_transcript(serde_json::json!({"text": text}).to_string().as_bytes());
        assert!(of("four seven one one").is_ok() && of("for seven one on").is_ok());
        assert!(of("").is_err() && of("one two three").is_err() && judge_transcript(b"[]").is_err());
    }

    #[test]
    fn a_reading_is_exact_and_a_guard_refuses() {
        let read = |text: &str| {
            let word = serde_json::json!({"text": "Page", "box": [0, 0, 1, 1], "confidence": 1.0});
            judge_reading(serde_json::json!({"text": text, "words": [word]}).to_string().as_bytes())
        };
        assert!(read(WRITTEN).is_ok() && read("Page 4712 of 9").is_err());
        let scraped = |result: serde_json::Value| {
            judge_guard(serde_json::json!({"results": [result]}).to_string().as_bytes())
        };
        let refused = serde_json::json!({"url": PRIVATE, "success": false, "error": {"code": REFUSED, "message": "no"}});
        assert!(scraped(refused).is_ok());
        assert!(scraped(serde_json::json!({"url": PRIVATE, "success": true, "data": "secret"})).is_err());
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
