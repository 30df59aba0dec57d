//! A script in place of an engine: deterministic answers and faults, chosen per request. Only tests can build one; no
//! configuration leads to it.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::EngineError;

type Director = dyn Fn(&str, &Value) -> Script + Send + Sync;

/// An engine that plays scripts. Clones share the count of plays.
#[derive(Clone)]
pub struct Fake {
    director: Arc<Director>,
    running: Arc<AtomicUsize>,
    /// Requests at a time.
    pub slots: u32,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fake({} slots)", self.slots)
    }
}

/// What the engine does with one request.
#[derive(Clone, Debug)]
pub struct Script {
    /// The answer's text, token by token.
    pub tokens: Vec<String>,
    /// Pause before each token.
    pub delay: Duration,
    /// Prompt tokens that it claims.
    pub prompt_tokens: u64,
    /// Completion tokens that it claims; the true number when absent.
    pub claimed_tokens: Option<u64>,
    /// What goes wrong.
    pub fault: Option<Fault>,
}

/// What goes wrong in a script.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It refuses with this status.
    Refuse(u16),
    /// It answers with an error event before the first token.
    FailFirst,
    /// It hangs up after so many tokens.
    BreakAfter(usize),
    /// It sends nothing more after so many tokens, and does not end.
    HangAfter(usize),
    /// It sends bytes that are no event after so many tokens.
    GarbageAfter(usize),
    /// It ends properly, but without `[DONE]`.
    NoDone,
}

impl Script {
    /// Says these tokens and nothing goes wrong.
    #[must_use]
    pub fn saying(tokens: &[&str]) -> Self {
        Self {
            tokens: tokens.iter().map(|token| (*token).to_owned()).collect(),
            delay: Duration::ZERO,
            prompt_tokens: 1,
            claimed_tokens: None,
            fault: None,
        }
    }

    /// The same with a fault.
    #[must_use]
    pub fn with(self, fault: Fault) -> Self {
        Self { fault: Some(fault), ..self }
    }
}

impl Fake {
    /// An engine whose `director` chooses the script of each request from its path and body.
    #[must_use]
    pub fn new(slots: u32, director: impl Fn(&str, &Value) -> Script + Send + Sync + 'static) -> Self {
        Self { director: Arc::new(director), running: Arc::default(), slots }
    }

    /// Plays that have begun and not ended; 0 when every cancelled request was noticed.
    #[must_use]
    pub fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }

    pub(super) fn ask(&self, path: &str, body: &Bytes) -> Result<Play, EngineError> {
        let request: Value = serde_json::from_slice(body).unwrap_or_default();
        let script = (self.director)(path, &request);
        self.running.fetch_add(1, Ordering::SeqCst);
        let running = Guard(self.running.clone());
        let model = request["model"].as_str().unwrap_or_default();
        let streamed = request["stream"] == true;
        let (status, scenes) = stage(path, model, streamed, &script);
        Ok(Play { status, scenes, delay: script.delay, _running: running })
    }
}

struct Guard(Arc<AtomicUsize>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Guard")
    }
}

#[derive(Debug)]
enum Scene {
    Send(String),
    Break,
    Hang,
}

/// One answer being played.
#[derive(Debug)]
pub struct Play {
    status: StatusCode,
    scenes: VecDeque<Scene>,
    delay: Duration,
    _running: Guard,
}

impl Play {
    /// HTTP status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The next bytes; `None` at the end.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, EngineError>> {
        match self.scenes.front()? {
            Scene::Hang => std::future::pending().await,
            Scene::Break | Scene::Send(_) => tokio::time::sleep(self.delay).await,
        }
        match self.scenes.pop_front()? {
            Scene::Send(text) => Some(Ok(text.into())),
            Scene::Break | Scene::Hang => Some(Err(EngineError::Broken("as the script says".into()))),
        }
    }
}

fn stage(path: &str, model: &str, streamed: bool, script: &Script) -> (StatusCode, VecDeque<Scene>) {
    if let Some(Fault::Refuse(status)) = script.fault {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let text = json!({"error": {"message": "as the script says", "type": "api_error"}}).to_string();
        return (status, VecDeque::from([Scene::Send(text)]));
    }
    let completion = script.claimed_tokens.unwrap_or(script.tokens.len() as u64);
    let usage = json!({"prompt_tokens": script.prompt_tokens, "completion_tokens": completion,
        "total_tokens": script.prompt_tokens + completion});
    if path == "/embeddings" {
        let data = json!([{"object": "embedding", "index": 0, "embedding": [0.6, 0.8]}]);
        let text = json!({"object": "list", "model": model, "data": data, "usage": usage}).to_string();
        return (StatusCode::OK, VecDeque::from([Scene::Send(text)]));
    }
    if !streamed {
        let message = json!({"role": "assistant", "content": script.tokens.concat()});
        let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
        let text = json!({"object": "chat.completion", "choices": choices, "usage": usage}).to_string();
        return (StatusCode::OK, VecDeque::from([Scene::Send(text)]));
    }
    (StatusCode::OK, events(path == "/chat/completions", model, script, &usage))
}

fn events(chat: bool, model: &str, script: &Script, usage: &Value) -> VecDeque<Scene> {
    let object = if chat { "chat.completion.chunk" } else { "text_completion" };
    let event = |choices: Value, usage: Option<&Value>| {
        let mut chunk =
            json!({"id": "fake-1", "object": object, "created": 0, "model": model, "choices": choices});
        if let Some(usage) = usage {
            chunk["usage"] = usage.clone();
        }
        Scene::Send(format!("data: {chunk}\n\n"))
    };
    let said = |text: &str, finish: Option<&str>| match chat {
        true => json!([{"index": 0, "delta": {"content": text}, "finish_reason": finish}]),
        false => json!([{"index": 0, "text": text, "finish_reason": finish}]),
    };
    let mut scenes = VecDeque::new();
    if script.fault == Some(Fault::FailFirst) {
        let error = json!({"error": {"message": "as the script says", "code": "engine_failed"}});
        scenes.push_back(Scene::Send(format!("data: {error}\n\n")));
        return scenes;
    }
    for (at, token) in script.tokens.iter().enumerate() {
        if cut(script.fault, at, &mut scenes) {
            return scenes;
        }
        scenes.push_back(event(said(token, None), None));
    }
    if cut(script.fault, script.tokens.len(), &mut scenes) {
        return scenes;
    }
    scenes.push_back(event(said("", Some("stop")), None));
    scenes.push_back(event(json!([]), Some(usage)));
    if script.fault != Some(Fault::NoDone) {
        scenes.push_back(Scene::Send("data: [DONE]\n\n".into()));
    }
    scenes
}

/// Whether the script goes wrong after `at` tokens.
fn cut(fault: Option<Fault>, at: usize, scenes: &mut VecDeque<Scene>) -> bool {
    let scene = match fault {
        Some(Fault::BreakAfter(after)) if after == at => Scene::Break,
        Some(Fault::HangAfter(after)) if after == at => Scene::Hang,
        Some(Fault::GarbageAfter(after)) if after == at => Scene::Send("data: {\"choices\": [gar\n\n".into()),
        _ => return false,
    };
    scenes.push_back(scene);
    true
}
