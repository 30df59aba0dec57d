//! The node's end of a tunnel: an HTTP/2 server on the connection that it opened itself.

use std::future::poll_fn;

use bytes::{Bytes, BytesMut};
use cxmpute_runtime::Tasks;
use cxmpute_wire::control::{FromNode, ToNode};
use cxmpute_wire::{Code, Epoch, Timestamp};
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use crate::control::{ControlReceiver, ControlSender, Gone, send_all};
use crate::drain::{CloseReason, Ending, FLUSH, FinishOnDrop};
use crate::handshake::{CONTROL_PATH, CX_CODE, CX_EPOCH, CX_REQUEST_ID, WorkHead, once};
use crate::link::{FRAME_BYTES, REMEMBERED_RESETS, SMALL_FRAME_BUDGET_BYTES, supervise};
use crate::ping::{PingConfig, RoundTrip};

/// Most pieces of work a node may take at once, whatever it claims.
const CAPACITY_LIMIT: u32 = 4096;
/// Streams beyond the capacity: the control stream, and cancelled work whose reset is still on its way.
const RESERVE_STREAMS: u32 = 64;
/// Bytes of one request that may wait unread.
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// Bytes of all requests that may wait unread.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;
/// Bytes of one answer that may wait to be sent.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Streams that may be reset before we looked at them. With the default of 20, clients that hang up while this
/// process is busy would end the tunnel (DESIGN D2).
const PENDING_RESETS: usize = 100_000;

/// What the gateway wants from a node.
#[derive(Debug)]
pub enum Incoming {
    /// The control stream has opened.
    Control(ControlPair),
    /// Work.
    Work(WorkRequest),
}

/// The node's end of the control stream.
pub struct ControlPair {
    /// To the gateway.
    pub sender: ControlSender<FromNode>,
    /// From the gateway.
    pub receiver: ControlReceiver<ToNode>,
}

impl std::fmt::Debug for ControlPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ControlPair")
    }
}

/// A tunnel as the node holds it. Dropping it ends the tunnel.
#[derive(Debug)]
pub struct NodeEnd {
    /// The number of this tunnel; the gateway counts.
    pub epoch: Epoch,
    /// The gateway's time at the handshake.
    pub server_time: Timestamp,
    incoming: mpsc::Receiver<Incoming>,
    handle: NodeHandle,
}

/// What else may be done with a tunnel while someone waits for its work.
#[derive(Clone, Debug)]
pub struct NodeHandle {
    ending: Ending,
    round_trip: RoundTrip,
}

impl NodeHandle {
    /// Takes no new work from now on; running work may finish. The gateway learns it at once.
    pub fn drain(&self) {
        self.ending.ask_drain();
    }

    /// Ends the tunnel; work that runs is lost.
    pub fn close(&self, code: Code) {
        self.ending.ask(CloseReason::Local(code));
    }

    /// Resolves when the tunnel has ended.
    pub async fn closed(&self) -> CloseReason {
        self.ending.closed().await
    }

    /// Why the tunnel ended, once it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.ending.reason()
    }

    /// The last measured round trip.
    pub fn rtt(&self) -> Option<std::time::Duration> {
        self.round_trip.get()
    }
}

impl Drop for NodeEnd {
    fn drop(&mut self) {
        self.handle.close(Code::Draining);
    }
}

impl NodeEnd {
    /// Becomes the server on an upgraded connection.
    pub async fn start<T>(
        io: T,
        epoch: Epoch,
        server_time: Timestamp,
        capacity: u32,
        ping: PingConfig,
        tasks: &Tasks,
    ) -> Result<Self, h2::Error>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let streams = capacity.min(CAPACITY_LIMIT) + RESERVE_STREAMS;
        let mut connection: Connection<T, Bytes> = h2::server::Builder::new()
            .initial_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_frame_size(FRAME_BYTES)
            .max_concurrent_streams(streams)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_local_error_reset_streams(None)
            .data_frame_budget(SMALL_FRAME_BUDGET_BYTES)
            .max_send_buffer_size(SEND_BUFFER_BYTES)
            .max_header_list_size(16 * 1024)
            .handshake(io)
            .await?;
        let handle = NodeHandle { ending: Ending::default(), round_trip: RoundTrip::default() };
        let (sender, incoming) = mpsc::channel(usize::try_from(streams).unwrap_or(usize::MAX));
        if let Some(pings) = connection.ping_pong() {
            let watch = supervise(pings, ping, handle.round_trip.clone(), handle.ending.clone(), tasks);
            tasks.spawn("tunnel-watch", watch);
        }
        tasks.spawn("tunnel", run(connection, sender, epoch, handle.ending.clone()));
        Ok(Self { epoch, server_time, incoming, handle })
    }

    /// The next piece of work; `None` when the tunnel has ended ([`NodeHandle::close_reason`] says why).
    pub async fn next(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// See [`NodeHandle`].
    pub fn handle(&self) -> NodeHandle {
        self.handle.clone()
    }

    /// See [`NodeHandle::drain`].
    pub fn drain(&self) {
        self.handle.drain();
    }

    /// Why the tunnel ended, once it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.handle.close_reason()
    }
}

/// Drives the connection and hands its streams out.
async fn run<T>(
    mut connection: Connection<T, Bytes>,
    sender: mpsc::Sender<Incoming>,
    epoch: Epoch,
    ending: Ending,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let _finish = FinishOnDrop(ending.clone());
    let mut asked = std::pin::pin!(ending.asked());
    let mut drain = std::pin::pin!(ending.drain_asked());
    let mut draining = false;
    let reason = loop {
        tokio::select! {
            biased;
            next = connection.accept() => match next {
                Some(Ok((request, respond))) => receive(request, respond, epoch, &sender),
                Some(Err(error)) => break CloseReason::Lost(error.to_string()),
                None => break CloseReason::Remote,
            },
            reason = &mut asked => {
                if matches!(reason, CloseReason::Local(_)) {
                    ending.finish(reason.clone());
                    connection.abrupt_shutdown(Reason::NO_ERROR);
                    let _ = tokio::time::timeout(FLUSH, poll_fn(|cx| connection.poll_closed(cx))).await;
                }
                break reason;
            }
            () = &mut drain, if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
        }
    };
    tracing::debug!(%reason, "tunnel ended");
    ending.finish(reason);
}

fn receive(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    epoch: Epoch,
    sender: &mpsc::Sender<Incoming>,
) {
    let (parts, body) = request.into_parts();
    let incoming = if parts.uri.path() == CONTROL_PATH {
        match respond.send_response(Response::new(()), false) {
            Ok(stream) => Incoming::Control(ControlPair {
                sender: ControlSender::new(stream),
                receiver: ControlReceiver::new(body),
            }),
            Err(_) => return,
        }
    } else {
        match WorkHead::read(parts.uri.path(), &parts.headers) {
            Ok(head) if head.epoch == epoch => Incoming::Work(WorkRequest { head, body, respond }),
            Ok(_) => return refuse(&mut respond, Code::EpochStale, "the work belongs to another tunnel"),
            Err(error) => return refuse(&mut respond, Code::InvalidParameter, &error.to_string()),
        }
    };
    match sender.try_send(incoming) {
        Ok(()) => {}
        Err(mpsc::error::TrySendError::Full(Incoming::Work(mut work))) => {
            work.respond.send_reset(Reason::REFUSED_STREAM);
        }
        // Dropping a control pair, or work after the end, resets its stream.
        Err(_) => {}
    }
}

fn refuse(respond: &mut SendResponse<Bytes>, code: Code, message: &str) {
    let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
    let mut response = Response::new(());
    *response.status_mut() = status;
    response.headers_mut().insert(CX_CODE, HeaderValue::from_static(code.as_str()));
    let body = serde_json::json!({ "error": { "code": code, "message": message } }).to_string();
    // An error means that the gateway is no longer interested.
    if let Ok(mut stream) = respond.send_response(response, false) {
        let _ = stream.send_data(body.into(), true);
    }
}

/// Work that the node has neither accepted nor refused yet.
#[derive(Debug)]
pub struct WorkRequest {
    /// What is asked.
    pub head: WorkHead,
    body: RecvStream,
    respond: SendResponse<Bytes>,
}

/// A request whose body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// It is longer than allowed.
    #[error("the body of the work is too large")]
    TooLarge,
    /// The gateway cancelled, or the tunnel ended.
    #[error("the work was cancelled")]
    Gone,
}

impl WorkRequest {
    /// The whole body. Call once, before accepting.
    pub async fn body(&mut self, limit_bytes: usize) -> Result<Bytes, BodyError> {
        let mut whole = BytesMut::new();
        while let Some(part) = self.body.data().await {
            let part = part.map_err(|_| BodyError::Gone)?;
            let _ = self.body.flow_control().release_capacity(part.len());
            if whole.len() + part.len() > limit_bytes {
                return Err(BodyError::TooLarge);
            }
            if whole.is_empty() && self.body.is_end_stream() {
                return Ok(part);
            }
            whole.extend_from_slice(&part);
        }
        Ok(whole.freeze())
    }

    /// Takes the work on; the gateway learns it at once.
    pub fn accept(self) -> Result<WorkResponder, Gone> {
        self.accept_with(HeaderMap::new())
    }

    /// The same with headers beside those of the protocol. A gateway must ignore them, which is what this is for: to
    /// see that it does.
    pub fn accept_with(mut self, headers: HeaderMap) -> Result<WorkResponder, Gone> {
        let request_id = HeaderValue::from_str(self.head.request_id.as_str()).map_err(|_| Gone)?;
        let mut response = Response::new(());
        response.headers_mut().insert(CX_REQUEST_ID, once(request_id));
        response.headers_mut().insert(CX_EPOCH, self.head.epoch.0.into());
        response.headers_mut().extend(headers);
        let stream = self.respond.send_response(response, false).map_err(|_| Gone)?;
        Ok(WorkResponder { head: self.head, stream, finished: false, _body: self.body })
    }

    /// Says no; the gateway may ask another node.
    pub fn refuse(mut self, code: Code, message: &str) {
        refuse(&mut self.respond, code, message);
    }

    /// Resolves when the gateway cancels or the tunnel ends.
    pub async fn cancelled(&mut self) {
        let _ = poll_fn(|cx| self.respond.poll_reset(cx)).await;
    }
}

/// Work that the node has accepted; its answer is sent here. Dropping it unfinished breaks the answer off, which the
/// gateway sees as an error.
#[derive(Debug)]
pub struct WorkResponder {
    /// What was asked.
    pub head: WorkHead,
    stream: SendStream<Bytes>,
    finished: bool,
    /// Kept because dropping an unread body would reset the stream.
    _body: RecvStream,
}

impl WorkResponder {
    /// Sends part of the answer; waits while the gateway (that is: the client) does not read. After an error nobody
    /// wants the rest.
    pub async fn send(&mut self, data: Bytes) -> Result<(), Gone> {
        send_all(&mut self.stream, data).await
    }

    /// The answer is complete.
    pub fn finish(mut self) {
        self.finished = true;
        let _ = self.stream.send_data(Bytes::new(), true);
    }

    /// Resolves when the gateway cancels or the tunnel ends, whether or not anything is being sent.
    pub async fn cancelled(&mut self) {
        let _ = poll_fn(|cx| self.stream.poll_reset(cx)).await;
    }
}

impl Drop for WorkResponder {
    fn drop(&mut self) {
        if !self.finished {
            self.stream.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}
