//! One real piece of work for an engine, to see whether it still works: a token, a vector, a word said or heard, a picture
//! read. It costs nobody anything.

use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use cxmpute_runtime::{Tasks, random};
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::wave::Wave;
use cxmpute_wire::{RequestId, ServiceKind, form};
use serde_json::{Value, json};

use super::state::Event;
use crate::engines::{Adapter, EngineError, Question};

/// Time for one answer.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Most of an answer that is read.
const ANSWER_BYTES: usize = 1024 * 1024;
/// Half a second at 16,000 samples of 2 bytes per second.
const HALF_A_SECOND: usize = 16_000;
/// A white picture of 64 x 32 pixels with one bit each.
const WHITE: &[u8] = include_bytes!("white.png");

/// Asks, and says whether what came back is what a working engine gives.
pub(super) async fn probe(adapter: &Adapter, kind: ServiceKind, tasks: &Tasks) -> Event {
    let ask = async {
        let reply = adapter.ask(question(adapter, kind), tasks).await?;
        let status = reply.status().as_u16();
        let body = reply.whole(ANSWER_BYTES).await?;
        Ok::<_, EngineError>(match status {
            429 => Event::ProbeBusy,
            200 if is_good(kind, &body) => Event::ProbeGood,
            _ => Event::ProbeBad,
        })
    };
    match tokio::time::timeout(TIMEOUT, ask).await {
        Ok(Ok(event)) => event,
        Ok(Err(_)) | Err(_) => Event::ProbeBad,
    }
}

fn question(adapter: &Adapter, kind: ServiceKind) -> Question {
    let model = adapter.model();
    let request = RequestId::from_tail(&data_encoding::HEXLOWER.encode(&random::bytes::<16>()));
    let (path, body) = match kind {
        ServiceKind::Embeddings => (WorkPath::Embeddings, json!({"model": model, "input": "ping"})),
        ServiceKind::Tts => {
            // Servers that follow OpenAI have its voices.
            let voice = if matches!(adapter, Adapter::Tool(_)) { "en" } else { "alloy" };
            let body = json!({"model": model, "input": "one", "voice": voice, "response_format": "wav"});
            (WorkPath::Speech, body)
        }
        ServiceKind::Stt => {
            let silence = Wave { rate: 16_000, channels: 1, samples: &[0; HALF_A_SECOND] }.pack();
            let body =
                form::compose(&request, model, &[("response_format", "verbose_json".into())], &silence);
            return Question { path: WorkPath::Transcription, request, body: body.into() };
        }
        ServiceKind::Vision => {
            let image = base64::engine::general_purpose::STANDARD.encode(WHITE);
            (WorkPath::Read, json!({"model": model, "image": image}))
        }
        // The smallest picture in one step. What it shows does not matter here; the gateway looks at those of its checks.
        ServiceKind::Image => {
            let body = json!({"model": model, "prompt": "a dot", "n": 1, "size": "256x256",
                "response_format": "b64_json", "num_inference_steps": 1});
            (WorkPath::Draw, body)
        }
        // An address that no guard lets out: a working engine says so, and nothing leaves the machine.
        ServiceKind::Scrape => (WorkPath::Scrape, json!({"urls": ["http://127.0.0.1/"]})),
        ServiceKind::Llm => {
            let messages = json!([{"role": "user", "content": "Hello"}]);
            (WorkPath::ChatCompletions, json!({"model": model, "max_tokens": 1, "messages": messages}))
        }
    };
    Question { path, request, body: Bytes::from(body.to_string()) }
}

fn is_good(kind: ServiceKind, body: &[u8]) -> bool {
    let answer = || serde_json::from_slice::<Value>(body).unwrap_or_default();
    let filled = |list: &Value| list.as_array().is_some_and(|items| !items.is_empty());
    match kind {
        ServiceKind::Tts => Wave::read(body).is_ok_and(|wave| !wave.samples.is_empty()),
        ServiceKind::Stt | ServiceKind::Vision => answer()["text"].is_string(),
        ServiceKind::Scrape => filled(&answer()["results"]),
        ServiceKind::Embeddings | ServiceKind::Image => filled(&answer()["data"]),
        ServiceKind::Llm => filled(&answer()["choices"]),
    }
}
