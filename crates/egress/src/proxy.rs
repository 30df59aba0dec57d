//! A proxy on this machine through which a headless browser goes out: the same judge, the same connector, and caps on
//! connections and bytes. It lives as long as one browser run and listens on a door of its own.

mod forward;
mod tunnel;
mod usage;

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::lifecycle::OwnedTask;
use cxmpute_runtime::{CancellationToken, Tasks};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};

pub use usage::{RefusedTarget, Usage};

use crate::connect::{ConnectError, Connector};
use usage::Counter;

/// Header by which a refusal tells its code.
pub const REFUSAL_HEADER: &str = "x-egress-refusal";
/// Bytes of a request's head.
const HEAD_BYTES: usize = 32 * 1024;
/// Time for a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Pause after a failed accept: no file descriptors come back sooner.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What one browser run may take.
#[derive(Clone, Copy, Debug)]
pub struct ProxyLimits {
    /// Connections to the outside, in all.
    pub connections: u32,
    /// Bytes in both directions of one connection.
    pub connection_bytes: u64,
    /// Bytes in both directions, in all.
    pub bytes: u64,
    /// Time after which a silent connection is closed.
    pub idle: Duration,
}

impl Default for ProxyLimits {
    fn default() -> Self {
        Self {
            connections: 200,
            connection_bytes: 8 * 1024 * 1024,
            bytes: 32 * 1024 * 1024,
            idle: Duration::from_secs(10),
        }
    }
}

/// An open proxy. Dropping it closes its door and all its connections.
#[derive(Debug)]
pub struct Proxy {
    address: Option<SocketAddr>,
    counter: Arc<Counter>,
    end: CancellationToken,
    _task: OwnedTask,
}

/// What the connections of one proxy share.
#[derive(Debug)]
struct Shared {
    connector: Connector,
    counter: Arc<Counter>,
    end: CancellationToken,
    tasks: Tasks,
}

type Body = BoxBody<Bytes, hyper::Error>;

impl Proxy {
    /// Opens a proxy on a port of the loopback that the system chooses.
    ///
    /// # Errors
    /// No port is free.
    pub async fn on_loopback(connector: Connector, limits: ProxyLimits, tasks: &Tasks) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        // Whatever an owner allows of this machine, the proxy never leads to itself.
        let connector = connector.without(address);
        Ok(Self::start(Door::Tcp(listener), Some(address), connector, limits, tasks))
    }

    /// Opens a proxy on a unix socket, for a browser in a network namespace of its own.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub fn on_socket(
        path: &Path,
        connector: Connector,
        limits: ProxyLimits,
        tasks: &Tasks,
    ) -> io::Result<Self> {
        let listener = UnixListener::bind(path)?;
        Ok(Self::start(Door::Unix(listener), None, connector, limits, tasks))
    }

    fn start(
        door: Door,
        address: Option<SocketAddr>,
        connector: Connector,
        limits: ProxyLimits,
        tasks: &Tasks,
    ) -> Self {
        let (counter, end) = (Arc::new(Counter::new(limits)), CancellationToken::new());
        let shared =
            Arc::new(Shared { connector, counter: counter.clone(), end: end.clone(), tasks: tasks.clone() });
        let task = tasks.spawn_owned("egress-proxy", accept(door, shared));
        Self { address, counter, end, _task: task }
    }

    /// The port of the loopback, if it has one.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// What went through so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.counter.usage()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end.cancel();
    }
}

enum Door {
    Tcp(TcpListener),
    Unix(UnixListener),
}

async fn accept(door: Door, shared: Arc<Shared>) {
    loop {
        let accepted = match &door {
            Door::Tcp(listener) => listener.accept().await.map(|(stream, _)| serve(stream, &shared)),
            Door::Unix(listener) => listener.accept().await.map(|(stream, _)| serve(stream, &shared)),
        };
        if let Err(error) = accepted {
            tracing::debug!(%error, "the proxy could not accept a connection");
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
}

fn serve<S>(stream: S, shared: &Arc<Shared>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (shared, end) = (shared.clone(), shared.end.clone());
    let tasks = shared.tasks.clone();
    tasks.spawn("egress-proxy-client", async move {
        let service = service_fn(move |request| {
            let shared = shared.clone();
            async move { Ok::<_, Infallible>(answer(request, &shared).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        tokio::select! {
            ended = connection => if let Err(error) = ended {
                tracing::debug!(%error, "a client of the proxy ended early");
            },
            () = end.cancelled() => {}
        }
    });
}

async fn answer(request: Request<Incoming>, shared: &Arc<Shared>) -> Response<Body> {
    let done = match *request.method() {
        Method::CONNECT => tunnel::open(request, shared).await,
        Method::GET | Method::HEAD => forward::forward(request, shared).await,
        // A page's script has no business with sending things from a provider's address.
        _ => return plain(StatusCode::METHOD_NOT_ALLOWED, "method_refused", "Only GET and HEAD go out.\n"),
    };
    done.unwrap_or_else(Refused::response)
}

/// Why nothing went out.
enum Refused {
    /// It is no request to a proxy.
    Request(&'static str),
    /// The limits of this run are used up.
    Spent,
    /// The judge, or the world.
    Connect(ConnectError),
    /// The host does not speak HTTP.
    Upstream(String),
}

impl Refused {
    fn response(self) -> Response<Body> {
        match self {
            Self::Request(why) => plain(StatusCode::BAD_REQUEST, "request_invalid", why),
            Self::Spent => {
                plain(StatusCode::TOO_MANY_REQUESTS, "limit_reached", "This run may take no more.\n")
            }
            Self::Connect(error @ ConnectError::Refused(_)) => {
                plain(StatusCode::FORBIDDEN, error.code(), &error.to_string())
            }
            Self::Connect(error) => plain(StatusCode::BAD_GATEWAY, error.code(), &error.to_string()),
            Self::Upstream(why) => plain(StatusCode::BAD_GATEWAY, "protocol_error", &why),
        }
    }
}

impl From<ConnectError> for Refused {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}

fn plain(status: StatusCode, code: &'static str, text: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(text.as_bytes())).map_err(|never| match never {}).boxed();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(REFUSAL_HEADER, http::HeaderValue::from_static(code));
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
