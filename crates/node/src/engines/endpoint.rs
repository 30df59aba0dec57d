//! Talking to an engine: HTTP/1.1 over a unix socket, or over TCP to a server of the owner. One connection per request:
//! dropping the reply closes it, which is how an engine learns that nobody wants the rest.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::{Secret, Tasks};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// Time for the connection to stand. Engines are on this machine or next to it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Where an engine listens.
#[derive(Clone)]
pub enum Endpoint {
    /// A unix socket; paths begin with `/v1`.
    Unix(PathBuf),
    /// `http://AUTHORITY/BASE`, with a key where the server wants one.
    Http {
        /// Host and port.
        authority: String,
        /// Path in front of `/chat/completions`, such as `/v1`.
        base: String,
        /// Bearer key.
        key: Option<Arc<Secret<String>>>,
    },
    /// An address that cannot be used; kept so that the service can say so.
    Unusable(String),
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http { authority, base, .. } => write!(f, "http://{authority}{base}"),
            Self::Unusable(url) => write!(f, "unusable {url:?}"),
        }
    }
}

/// Why an engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing listens there.
    #[error("the engine cannot be reached: {0}")]
    Unreachable(String),
    /// It hung up or does not speak HTTP.
    #[error("the engine broke off: {0}")]
    Broken(String),
}

/// An open connection to an engine.
pub struct EngineLink {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    authority: String,
    base: String,
    key: Option<Arc<Secret<String>>>,
    /// Drives the connection; dropping it closes the connection.
    task: cxmpute_runtime::lifecycle::OwnedTask,
}

/// An answer whose body is still coming.
pub struct Reply {
    /// Status.
    pub status: StatusCode,
    body: Incoming,
    _task: cxmpute_runtime::lifecycle::OwnedTask,
}

impl Endpoint {
    /// An address of the owner's configuration.
    #[must_use]
    pub fn http(url: &str, key: Option<Arc<Secret<String>>>) -> Self {
        let parsed = url.parse::<http::Uri>().ok().filter(|uri| uri.scheme_str() == Some("http"));
        match parsed.as_ref().and_then(http::Uri::authority) {
            Some(authority) => {
                let base = parsed.as_ref().map_or("", |uri| uri.path()).trim_end_matches('/').to_owned();
                let port = authority.port_u16().unwrap_or(80);
                Self::Http { authority: format!("{}:{port}", authority.host()), base, key }
            }
            None => Self::Unusable(url.to_owned()),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// Nothing listens there.
    pub async fn connect(&self, tasks: &Tasks) -> Result<EngineLink, EngineError> {
        let unreachable = |error: std::io::Error| EngineError::Unreachable(error.to_string());
        match self {
            Self::Unix(path) => {
                let io = in_time(UnixStream::connect(path)).await?.map_err(unreachable)?;
                EngineLink::start(io, "localhost".into(), "/v1".into(), None, tasks).await
            }
            Self::Http { authority, base, key } => {
                let io = in_time(TcpStream::connect(authority.as_str())).await?.map_err(unreachable)?;
                io.set_nodelay(true).map_err(unreachable)?;
                EngineLink::start(io, authority.clone(), base.clone(), key.clone(), tasks).await
            }
            Self::Unusable(url) => Err(EngineError::Unreachable(format!(
                "{url:?} is no http:// address; https is not spoken to engines"
            ))),
        }
    }
}

async fn in_time<T>(connecting: impl Future<Output = T>) -> Result<T, EngineError> {
    let late = |_| EngineError::Unreachable("no connection within 1 s".into());
    tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(late)
}

impl EngineLink {
    async fn start(
        io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        authority: String,
        base: String,
        key: Option<Arc<Secret<String>>>,
        tasks: &Tasks,
    ) -> Result<Self, EngineError> {
        let broken = |error: hyper::Error| EngineError::Broken(error.to_string());
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
        let task = tasks.spawn_owned("engine-connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "engine connection ended");
            }
        });
        Ok(Self { sender, authority, base, key, task })
    }

    /// `POST base/path` with a JSON body.
    ///
    /// # Errors
    /// The engine hung up.
    pub async fn post(self, path: &str, body: Bytes) -> Result<Reply, EngineError> {
        let path = format!("{}{path}", self.base);
        self.send(Method::POST, &path, body).await
    }

    /// `GET` of an absolute path.
    ///
    /// # Errors
    /// The engine hung up.
    pub async fn get(self, path: &str) -> Result<Reply, EngineError> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// `GET base/path`.
    ///
    /// # Errors
    /// The engine hung up.
    pub async fn get_below(self, path: &str) -> Result<Reply, EngineError> {
        let path = format!("{}{path}", self.base);
        self.send(Method::GET, &path, Bytes::new()).await
    }

    async fn send(mut self, method: Method, path: &str, body: Bytes) -> Result<Reply, EngineError> {
        let mut request =
            Request::builder().method(method).uri(path).header(http::header::HOST, &self.authority);
        if !body.is_empty() {
            request = request.header(http::header::CONTENT_TYPE, "application/json");
        }
        if let Some(key) = &self.key {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {}", key.expose()));
        }
        let broken = |error: String| EngineError::Broken(error);
        let request = request.body(Full::new(body)).map_err(|error| broken(error.to_string()))?;
        let reply: Response<Incoming> =
            self.sender.send_request(request).await.map_err(|error| broken(error.to_string()))?;
        let (parts, body) = reply.into_parts();
        Ok(Reply { status: parts.status, body, _task: self.task })
    }
}

impl Reply {
    /// The next bytes; `None` at the end.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, EngineError>> {
        loop {
            let frame = match self.body.frame().await? {
                Ok(frame) => frame,
                Err(error) => return Some(Err(EngineError::Broken(error.to_string()))),
            };
            if let Ok(data) = frame.into_data()
                && !data.is_empty()
            {
                return Some(Ok(data));
            }
        }
    }

    /// The whole body.
    ///
    /// # Errors
    /// It is longer than `limit_bytes`, or the engine hung up.
    pub async fn whole(self, limit_bytes: usize) -> Result<Bytes, EngineError> {
        let body = Limited::new(self.body, limit_bytes).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| EngineError::Broken(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_http_addresses_are_engines() {
        let shown = |url: &str| format!("{:?}", Endpoint::http(url, None));
        assert_eq!(shown("http://127.0.0.1:11434/v1/"), "http://127.0.0.1:11434/v1");
        assert_eq!(shown("http://box"), "http://box:80");
        for bad in ["https://box/v1", "file:///etc/passwd", "box", ""] {
            assert!(shown(bad).starts_with("unusable"), "{bad}");
        }
    }
}
