//! The gateway's end of a tunnel: an HTTP/2 client on a connection that the node opened.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::Tasks;
use cxmpute_wire::Code;
use cxmpute_wire::control::{FromNode, ToNode};
use h2::client::{Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::control::{ControlError, ControlReceiver, ControlSender};
use crate::drain::{CloseReason, Ending, FLUSH, FinishOnDrop};
use crate::handshake::{CONTROL_PATH, WorkHead};
use crate::ping::{self, PingConfig, RoundTrip};
use crate::work::WorkStream;

/// Limits and times of a tunnel.
#[derive(Clone, Debug)]
pub struct LinkConfig {
    /// Liveness.
    pub ping: PingConfig,
    /// Time for the upgrade and the HTTP/2 preface.
    pub handshake_timeout: Duration,
    /// Bytes of one answer that may wait unread; a slow client holds back only its own stream.
    pub stream_window_bytes: u32,
    /// Bytes of all answers of a node that may wait unread.
    pub connection_window_bytes: u32,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self {
            ping: PingConfig::default(),
            handshake_timeout: Duration::from_secs(10),
            stream_window_bytes: 256 * 1024,
            connection_window_bytes: 8 * 1024 * 1024,
        }
    }
}

/// Frames are small so that no stream waits long behind another.
pub(crate) const FRAME_BYTES: u32 = 16 * 1024;

/// Streams we reset whose late frames are still expected. A client that hangs up resets a stream; this many at once
/// must not look like an attack.
pub(crate) const REMEMBERED_RESETS: usize = 10_000;

/// Bookkeeping that unread small frames may use. `h2` closes the connection when it is used up, charging up to 256
/// bytes per frame, and does not give back what it charged for frames of cancelled streams; its default (half the
/// connection window) would let a few slow clients, or some ten thousand cancels, end a node's tunnel.
pub(crate) const SMALL_FRAME_BUDGET_BYTES: usize = 256 * 1024 * 1024;

/// A tunnel that did not start.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The HTTP/1.1 side of the upgrade failed.
    #[error("the upgrade failed: {0}")]
    Upgrade(String),
    /// The node does not speak HTTP/2.
    #[error("no HTTP/2 with the node: {0}")]
    Preface(#[from] h2::Error),
    /// The node took too long.
    #[error("the node did not finish the handshake in time")]
    Timeout,
}

/// A stream that could not be opened; nothing reached the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The tunnel has ended.
    #[error("the tunnel has ended ({0})")]
    Closed(CloseReason),
    /// The node takes no new work on this tunnel.
    #[error("the node takes no new work")]
    Draining,
    /// As many streams are open as the node allows.
    #[error("the node has no stream left")]
    Full,
    /// The head cannot be sent: a fault of the caller.
    #[error("the head of the work is not sendable: {0}")]
    Head(String),
}

/// One tunnel. Clones share it; it ends when the last clone and the last stream are dropped.
#[derive(Clone)]
pub struct Link {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    send: SendRequest<Bytes>,
    ending: Ending,
    round_trip: RoundTrip,
    open: AtomicUsize,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.ending.ask(CloseReason::Local(Code::Draining));
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("open", &self.open_streams()).field("end", &self.close_reason()).finish()
    }
}

impl Link {
    /// Starts the tunnel on an upgraded connection.
    pub async fn start<T>(io: T, config: LinkConfig, tasks: &Tasks) -> Result<Self, LinkError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let mut builder = h2::client::Builder::new();
        builder
            .initial_window_size(config.stream_window_bytes)
            .initial_connection_window_size(config.connection_window_bytes)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .max_local_error_reset_streams(None)
            .data_frame_budget(SMALL_FRAME_BUDGET_BYTES)
            .max_header_list_size(16 * 1024)
            .enable_push(false);
        let shake = builder.handshake::<T, Bytes>(io);
        let (send, mut connection) = match tokio::time::timeout(config.handshake_timeout, shake).await {
            Ok(result) => result?,
            Err(_) => return Err(LinkError::Timeout),
        };
        let ending = Ending::default();
        let round_trip = RoundTrip::default();
        if let Some(pings) = connection.ping_pong() {
            tasks.spawn(
                "tunnel-watch",
                supervise(pings, config.ping, round_trip.clone(), ending.clone(), tasks),
            );
        }
        tasks.spawn("tunnel", run(connection, ending.clone()));
        Ok(Self { inner: Arc::new(Inner { send, ending, round_trip, open: AtomicUsize::new(0) }) })
    }

    /// Opens a work stream and sends the whole request. Nothing waits here: the answer is awaited on the stream.
    pub fn open(&self, head: &WorkHead, body: Bytes) -> Result<WorkStream, OpenError> {
        let request = head.request().map_err(|error| OpenError::Head(error.to_string()))?;
        let slot = Slot::take(&self.inner);
        if self.inner.open.load(Ordering::Relaxed) > self.inner.send.current_max_send_streams() {
            return Err(OpenError::Full);
        }
        let (response, send) = self.request(request, Some(body))?;
        Ok(WorkStream::new(response, send, slot, head.request_id.clone()))
    }

    /// Sends a request with its whole body, or leaves the body open when there is none yet.
    fn request(
        &self,
        request: http::Request<()>,
        body: Option<Bytes>,
    ) -> Result<(ResponseFuture, SendStream<Bytes>), OpenError> {
        if let Some(reason) = self.inner.ending.reason() {
            return Err(OpenError::Closed(reason));
        }
        let mut send = self.inner.send.clone();
        let is_empty = body.as_ref().is_some_and(Bytes::is_empty);
        let (response, mut stream) = send.send_request(request, is_empty).map_err(|_| self.refusal())?;
        if let Some(body) = body.filter(|_| !is_empty) {
            stream.send_data(body, true).map_err(|_| self.refusal())?;
        }
        Ok((response, stream))
    }

    fn refusal(&self) -> OpenError {
        match self.inner.ending.reason() {
            Some(reason) => OpenError::Closed(reason),
            None => OpenError::Draining,
        }
    }

    /// Opens the control stream. There is one per tunnel; the node answers a second one with a refusal.
    pub async fn control(&self) -> Result<(ControlSender<ToNode>, ControlReceiver<FromNode>), ControlError> {
        let request = http::Request::post(format!("http://node{CONTROL_PATH}"))
            .version(http::Version::HTTP_2)
            .body(())
            .map_err(|error| ControlError::Protocol(error.to_string()))?;
        let (response, send) = self.request(request, None).map_err(|_| ControlError::Closed)?;
        let response = response.await.map_err(|_| ControlError::Closed)?;
        if response.status() != StatusCode::OK {
            return Err(ControlError::Refused(response.status().as_u16()));
        }
        let receive: RecvStream = response.into_body();
        Ok((ControlSender::new(send), ControlReceiver::new(receive)))
    }

    /// Ends the tunnel: what was written last is still sent, running work is lost.
    pub fn close(&self, code: Code) {
        self.inner.ending.ask(CloseReason::Local(code));
    }

    /// Resolves when the tunnel has ended.
    pub async fn closed(&self) -> CloseReason {
        let ending = self.inner.ending.clone();
        ending.closed().await
    }

    /// A waiter for the end that does not keep the tunnel open.
    pub fn end(&self) -> impl Future<Output = CloseReason> + Send + 'static {
        let ending = self.inner.ending.clone();
        async move { ending.closed().await }
    }

    /// Whether the tunnel has ended.
    pub fn is_closed(&self) -> bool {
        self.inner.ending.is_closed()
    }

    /// Why the tunnel ended, once it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.inner.ending.reason()
    }

    /// The last measured round trip.
    pub fn rtt(&self) -> Option<Duration> {
        self.inner.round_trip.get()
    }

    /// How long the node has owed an answer to a ping; zero while it owes none. Long before the tunnel counts as
    /// dead, this says that new work is better sent elsewhere.
    pub fn quiet(&self) -> Duration {
        self.inner.round_trip.quiet()
    }

    /// Whether the node answered a ping within the last `span`. A tunnel that did not, for longer than the time
    /// between pings, may have swallowed what was sent meanwhile.
    pub fn answered_within(&self, span: Duration) -> bool {
        self.inner.round_trip.answered_within(span)
    }

    /// Work streams that are open now.
    pub fn open_streams(&self) -> usize {
        self.inner.open.load(Ordering::Relaxed)
    }
}

/// One of the node's streams; given back when dropped.
pub(crate) struct Slot {
    inner: Arc<Inner>,
}

impl Slot {
    fn take(inner: &Arc<Inner>) -> Self {
        inner.open.fetch_add(1, Ordering::Relaxed);
        Self { inner: inner.clone() }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.inner.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Asks for the end when the other side is silent or our process stops.
pub(crate) fn supervise(
    pings: h2::PingPong,
    config: PingConfig,
    round_trip: RoundTrip,
    ending: Ending,
    tasks: &Tasks,
) -> impl Future<Output = ()> + Send + 'static {
    let hard = tasks.hard();
    async move {
        tokio::select! {
            () = ping::watch(pings, config, round_trip) => ending.ask(CloseReason::Silent),
            () = hard.cancelled() => ending.ask(CloseReason::Stopping),
            _ = ending.closed() => {}
        }
    }
}

/// Drives the connection. Dropping it at the end fails every stream that is still open.
async fn run<T>(connection: Connection<T, Bytes>, ending: Ending)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _finish = FinishOnDrop(ending.clone());
    let mut connection = std::pin::pin!(connection);
    let reason = tokio::select! {
        biased;
        result = &mut connection => match result {
            Ok(()) => CloseReason::Remote,
            Err(error) => CloseReason::Lost(error.to_string()),
        },
        reason = ending.asked() => {
            if matches!(reason, CloseReason::Local(_)) {
                // From now on nothing new may be opened, while the last words leave.
                ending.finish(reason.clone());
                let _ = tokio::time::timeout(FLUSH, &mut connection).await;
            }
            reason
        }
    };
    tracing::debug!(%reason, "tunnel ended");
    ending.finish(reason);
}
