//! The timers of a connection, worn by the socket itself.
//!
//! Neither `axum::serve` nor hyper's automatic protocol choice arms a timer before the first byte, and hyper's own
//! head timer also ends idle keep-alive connections. So the socket watches: the head of a request must be complete in
//! time, an idle connection ends after its keep-alive time, and a peer that takes no bytes is cut off.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use crate::frames::{Frames, POISON};
use crate::framing::{Framing, Refusal};
use crate::stall::Taking;
use axum::body::Body;
use bytes::{Buf, Bytes};
use futures_util::task::AtomicWaker;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// The spans that a connection is held to; `None` switches a timer off.
#[derive(Debug, Clone, Copy, Default)]
pub struct Spans {
    /// From the first byte of a head (or from the accept) to its end.
    pub head: Option<Duration>,
    /// Without a request.
    pub keep_alive: Option<Duration>,
    /// With bytes that the peer does not take.
    pub write_stall: Option<Duration>,
}

/// What socket and requests of one connection know of each other.
#[derive(Debug)]
pub struct Activity {
    start: Instant,
    in_flight: AtomicUsize,
    /// Milliseconds after `start`, plus one; 0 while no head is being received.
    head_since: AtomicU64,
    idle_since: AtomicU64,
    /// The connection became something else, with timers of its own.
    handed_over: AtomicBool,
    /// Who reads without a timer because a request runs; woken when the last one ends, so that the timer starts.
    reader: AtomicWaker,
}

impl Activity {
    /// A connection that was accepted just now: its first head is due.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            in_flight: AtomicUsize::new(0),
            head_since: AtomicU64::new(1),
            idle_since: AtomicU64::new(0),
            handed_over: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        })
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A request was received; it runs until the guard is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.head_since.store(0, Ordering::Release);
        InFlight(self.clone())
    }

    fn bytes_arrived(&self) {
        if self.in_flight.load(Ordering::Acquire) == 0 && self.head_since.load(Ordering::Acquire) == 0 {
            self.head_since.store(self.elapsed_ms() + 1, Ordering::Release);
        }
    }

    /// When the connection has waited long enough, if it waits for the peer at all.
    fn read_deadline(&self, spans: &Spans) -> Option<Instant> {
        if self.in_flight.load(Ordering::Acquire) > 0 || self.handed_over.load(Ordering::Acquire) {
            return None;
        }
        match self.head_since.load(Ordering::Acquire) {
            0 => Some(
                self.start
                    + Duration::from_millis(self.idle_since.load(Ordering::Acquire))
                    + spans.keep_alive?,
            ),
            since => Some(self.start + Duration::from_millis(since - 1) + spans.head?),
        }
    }
}

/// A request in progress.
#[derive(Debug)]
pub struct InFlight(Arc<Activity>);

impl InFlight {
    /// The connection changes hands (an upgrade): its timers never run again.
    pub fn hand_over(self) {
        self.0.handed_over.store(true, Ordering::Release);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.idle_since.store(self.0.elapsed_ms(), Ordering::Release);
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.reader.wake();
        }
    }
}

/// A response body that counts as a request in progress until it is sent or dropped.
pub struct TrackedBody {
    inner: Body,
    taking: Option<Taking>,
    _in_flight: Option<InFlight>,
}

impl TrackedBody {
    /// Ties the guard to the body. Made in the task of its stream, it tells there whether the client takes what it gives.
    #[must_use]
    pub fn new(inner: Body, in_flight: Option<InFlight>) -> Self {
        Self { inner, taking: Taking::of_this_stream(), _in_flight: in_flight }
    }
}

impl http_body::Body for TrackedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(cx);
        if let Some(taking) = &self.taking {
            match &frame {
                Poll::Ready(Some(Ok(_))) => taking.offered(),
                Poll::Ready(_) | Poll::Pending => taking.caught_up(),
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// How a refusal of the framing is printed, with its head.
pub type Reply = Arc<dyn Fn(&Refusal) -> Vec<u8> + Send + Sync>;

/// Who looks at the bytes before the protocol does.
pub enum Guard {
    /// HTTP/1: ambiguous framing is answered and the connection ended.
    Framing(Framing, Reply),
    /// HTTP/2: floods are ended with GOAWAY.
    Frames(Frames),
}

/// A socket with timers.
pub struct Watched<T> {
    io: T,
    guard: Option<Guard>,
    /// Nothing is read any more.
    ended: bool,
    /// Bytes read while the protocol was being recognised.
    prefix: Bytes,
    activity: Arc<Activity>,
    spans: Spans,
    read_sleep: Option<Pin<Box<Sleep>>>,
    write_sleep: Option<Pin<Box<Sleep>>>,
    stalled: bool,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Watched<T> {
    /// Watches a socket.
    pub fn new(io: T, activity: Arc<Activity>, spans: Spans) -> Self {
        Self {
            io,
            guard: None,
            ended: false,
            prefix: Bytes::new(),
            activity,
            spans,
            read_sleep: None,
            write_sleep: None,
            stalled: false,
        }
    }

    /// From now on somebody looks at the bytes first, from the first one on.
    #[must_use]
    pub fn guarded_by(mut self, guard: Option<Guard>) -> Self {
        self.guard = guard;
        self
    }

    /// Shows the guard what arrived after `before`.
    fn look(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>, before: usize) -> io::Result<()> {
        if self.activity.handed_over.load(Ordering::Acquire) {
            self.guard = None;
        }
        match &mut self.guard {
            None => Ok(()),
            Some(Guard::Framing(framing, reply)) => {
                let Err(refusal) = framing.feed(&buffer.filled()[before..]) else { return Ok(()) };
                buffer.set_filled(before);
                self.ended = true;
                // In the middle of another answer there is nothing to say.
                if self.activity.in_flight.load(Ordering::Acquire) == 0 {
                    let bytes = reply(&refusal);
                    // It fits the socket's buffer, which is empty; where it does not, the client is beyond help.
                    let _ = Pin::new(&mut self.io).poll_write(cx, &bytes);
                }
                Err(io::Error::new(ErrorKind::InvalidData, refusal.message))
            }
            Some(Guard::Frames(frames)) => {
                if let Some(end) = frames.feed(&buffer.filled()[before..], self.activity.start.elapsed()) {
                    buffer.set_filled(before + end);
                    self.prefix = Bytes::from_static(&POISON);
                    self.ended = true;
                }
                Ok(())
            }
        }
    }

    /// Whether the client begins with the preface of HTTP/2. The bytes stay readable.
    pub async fn speaks_http2(&mut self) -> io::Result<bool> {
        /// Enough to tell `PRI * HTTP/2.0` from every HTTP/1 method.
        const TELLING: usize = 3;
        let mut start = Vec::with_capacity(1024);
        while start.len() < TELLING {
            if self.read_buf(&mut start).await? == 0 {
                break;
            }
            if !b"PRI".starts_with(&start[..start.len().min(TELLING)]) {
                break;
            }
        }
        let http2 = start.starts_with(b"PRI");
        self.prefix = Bytes::from(start);
        Ok(http2)
    }

    fn check_stall<R>(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        if poll.is_ready() {
            self.stalled = false;
            return poll;
        }
        let Some(span) = self.spans.write_stall else { return poll };
        if self.activity.handed_over.load(Ordering::Acquire) {
            return poll;
        }
        let sleep = self.write_sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(span)));
        if !self.stalled {
            self.stalled = true;
            sleep.as_mut().reset(Instant::now() + span);
        }
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                ErrorKind::TimedOut,
                "the client does not take what it asked for",
            ))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.prefix.has_remaining() {
            let length = this.prefix.len().min(buffer.remaining());
            let before = buffer.filled().len();
            buffer.put_slice(&this.prefix.split_to(length));
            return Poll::Ready(if this.ended { Ok(()) } else { this.look(cx, buffer, before) });
        }
        if this.ended {
            return Poll::Ready(Ok(()));
        }
        let before = buffer.filled().len();
        if let Poll::Ready(result) = Pin::new(&mut this.io).poll_read(cx, buffer) {
            if buffer.filled().len() > before {
                this.activity.bytes_arrived();
                return Poll::Ready(result.and_then(|()| this.look(cx, buffer, before)));
            }
            return Poll::Ready(result);
        }
        // Registered before the look: a request that ends in between wakes us.
        this.activity.reader.register(cx.waker());
        let Some(deadline) = this.activity.read_deadline(&this.spans) else { return Poll::Pending };
        let sleep = this.read_sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if sleep.deadline() != deadline {
            sleep.as_mut().reset(deadline);
        }
        match sleep.as_mut().poll(cx) {
            Poll::Ready(()) => {
                Poll::Ready(Err(io::Error::new(ErrorKind::TimedOut, "the client sends nothing")))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.io).poll_write(cx, bytes);
        this.check_stall(cx, poll)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.io).poll_write_vectored(cx, slices);
        this.check_stall(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.io).poll_flush(cx);
        this.check_stall(cx, poll)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let poll = Pin::new(&mut this.io).poll_shutdown(cx);
        this.check_stall(cx, poll)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    const SPANS: Spans = Spans {
        head: Some(Duration::from_secs(10)),
        keep_alive: Some(Duration::from_secs(60)),
        write_stall: Some(Duration::from_secs(30)),
    };

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_cut_at_the_head_span() {
        let (_client, server) = tokio::io::duplex(64);
        let start = Instant::now();
        let mut watched = Watched::new(server, Activity::new(), SPANS);
        assert_eq!(watched.read_u8().await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickled_head_gets_no_more_time() {
        let (mut client, server) = tokio::io::duplex(64);
        let start = Instant::now();
        let mut watched = Watched::new(server, Activity::new(), SPANS);
        let writer = async {
            loop {
                client.write_all(b"x").await.unwrap();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let reader = async {
            loop {
                if let Err(error) = watched.read_u8().await {
                    return error;
                }
            }
        };
        let error = tokio::select! { error = reader => error, () = writer => unreachable!() };
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!((10..=11).contains(&start.elapsed().as_secs()));
    }

    /// hyper polls the socket while a request runs and need not poll it again when the request ends.
    #[tokio::test(start_paused = true)]
    async fn a_reader_that_waits_during_a_request_is_cut_when_it_stays_idle() {
        let (mut client, server) = tokio::io::duplex(64);
        let activity = Activity::new();
        let mut watched = Watched::new(server, activity.clone(), SPANS);
        client.write_all(b"x").await.unwrap();
        watched.read_u8().await.unwrap();
        let running = activity.begin();
        let end = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(running);
        };
        let start = Instant::now();
        let (read, ()) = tokio::join!(watched.read_u8(), end);
        assert_eq!(read.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 65);
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_request_stops_the_timer_and_idleness_starts_the_longer_one() {
        let (mut client, server) = tokio::io::duplex(64);
        let activity = Activity::new();
        let mut watched = Watched::new(server, activity.clone(), SPANS);
        client.write_all(b"x").await.unwrap();
        watched.read_u8().await.unwrap();
        let running = activity.begin();
        assert!(tokio::time::timeout(Duration::from_secs(500), watched.read_u8()).await.is_err());
        drop(running);
        let start = Instant::now();
        assert_eq!(watched.read_u8().await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 60);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut() {
        let (_client, server) = tokio::io::duplex(64);
        let mut watched = Watched::new(server, Activity::new(), SPANS);
        let start = Instant::now();
        assert_eq!(watched.write_all(&[0; 1000]).await.unwrap_err().kind(), ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 30);
    }

    #[tokio::test]
    async fn the_protocol_is_recognised_without_losing_bytes() {
        for (sent, http2) in [("PRI * HTTP/2.0\r\n", true), ("POST /", false), ("P", false), ("GET", false)] {
            let (mut client, server) = tokio::io::duplex(64);
            client.write_all(sent.as_bytes()).await.unwrap();
            drop(client);
            let mut watched = Watched::new(server, Activity::new(), SPANS);
            assert_eq!(watched.speaks_http2().await.unwrap(), http2, "{sent}");
            let mut all = String::new();
            watched.read_to_string(&mut all).await.unwrap();
            assert_eq!(all, sent);
        }
    }
}
