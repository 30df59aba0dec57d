//! The accept loop: our own, because a listener without timers is a listener that a few slow clients can fill.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::{CancellationToken, Tasks};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;

use crate::app::App;
use crate::config::{ServerConfig, Tls};
use crate::edge::{self, Peer};
use crate::frames::Frames;
use crate::framing::Framing;
use crate::stall::unless_stuck;
use crate::watch::{Activity, Guard, Spans, TrackedBody, Watched};

/// A TLS handshake must be done in this time.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// hyper's own limits lie above those of the edge, so that ordinary excess gets the envelope; beyond these hyper answers
/// with a bare 431.
const MAX_HEAD: usize = 64 * 1024;
const MAX_FIELDS: usize = 128;
/// Limits of HTTP/2 (GR section 9).
const H2_STREAMS: u32 = 100;
const H2_STREAM_WINDOW: u32 = 64 * 1024;
const H2_CONNECTION_WINDOW: u32 = 1024 * 1024;
const H2_RESETS: usize = 200;

/// Which router answers on a listener.
#[derive(Clone)]
enum Front {
    Api(Router),
    Operator(Router),
}

/// Serves the API until the soft stop; connections go on as tasks of the app.
pub async fn serve(app: Arc<App>, listener: TcpListener) {
    let front = Front::Api(crate::router::build_router(app.clone()));
    accept(app, listener, front).await;
}

/// Serves metrics and probes for operators until the soft stop.
pub async fn serve_metrics(app: Arc<App>, listener: TcpListener) {
    let front = Front::Operator(crate::telemetry::build_router(app.clone()));
    accept(app, listener, front).await;
}

/// Opens a listening socket. A taken port is one sentence and its own exit code.
pub async fn bind(address: SocketAddr, key: &str) -> Result<TcpListener, ExitError> {
    TcpListener::bind(address).await.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => ExitError::caused(
            exit::PORT_TAKEN,
            format!("The address {address} ({key}) is taken; stop the program that listens there or choose another {key}."),
            error,
        ),
        ErrorKind::PermissionDenied => ExitError::caused(
            exit::CONFIG,
            format!("This user may not listen on {address} ({key}); choose a port above 1023."),
            error,
        ),
        _ => ExitError::caused(
            exit::CONFIG,
            format!("The address {address} ({key}) cannot be listened on; is it one of this machine's?"),
            error,
        ),
    })
}

/// Reads certificate and key for `tls = "files"`.
pub fn load_tls(config: &ServerConfig) -> Result<Option<TlsAcceptor>, ExitError> {
    if config.tls == Tls::Off {
        return Ok(None);
    }
    let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else {
        return Err(ExitError::new(
            exit::CONFIG,
            "server.tls = \"files\" needs server.tls_certificate and server.tls_key.",
        ));
    };
    let wrong = |file: &Path, what: &str, error: String| {
        ExitError::caused(exit::CONFIG, format!("{} holds no usable {what} in PEM.", file.display()), error)
    };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(certificate, "certificate", error.to_string()))?;
    if chain.is_empty() {
        return Err(wrong(certificate, "certificate", "the file has none".to_owned()));
    }
    let secret =
        PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, "private key", error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(|error| wrong(key, "pair of key and certificate", error.to_string()))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(tls))))
}

async fn accept(app: Arc<App>, listener: TcpListener, front: Front) {
    let stop = app.tasks.soft();
    let peers = Peers::default();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, peer)) => admit(&app, stream, peer.ip().to_canonical(), &peers, front.clone()),
            // The client is gone already.
            Err(error)
                if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => {}
            Err(error) => {
                // Out of file descriptors or memory: running connections free some soon.
                tracing::error!(%error, "cannot accept connections");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

fn admit(app: &Arc<App>, stream: TcpStream, peer: IpAddr, peers: &Peers, front: Front) {
    let server = &app.config.server;
    let api = matches!(front, Front::Api(_));
    if api && !server.admits(peer) {
        app.telemetry.refused_peer.increment(1);
        return;
    }
    let cap = if server.trusts(peer) { 0 } else { server.connections_per_address };
    let Some(seat) = peers.take(peer, cap) else {
        app.telemetry.refused_crowd.increment(1);
        return;
    };
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection closed before it began");
        return;
    }
    let app = app.clone();
    let tasks = app.tasks.clone();
    tasks.spawn("connection", async move {
        let _seat = seat;
        app.telemetry.connections.increment(1.0);
        let result = connect(&app, stream, Peer(peer), front).await;
        app.telemetry.connections.decrement(1.0);
        if let Err(error) = result {
            tracing::debug!(%error, "connection ended");
        }
    });
}

async fn connect(app: &Arc<App>, stream: TcpStream, peer: Peer, front: Front) -> anyhow::Result<()> {
    let activity = Activity::new();
    let spans = spans_of(app);
    let tls = app.tls.as_ref().filter(|_| matches!(front, Front::Api(_)));
    match tls {
        None => {
            let mut watched = Watched::new(stream, activity.clone(), spans);
            let http2 = watched.speaks_http2().await?;
            let watched = watched.guarded_by(guard_of(app, http2));
            // Boxed, as below: else each connection is as large as one with TLS.
            Box::pin(converse(app, watched, activity, peer, front, http2)).await
        }
        Some(tls) => {
            let stream = Box::pin(tokio::time::timeout(HANDSHAKE, tls.accept(stream))).await??;
            let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
            let watched = Watched::new(stream, activity.clone(), spans).guarded_by(guard_of(app, http2));
            Box::pin(converse(app, watched, activity, peer, front, http2)).await
        }
    }
}

fn guard_of(app: &Arc<App>, http2: bool) -> Option<Guard> {
    if http2 {
        return h2_limits(app).map(|_| Guard::Frames(Frames::default()));
    }
    let app = app.clone();
    Some(Guard::Framing(Framing::default(), Arc::new(move |refusal| edge::print_refusal(&app, refusal))))
}

/// The limits on resets that h2 keeps itself; none in the known-bad variant.
fn h2_limits(app: &App) -> Option<usize> {
    #[cfg(feature = "sabotage")]
    if app.sabotage == Some(crate::sabotage::Sabotage::NoFrameLimits) {
        return None;
    }
    let _ = app;
    Some(H2_RESETS)
}

fn spans_of(app: &App) -> Spans {
    #[cfg(feature = "sabotage")]
    if app.sabotage == Some(crate::sabotage::Sabotage::NoAcceptTimer) {
        return Spans::default();
    }
    let server = &app.config.server;
    Spans {
        head: Some(Duration::from_millis(server.head_ms)),
        keep_alive: Some(Duration::from_millis(server.keep_alive_ms)),
        write_stall: Some(Duration::from_millis(server.write_stall_ms)),
    }
}

async fn converse<T>(
    app: &Arc<App>,
    io: Watched<T>,
    activity: Arc<Activity>,
    peer: Peer,
    front: Front,
    http2: bool,
) -> anyhow::Result<()>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(|request: Request<Incoming>| {
        let (app, front, in_flight) = (app.clone(), front.clone(), activity.begin());
        async move {
            let response = respond(&app, front, peer, request).await;
            let in_flight = match response.status() {
                StatusCode::SWITCHING_PROTOCOLS => {
                    in_flight.hand_over();
                    None
                }
                _ => Some(in_flight),
            };
            Ok::<_, Infallible>(response.map(|body| TrackedBody::new(body, in_flight)))
        }
    });
    let (soft, hard) = (app.tasks.soft(), app.tasks.hard());
    let io = TokioIo::new(io);
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(StreamTasks {
            tasks: app.tasks.clone(),
            write_stall: h2_limits(app).and(spans_of(app).write_stall),
        });
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS)
            .initial_stream_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD as u32)
            .max_pending_accept_reset_streams(h2_limits(app))
            .max_local_error_reset_streams(h2_limits(app))
            .keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(20));
        let mut connection = pin!(builder.serve_connection(io, service));
        tokio::select! {
            result = connection.as_mut() => return Ok(result?),
            () = soft.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            result = connection => Ok(result?),
            () = last_words(&hard) => Ok(()),
        }
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        // The socket has the timers; hyper's would end idle connections with the head's span.
        builder.max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS).header_read_timeout(None);
        let mut connection = pin!(builder.serve_connection(io, service).with_upgrades());
        tokio::select! {
            result = connection.as_mut() => return Ok(result?),
            () = soft.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            result = connection => Ok(result?),
            () = last_words(&hard) => Ok(()),
        }
    }
}

/// Resolves a moment after the hard stop: the requests that end by it still tell their clients so.
async fn last_words(hard: &CancellationToken) {
    /// Below the time that tasks get after the hard stop.
    const LAST_WORDS: Duration = Duration::from_millis(700);
    hard.cancelled().await;
    tokio::time::sleep(LAST_WORDS).await;
}

async fn respond(app: &Arc<App>, front: Front, peer: Peer, request: Request<Incoming>) -> Response<Body> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(peer);
    match front {
        Front::Api(mut router) => edge::answer(app, &mut router, request).await,
        Front::Operator(router) => match tower::ServiceExt::oneshot(router, request).await {
            Ok(response) => response,
            Err(never) => match never {},
        },
    }
}

/// Streams of HTTP/2 become tasks of the app, each held to the time that a client may refuse to take bytes.
#[derive(Clone)]
struct StreamTasks {
    tasks: Tasks,
    write_stall: Option<Duration>,
}

impl<F> hyper::rt::Executor<F> for StreamTasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.tasks.spawn("http2 stream", unless_stuck(future, self.write_stall));
    }
}

/// Connections per address.
#[derive(Clone, Default)]
struct Peers(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Peers {
    /// A seat, unless the address has `cap` of them. 0 means no cap.
    fn take(&self, peer: IpAddr, cap: usize) -> Option<Seat> {
        let mut counts = self.0.lock();
        let count = counts.entry(peer).or_insert(0);
        if cap > 0 && *count >= cap {
            return None;
        }
        *count += 1;
        Some(Seat { peers: self.clone(), peer })
    }
}

/// One connection of an address.
struct Seat {
    peers: Peers,
    peer: IpAddr,
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut counts = self.peers.0.lock();
        if let Some(count) = counts.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.peer);
            }
        }
    }
}

/// Free address on loopback, for tests.
pub async fn bind_loopback() -> io::Result<TcpListener> {
    TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_gets_as_many_seats_as_the_cap_says() {
        let peers = Peers::default();
        let address: IpAddr = "192.0.2.1".parse().unwrap();
        let first = peers.take(address, 2);
        let second = peers.take(address, 2);
        assert!(first.is_some() && second.is_some());
        assert!(peers.take(address, 2).is_none());
        assert!(peers.take("192.0.2.2".parse().unwrap(), 2).is_some());
        drop(first);
        assert!(peers.take(address, 2).is_some());
        drop(second);
        assert!(peers.0.lock().is_empty());
    }

    #[tokio::test]
    async fn a_taken_port_has_its_exit_code() {
        let taken = bind_loopback().await.unwrap();
        let error = bind(taken.local_addr().unwrap(), "server.bind").await.unwrap_err();
        assert_eq!(error.code(), exit::PORT_TAKEN);
        assert!(error.to_string().contains("server.bind"));
    }
}
