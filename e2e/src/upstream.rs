//! A small OpenAI-compatible server, as an owner may run one: it answers every prompt with the same words.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

/// The running server; dropping it stops it.
#[derive(Debug)]
pub struct Upstream {
    /// Where it listens.
    pub address: SocketAddr,
    _accept: AbortOnDropHandle<()>,
}

impl Upstream {
    /// Starts it on a free loopback port.
    ///
    /// # Errors
    /// No port could be taken.
    pub async fn start(answer: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let answer: Arc<str> = answer.into();
        let accept = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let answer = Arc::clone(&answer);
                connections.spawn(async move {
                    let service = service_fn(move |request| respond(request, Arc::clone(&answer)));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, _accept: AbortOnDropHandle::new(accept) })
    }

    /// A node configuration that offers this server as the engine of one model.
    #[must_use]
    pub fn node_configuration(&self, model: &str) -> String {
        format!(
            "[[external]]\nservice = \"llm:{model}\"\nbase_url = \"http://{}/v1\"\nmodel = \"anything\"\n",
            self.address
        )
    }
}

async fn respond(request: Request<Incoming>, answer: Arc<str>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body =
        request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    let (kind, text) = if path.ends_with("/models") {
        ("application/json", json!({"object": "list", "data": [{"id": "anything", "object": "model", "created": 0, "owned_by": "owner"}]}).to_string())
    } else if path.ends_with("/chat/completions") && asked["stream"] == true {
        ("text/event-stream", stream(&answer))
    } else if path.ends_with("/chat/completions") {
        let message = json!({"role": "assistant", "content": &*answer});
        let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
        ("application/json", json!({"id": "x", "object": "chat.completion", "created": 0, "model": "anything", "choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}).to_string())
    } else {
        ("application/json", json!({"status": "ok"}).to_string())
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    Ok(response)
}

fn stream(answer: &str) -> String {
    let chunk = |delta: Value, finish: Value| {
        let choices = json!([{"index": 0, "delta": delta, "finish_reason": finish}]);
        format!(
            "data: {}\n\n",
            json!({"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "anything", "choices": choices})
        )
    };
    [
        chunk(json!({"role": "assistant", "content": ""}), Value::Null),
        chunk(json!({"content": answer}), Value::Null),
        chunk(json!({}), json!("stop")),
        "data: [DONE]\n\n".to_owned(),
    ]
    .concat()
}
