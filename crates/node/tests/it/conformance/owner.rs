//! Servers in place of an owner's Ollama and vLLM: what their documentation says of the routes that this program uses,
//! in front of answers that are made up. Each notes the paths it was asked for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_node::engines::found::Kind;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket};
use tokio::task::JoinHandle;

/// A server of the owner's.
#[derive(Clone)]
pub struct OwnersServer {
    pub address: SocketAddr,
    kind: Kind,
    model: &'static str,
    /// Method and path of every request.
    pub asked: Arc<Mutex<Vec<String>>>,
    running: Arc<Mutex<Option<JoinHandle<()>>>>,
}

impl OwnersServer {
    /// One with this model.
    pub async fn start(kind: Kind, model: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Self { address, kind, model, asked: Arc::default(), running: Arc::default() };
        server.serve(listener);
        server
    }

    fn serve(&self, listener: TcpListener) {
        let server = self.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                let server = server.clone();
                let service = service_fn(move |request| {
                    let server = server.clone();
                    async move { Ok::<_, std::convert::Infallible>(server.answer(request).await) }
                });
                connections.spawn(async move {
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(tcp), service).await;
                });
            }
        });
        *self.running.lock() = Some(task);
    }

    /// Its owner stops it.
    pub fn leave(&self) {
        if let Some(task) = self.running.lock().take() {
            task.abort();
        }
    }

    /// Its owner starts it again.
    pub fn come(&self) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.address).unwrap();
        self.serve(socket.listen(64).unwrap());
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, hyper::Error>> {
        let path = request.uri().path().to_owned();
        self.asked.lock().push(format!("{} {path}", request.method()));
        let body =
            request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let owned_by = if self.kind == Kind::Vllm { "vllm" } else { "library" };
        let entry = json!({"id": self.model, "object": "model", "owned_by": owned_by});
        let value = match (self.kind, path.as_str()) {
            (_, "/v1/models") => json!({"object": "list", "data": [entry]}),
            (Kind::Ollama, "/api/version") => json!({"version": "0.11.4"}),
            (Kind::Ollama, "/api/tags") => {
                json!({"models": [{"name": self.model, "model": self.model, "digest": "d".repeat(64), "size": 7}]})
            }
            (Kind::Ollama, "/api/ps") => json!({"models": []}),
            (Kind::Ollama, "/api/show") => {
                json!({"modelfile": format!("FROM /m/blobs/sha256-{}", "e".repeat(64))})
            }
            (Kind::Vllm, "/version") => json!({"version": "0.11.0"}),
            (_, "/v1/chat/completions") if body["model"] == self.model => return chat(&body),
            _ => {
                let mut refused = Response::new(full("{\"error\":{\"message\":\"not found\"}}".to_owned()));
                *refused.status_mut() = http::StatusCode::NOT_FOUND;
                return refused;
            }
        };
        Response::new(full(value.to_string()))
    }
}

fn full(text: String) -> BoxBody<Bytes, hyper::Error> {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

/// An answer; a question for a story is answered word by word, slowly.
fn chat(body: &Value) -> Response<BoxBody<Bytes, hyper::Error>> {
    let question = body["messages"][0]["content"].as_str().unwrap_or_default();
    if body["stream"] != true {
        let message = json!({"role": "assistant", "content": "One"});
        return Response::new(full(
            json!({"choices": [{"index": 0, "message": message, "finish_reason": "length"}]}).to_string(),
        ));
    }
    let story = question.contains("story");
    let words: Vec<String> = match story {
        true => (0..600).map(|n| format!("word{n} ")).collect(),
        false => "The| capital| of| Japan| is| Tokyo.".split('|').map(str::to_owned).collect(),
    };
    let event = |delta: Value, finish: Option<&str>| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        format!("data: {}\n\n", json!({"object": "chat.completion.chunk", "choices": [choice]}))
    };
    let mut events: Vec<String> = words.iter().map(|word| event(json!({"content": word}), None)).collect();
    events.push(event(json!({}), Some("stop")));
    let usage =
        json!({"prompt_tokens": 9, "completion_tokens": words.len(), "total_tokens": 9 + words.len()});
    events.push(format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [], "usage": usage})));
    let pace = Duration::from_millis(if story { 50 } else { 0 });
    let frames = stream::unfold(events.into_iter(), move |mut events| async move {
        let event = events.next()?;
        tokio::time::sleep(pace).await;
        Some((Ok::<_, hyper::Error>(Frame::data(Bytes::from(event))), events))
    });
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}
