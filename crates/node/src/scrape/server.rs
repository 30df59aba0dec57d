//! The engine's socket: HTTP/1 for the node, and nobody else.

use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use cxmpute_runtime::Tasks;
use cxmpute_wire::Code;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{UnixListener, UnixStream};

use super::request::{self, BadRequest};
use super::work::Scraper;

/// Largest request: twenty URLs of the largest size, and room.
const BODY_LIMIT_BYTES: usize = 256 * 1024;
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An open socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What the server answers with.
#[derive(Debug)]
pub struct Engine {
    /// The name of the service's model; `GET /v1/models` tells it.
    pub model: String,
    /// Who does the work.
    pub scraper: Arc<Scraper>,
}

impl Listener {
    /// Makes the socket, for this user only.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn bind(path: &Path) -> Result<Self> {
        let listener =
            UnixListener::bind(path).with_context(|| format!("making the socket {}", path.display()))?;
        let own = Self { listener, path: path.to_owned() };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(own)
    }

    /// Serves until the soft stop; requests that run are finished within the grace of `tasks`.
    pub async fn serve(self, engine: Engine, tasks: &Tasks) {
        let (engine, soft) = (Arc::new(engine), tasks.soft());
        loop {
            let accepted = tokio::select! {
                () = soft.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    tasks.spawn("scrape-connection", connection(stream, engine.clone(), tasks.clone()));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(stream: UnixStream, engine: Arc<Engine>, tasks: Tasks) {
    let service = service_fn(move |request| {
        let engine = engine.clone();
        async move { Ok::<_, Infallible>(Box::pin(answer(request, &engine)).await) }
    });
    // A caller that hangs up ends its request: half-closed connections count as closed.
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let (soft, hard) = (tasks.soft(), tasks.hard());
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = soft.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = hard.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

async fn answer(request: Request<Incoming>, engine: &Engine) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    match (request.method(), path.as_str()) {
        (&Method::GET, "/health") => {
            let (urls, limit) = engine.scraper.today();
            let today = json!({"urls": urls, "limit": limit});
            say(StatusCode::OK, &json!({"status": "ok", "render": engine.scraper.renders(), "today": today}))
        }
        (&Method::GET, "/v1/models") => {
            let model = json!({"id": engine.model, "object": "model", "owned_by": "cxmpute"});
            say(StatusCode::OK, &json!({"object": "list", "data": [model]}))
        }
        (&Method::POST, "/v1/scrape") => scrape(request, engine).await,
        (_, "/health" | "/v1/models" | "/v1/scrape") => {
            refuse(Code::MethodNotAllowed, None, "The route has another method.")
        }
        _ => refuse(Code::NotFound, None, "There is no such route."),
    }
}

async fn scrape(request: Request<Incoming>, engine: &Engine) -> Response<Full<Bytes>> {
    let body = match Limited::new(request.into_body(), BODY_LIMIT_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return refuse(Code::BodyTooLarge, None, "The request is too large, or broke off."),
    };
    match request::parse(&body) {
        Ok(request) => say(StatusCode::OK, &engine.scraper.run(request).await),
        Err(BadRequest { code, field, message }) => refuse(code, field, &message),
    }
}

fn refuse(code: Code, field: Option<&str>, message: &str) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::BAD_REQUEST);
    let error =
        json!({"message": message, "type": "invalid_request_error", "param": field, "code": code.as_str()});
    say(status, &json!({"error": error}))
}

fn say(status: StatusCode, value: &impl serde::Serialize) -> Response<Full<Bytes>> {
    let body = serde_json::to_vec(value).unwrap_or_else(|_| Value::Null.to_string().into_bytes());
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}
