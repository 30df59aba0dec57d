//! Talking to an engine: HTTP/1.1 over a unix socket, or over TCP to a server of the owner. One connection per request:
//! dropping the reply closes it, which is how an engine learns that nobody wants the rest.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::lifecycle::OwnedTask;
use cxmpute_runtime::{Secret, Tasks};
use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Time for the connection to stand. Engines are on this machine or next to it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The same where TLS has to be set up.
const TLS_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where an engine listens.
#[derive(Clone)]
pub enum Endpoint {
    /// A unix socket; paths begin with `/v1`.
    Unix(PathBuf),
    /// An address of the owner's configuration.
    Http {
        /// Whether the connection is secured.
        tls: bool,
        /// Host and port as configured.
        authority: Authority,
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
            Self::Http { tls, authority, base, .. } => {
                write!(f, "{}://{authority}{base}", if *tls { "https" } else { "http" })
            }
            Self::Unusable(why) => write!(f, "unusable: {why}"),
        }
    }
}

/// Why an engine gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Nothing listens there.
    #[error("the engine cannot be reached: {0}")]
    Unreachable(String),
    /// It listens and says no.
    #[error("the engine is not ready (status {0})")]
    NotReady(u16),
    /// It hung up or does not speak HTTP.
    #[error("the engine broke off: {0}")]
    Broken(String),
    /// Its answer is longer than it may be.
    #[error("the engine's answer is too long")]
    TooLong,
    /// It is never asked for this path.
    #[error("the engine does not serve {0}")]
    OtherWork(&'static str),
}

/// An open connection to an engine.
pub struct EngineLink {
    sender: http1::SendRequest<Full<Bytes>>,
    authority: String,
    base: String,
    key: Option<Arc<Secret<String>>>,
    task: OwnedTask,
}

/// An engine's answer over HTTP. Dropping it closes the connection.
#[derive(Debug)]
pub struct HttpReply {
    status: StatusCode,
    body: Incoming,
    _task: OwnedTask,
}

impl Endpoint {
    /// An address of the owner's configuration, `http://` or `https://`.
    #[must_use]
    pub fn http(url: &str, key: Option<Arc<Secret<String>>>) -> Self {
        let unusable = |why: &str| Self::Unusable(format!("{url:?} {why}"));
        let Ok(uri) = url.parse::<Uri>() else {
            return unusable("is no address");
        };
        let tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return unusable("begins with neither http:// nor https://"),
        };
        match uri.authority() {
            Some(authority) if !authority.as_str().contains('@') => {
                let base = uri.path().trim_end_matches('/').to_owned();
                Self::Http { tls, authority: authority.clone(), base, key }
            }
            _ => unusable("names no host, or a user; a key belongs into external.api_key_file"),
        }
    }

    /// Connects.
    ///
    /// # Errors
    /// Nothing listens there.
    pub async fn connect(&self, tasks: &Tasks) -> Result<EngineLink, EngineError> {
        match self {
            Self::Unix(path) => {
                let io = in_time(CONNECT_TIMEOUT, UnixStream::connect(path)).await?;
                EngineLink::start(io, "localhost".into(), "/v1".into(), None, tasks).await
            }
            Self::Http { tls, authority, base, key } => {
                let host = authority.host().trim_start_matches('[').trim_end_matches(']');
                let port = authority.port_u16().unwrap_or(if *tls { 443 } else { 80 });
                let io = in_time(CONNECT_TIMEOUT, TcpStream::connect((host, port))).await?;
                let _ = io.set_nodelay(true);
                let (shown, base, key) = (authority.to_string(), base.clone(), key.clone());
                if !*tls {
                    return EngineLink::start(io, shown, base, key, tasks).await;
                }
                let name = ServerName::try_from(host.to_owned())
                    .map_err(|error| EngineError::Unreachable(error.to_string()))?;
                let io = in_time(TLS_CONNECT_TIMEOUT, connector().connect(name, io)).await?;
                EngineLink::start(io, shown, base, key, tasks).await
            }
            Self::Unusable(why) => Err(EngineError::Unreachable(why.clone())),
        }
    }
}

async fn in_time<T>(
    limit: Duration,
    connecting: impl Future<Output = std::io::Result<T>>,
) -> Result<T, EngineError> {
    match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(io)) => Ok(io),
        Ok(Err(error)) => Err(EngineError::Unreachable(error.to_string())),
        Err(_) => Err(EngineError::Unreachable(format!("no connection within {} s", limit.as_secs()))),
    }
}

/// Trusts the public authorities.
fn connector() -> &'static TlsConnector {
    static CONNECTOR: OnceLock<TlsConnector> = OnceLock::new();
    CONNECTOR.get_or_init(|| {
        let store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the ring provider knows the default protocol versions")
            .with_root_certificates(store)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    })
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
        let (sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
        let task = tasks.spawn_owned("engine-connection", async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "engine connection ended");
            }
        });
        Ok(Self { sender, authority, base, key, task })
    }

    /// `POST base/path` with a body of this type.
    ///
    /// # Errors
    /// The engine hung up.
    pub async fn post(self, path: &str, content_type: &str, body: Bytes) -> Result<HttpReply, EngineError> {
        let path = format!("{}{path}", self.base);
        self.send(Method::POST, &path, Some(content_type), body).await
    }

    /// `GET` of an absolute path.
    ///
    /// # Errors
    /// The engine hung up.
    pub async fn get(self, path: &str) -> Result<HttpReply, EngineError> {
        self.send(Method::GET, path, None, Bytes::new()).await
    }

    /// `GET base/path`.
    ///
    /// # Errors
    /// The engine hung up.
    pub async fn get_below(self, path: &str) -> Result<super::Reply, EngineError> {
        let path = format!("{}{path}", self.base);
        self.send(Method::GET, &path, None, Bytes::new()).await.map(super::Reply::Http)
    }

    async fn send(
        mut self,
        method: Method,
        path: &str,
        content_type: Option<&str>,
        body: Bytes,
    ) -> Result<HttpReply, EngineError> {
        let mut request =
            Request::builder().method(method).uri(path).header(http::header::HOST, &self.authority);
        if let Some(content_type) = content_type {
            request = request.header(http::header::CONTENT_TYPE, content_type);
        }
        if let Some(key) = &self.key {
            request = request.header(http::header::AUTHORIZATION, format!("Bearer {}", key.expose()));
        }
        let request =
            request.body(Full::new(body)).map_err(|error| EngineError::Broken(error.to_string()))?;
        let reply: Response<Incoming> = match self.sender.send_request(request).await {
            Ok(reply) => reply,
            Err(error) => return Err(EngineError::Broken(error.to_string())),
        };
        let (parts, body) = reply.into_parts();
        Ok(HttpReply { status: parts.status, body, _task: self.task })
    }
}

impl HttpReply {
    /// The status.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_owners_are_taken_apart_or_refused_with_a_reason() {
        let shown = |url: &str| format!("{:?}", Endpoint::http(url, None));
        assert_eq!(shown("http://127.0.0.1:11434/v1/"), "http://127.0.0.1:11434/v1");
        assert_eq!(shown("https://box/openai/v1"), "https://box/openai/v1");
        for bad in ["file:///etc/passwd", "box", "", "http://user:key@box/v1"] {
            assert!(shown(bad).starts_with("unusable"), "{bad}");
        }
    }
}
