//! The ways through the relay, as a client asks and as a node answers: chat, completions, embeddings; streamed or whole.

use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::{Client, Event, Reply};
use crate::ground::until;
use crate::world::{CHAT_MODEL, EMBEDDINGS_MODEL};

/// One way through the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    /// `POST /chat/completions` with `stream`.
    ChatStream,
    /// The same, whole.
    ChatWhole,
    /// `POST /completions` with `stream`.
    CompletionStream,
    /// The same, whole.
    CompletionWhole,
    /// `POST /embeddings`.
    Embeddings,
}

impl Path {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::ChatStream, Self::ChatWhole, Self::CompletionStream, Self::CompletionWhole, Self::Embeddings];

    /// Those that answer with text.
    pub const TEXT: [Self; 4] =
        [Self::ChatStream, Self::ChatWhole, Self::CompletionStream, Self::CompletionWhole];

    /// Whether the answer is a stream.
    #[must_use]
    pub const fn streamed(self) -> bool {
        matches!(self, Self::ChatStream | Self::CompletionStream)
    }

    /// Whether it is the chat route.
    #[must_use]
    pub const fn is_chat(self) -> bool {
        matches!(self, Self::ChatStream | Self::ChatWhole)
    }

    /// Where to send it.
    #[must_use]
    pub const fn url(self) -> &'static str {
        match self {
            Self::ChatStream | Self::ChatWhole => "/v1/chat/completions",
            Self::CompletionStream | Self::CompletionWhole => "/v1/completions",
            Self::Embeddings => "/v1/embeddings",
        }
    }

    /// A request with this prompt.
    #[must_use]
    pub fn body(self, prompt: &str, max_tokens: u64) -> Value {
        match self {
            Self::ChatStream | Self::ChatWhole => {
                json!({"model": CHAT_MODEL, "max_tokens": max_tokens, "stream": self.streamed(),
                    "messages": [{"role": "user", "content": prompt}]})
            }
            Self::CompletionStream | Self::CompletionWhole => {
                json!({"model": CHAT_MODEL, "max_tokens": max_tokens, "stream": self.streamed(), "prompt": prompt})
            }
            Self::Embeddings => json!({"model": EMBEDDINGS_MODEL, "input": [prompt]}),
        }
    }

    /// A node's event with a piece of text. Its id names the node's own words, so that they are known when they leak.
    #[must_use]
    pub fn piece(self, text: &str) -> Bytes {
        self.event(&if self.is_chat() {
            json!({"index": 0, "delta": {"content": text}, "finish_reason": null})
        } else {
            json!({"index": 0, "text": text, "finish_reason": null})
        })
    }

    /// A node's event that ends the answer.
    #[must_use]
    pub fn finish(self, reason: &str) -> Bytes {
        self.event(&if self.is_chat() {
            json!({"index": 0, "delta": {}, "finish_reason": reason})
        } else {
            json!({"index": 0, "text": "", "finish_reason": reason})
        })
    }

    /// A node's event with one choice.
    #[must_use]
    pub fn event(self, choice: &Value) -> Bytes {
        Bytes::from(format!("data: {}\n\n", json!({"id": OWN_WORD, "model": OWN_WORD, "choices": [choice]})))
    }

    /// Asks and reads all that comes.
    ///
    /// # Errors
    /// A connection that breaks, or an answer that is not HTTP.
    pub async fn ask(self, client: &Client, body: &Value) -> Result<Got> {
        let start = Instant::now();
        let mut conversation = client.open("POST", self.url(), Some(body)).await?;
        let head = Reply {
            status: conversation.status,
            headers: conversation.headers.clone(),
            body: conversation.rest().await?,
        };
        Got::read(self, head, start.elapsed())
    }
}

/// The end marker.
pub const DONE: Bytes = Bytes::from_static(b"data: [DONE]\n\n");

/// A word that only the node's own bytes hold.
pub const OWN_WORD: &str = "rogue-own-word";

/// What a client got.
#[derive(Clone, Debug)]
pub struct Got {
    /// Status, headers and body, as they came.
    pub reply: Reply,
    /// The request's id.
    pub request_id: String,
    /// `error.code` of the envelope, or of the error event inside a stream.
    pub code: String,
    /// The visible text.
    pub text: String,
    /// The last finish reason.
    pub finish: Option<String>,
    /// Whether the answer was whole: `[DONE]`, or a status of 200 with a body.
    pub complete: bool,
    /// Every JSON object that came.
    pub events: Vec<Value>,
    /// How long it took.
    pub took: Duration,
}

impl Got {
    fn read(path: Path, reply: Reply, took: Duration) -> Result<Self> {
        let request_id = reply.header("x-request-id").context("no request id")?.to_owned();
        let streamed = reply.header("content-type").is_some_and(|kind| kind.starts_with("text/event-stream"));
        let (mut events, mut done) = (Vec::new(), false);
        if streamed {
            for event in read_events(&reply.body)? {
                match event {
                    Event::Data(value) => events.push(value),
                    Event::Done => done = true,
                }
            }
        } else {
            events.push(reply.json());
        }
        let choices = || events.iter().filter_map(|event| event["choices"].get(0));
        let text = |choice: &Value| {
            let place = match path {
                Path::ChatStream => &choice["delta"]["content"],
                Path::ChatWhole => &choice["message"]["content"],
                _ => &choice["text"],
            };
            place.as_str().unwrap_or_default().to_owned()
        };
        let error = events.iter().find_map(|event| event["error"]["code"].as_str());
        Ok(Self {
            request_id,
            code: error.unwrap_or_default().to_owned(),
            text: choices().map(text).collect(),
            finish: choices()
                .filter_map(|choice| choice["finish_reason"].as_str())
                .next_back()
                .map(str::to_owned),
            complete: error.is_none() && (if streamed { done } else { reply.status == 200 }),
            events,
            reply,
            took,
        })
    }

    /// The settled row of the request, as its account sees it.
    ///
    /// # Errors
    /// It is not settled in time.
    pub async fn settled(&self, client: &Client) -> Result<Value> {
        settled(client, &self.request_id, Duration::from_secs(10)).await
    }
}

/// The settled row of a request.
///
/// # Errors
/// It is not settled in time.
pub async fn settled(client: &Client, request_id: &str, deadline: Duration) -> Result<Value> {
    until("the settlement", deadline, async || {
        let reply = client.call("GET", &format!("/v1/generation?id={request_id}"), None).await?;
        let data = reply.json()["data"].clone();
        Ok((reply.status == 200 && data["outcome"] != "running").then_some(data))
    })
    .await
}

/// The events of a whole stream. Nothing but data, comments and empty lines may be in it.
fn read_events(body: &[u8]) -> Result<Vec<Event>> {
    let text = std::str::from_utf8(body).context("the stream is not UTF-8")?;
    let mut events = Vec::new();
    for line in text.split('\n').filter(|line| !line.is_empty() && !line.starts_with(':')) {
        let data = line.strip_prefix("data: ").with_context(|| format!("a stray line {line:?}"))?;
        events.push(match data {
            "[DONE]" => Event::Done,
            data => Event::Data(serde_json::from_str(data).with_context(|| format!("no JSON: {data:?}"))?),
        });
    }
    Ok(events)
}
