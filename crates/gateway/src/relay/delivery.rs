//! The last step to the client: a body fed through a bounded channel, and the account of what was handed out.
//!
//! The account is what the user pays for when the client leaves (money rules, section 6): a chunk counts from the
//! moment the server takes it out of the body to write it to the socket, never from the moment it was produced.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::CancellationToken;
use http_body::{Body, Frame};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, Sleep};

use crate::limits;

/// Chunks that may wait for a slow reader; a full channel stops the node through flow control (GR17).
const CHANNEL: usize = 8;

/// One chunk on its way to the client.
#[derive(Debug)]
pub struct Chunk {
    /// The event, ready to be sent.
    pub bytes: Bytes,
    /// Up to where the billed text of a choice has gone out with it: choice, bytes of its text.
    pub mark: Option<(usize, usize)>,
}

/// What both ends know about one delivery.
#[derive(Debug, Default)]
struct Account {
    handed: [AtomicUsize; limits::CHOICES],
    chunks: AtomicU64,
    progress: Notify,
    gone: CancellationToken,
    cut: AtomicBool,
    /// No more content is handed out.
    withheld: AtomicBool,
}

/// The request's end of a delivery.
#[derive(Debug)]
pub struct Outlet {
    /// None where the answer leaves whole.
    chunks: Option<mpsc::Sender<Chunk>>,
    account: Arc<Account>,
    sent: u64,
    waited: Duration,
    write_stall: Duration,
    /// No reader is waited for after this.
    end: Instant,
}

/// Why a chunk was not handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undelivered {
    /// The client closed the connection.
    Gone,
    /// The client did not read for too long.
    Stalled,
}

/// Makes both ends. `rhythm` is the silence after which a comment is sent, where comments may be; `write_stall` the time a reader may stand
/// still while something waits for it. A reader that takes something now and then is waited for until `end`.
#[must_use]
pub fn delivery(rhythm: Option<Duration>, write_stall: Duration, end: Instant) -> (Outlet, DeliveryBody) {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let account = Arc::new(Account::default());
    let outlet = Outlet::new(Some(sender), account.clone(), write_stall, end);
    let presence = Presence { account, over: false };
    (outlet, DeliveryBody { chunks: receiver, presence, rhythm, silence: None, last: Instant::now() })
}

/// Both ends where the answer is no stream: its whole body leaves after the settlement, and only the presence of the
/// client matters until then.
#[must_use]
pub fn attendance() -> (Outlet, ClientPresence) {
    let account = Arc::new(Account::default());
    let outlet = Outlet::new(None, account.clone(), Duration::ZERO, Instant::now());
    (outlet, ClientPresence { presence: Presence { account, over: false } })
}

impl Outlet {
    fn new(
        chunks: Option<mpsc::Sender<Chunk>>,
        account: Arc<Account>,
        write_stall: Duration,
        end: Instant,
    ) -> Self {
        Self { chunks, account, sent: 0, waited: Duration::ZERO, write_stall, end }
    }

    /// Cancelled when the client is gone.
    #[must_use]
    pub fn gone(&self) -> CancellationToken {
        self.account.gone.clone()
    }

    /// Hands a chunk over, waiting for room.
    ///
    /// # Errors
    /// The client left, or stopped reading.
    pub async fn send(&mut self, chunk: Chunk) -> Result<(), Undelivered> {
        let Some(chunks) = &self.chunks else { return Err(Undelivered::Gone) };
        // The common case takes no timer.
        let chunk = match chunks.try_send(chunk) {
            Ok(()) => {
                self.sent += 1;
                return if self.account.gone.is_cancelled() { Err(Undelivered::Gone) } else { Ok(()) };
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Err(Undelivered::Gone),
            Err(mpsc::error::TrySendError::Full(chunk)) => chunk,
        };
        let full_since = Instant::now();
        let stall = self.write_stall.min(self.end.saturating_duration_since(full_since));
        let room = tokio::select! {
            biased;
            () = self.account.gone.cancelled() => return Err(Undelivered::Gone),
            room = tokio::time::timeout(stall, chunks.reserve()) => room,
        };
        self.waited += full_since.elapsed();
        match room {
            Ok(Ok(permit)) => {
                permit.send(chunk);
                self.sent += 1;
                Ok(())
            }
            Ok(Err(_)) => Err(Undelivered::Gone),
            Err(_) => {
                self.account.cut.store(true, Ordering::Release);
                Err(Undelivered::Stalled)
            }
        }
    }

    /// Time spent waiting for a slow reader so far.
    #[must_use]
    pub const fn waited(&self) -> Duration {
        self.waited
    }

    /// Waits until everything that was sent has been handed out.
    ///
    /// # Errors
    /// The client left, or stopped reading.
    pub async fn drained(&self) -> Result<(), Undelivered> {
        loop {
            let progress = self.account.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            let before = self.account.chunks.load(Ordering::Acquire);
            if before >= self.sent {
                return Ok(());
            }
            let stall = self.write_stall.min(self.end.saturating_duration_since(Instant::now()));
            tokio::select! {
                biased;
                () = self.account.gone.cancelled() => return Err(Undelivered::Gone),
                moved = tokio::time::timeout(stall, progress) => {
                    if moved.is_err() && self.account.chunks.load(Ordering::Acquire) == before {
                        self.account.cut.store(true, Ordering::Release);
                        return Err(Undelivered::Stalled);
                    }
                }
            }
        }
    }

    /// Ends the handing out of content: what waits for the reader is dropped, so that [`Self::handed`] is the last word.
    /// Chunks without billed text still leave.
    pub fn withhold(&self) {
        self.account.withheld.store(true, Ordering::Release);
    }

    /// Breaks the connection: what was sent is not the whole, and there is no place for words about it.
    pub fn cut(&self) {
        self.account.cut.store(true, Ordering::Release);
    }

    /// Bytes of the billed text of a choice that were handed to the client's socket.
    #[must_use]
    pub fn handed(&self, choice: usize) -> usize {
        self.account.handed.get(choice).map_or(0, |handed| handed.load(Ordering::Acquire))
    }
}

/// Tells the request when the client is gone: whoever holds it is the client's connection.
#[derive(Debug)]
struct Presence {
    account: Arc<Account>,
    over: bool,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if !self.over {
            self.account.gone.cancel();
        }
    }
}

/// The body of a streamed answer. Dropping it before its end means that the client left.
#[derive(Debug)]
pub struct DeliveryBody {
    chunks: mpsc::Receiver<Chunk>,
    presence: Presence,
    rhythm: Option<Duration>,
    silence: Option<Pin<Box<Sleep>>>,
    last: Instant,
}

/// The connection is cut because its reader stood still, or because the answer broke off.
#[derive(Debug, thiserror::Error)]
#[error("the reader stood still for too long, or the answer broke off")]
pub struct ReaderStalled;

impl DeliveryBody {
    /// The answer does not come this way: it is whole, or there is none.
    pub fn dismiss(mut self) {
        self.presence.over = true;
    }

    fn is_withheld(&self, chunk: &Chunk) -> bool {
        chunk.mark.is_some() && self.presence.account.withheld.load(Ordering::Acquire)
    }

    fn count(&self, chunk: &Chunk) {
        let account = &self.presence.account;
        if let Some((choice, upto)) = chunk.mark
            && let Some(handed) = account.handed.get(choice)
        {
            handed.store(upto, Ordering::Release);
        }
        account.chunks.fetch_add(1, Ordering::AcqRel);
        account.progress.notify_waiters();
    }
}

impl Body for DeliveryBody {
    type Data = Bytes;
    type Error = ReaderStalled;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReaderStalled>>> {
        let body = self.get_mut();
        if body.presence.account.cut.load(Ordering::Acquire) {
            return Poll::Ready(Some(Err(ReaderStalled)));
        }
        loop {
            match body.chunks.poll_recv(cx) {
                Poll::Ready(Some(chunk)) if body.is_withheld(&chunk) => {}
                Poll::Ready(Some(chunk)) => {
                    body.count(&chunk);
                    body.last = Instant::now();
                    return Poll::Ready(Some(Ok(Frame::data(chunk.bytes))));
                }
                Poll::Ready(None) => {
                    body.presence.over = true;
                    return Poll::Ready(None);
                }
                Poll::Pending => break,
            }
        }
        // One timer for the whole stream, pushed on only when it fires.
        let Some(rhythm) = body.rhythm else { return Poll::Pending };
        let last = body.last;
        let silence = body.silence.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(last + rhythm)));
        while silence.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if now < body.last + rhythm {
                silence.as_mut().reset(body.last + rhythm);
                continue;
            }
            body.last = now;
            silence.as_mut().reset(now + rhythm);
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": waiting\n\n")))));
        }
        Poll::Pending
    }
}

/// A client that waits for a whole answer. Dropping it before [`ClientPresence::end`] means that the client left.
#[derive(Debug)]
pub struct ClientPresence {
    presence: Presence,
}

impl ClientPresence {
    /// The answer was handed over.
    pub fn end(mut self) {
        self.presence.over = true;
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const STALL: Duration = Duration::from_secs(30);
    const RHYTHM: Duration = Duration::from_secs(10);
    const DAY: Duration = Duration::from_secs(86_400);

    fn chunk(upto: usize) -> Chunk {
        Chunk { bytes: Bytes::from_static(b"x"), mark: Some((0, upto)) }
    }

    #[tokio::test(start_paused = true)]
    async fn a_chunk_counts_when_the_server_takes_it_and_not_before() {
        let (mut outlet, mut body) = delivery(Some(RHYTHM), STALL, Instant::now() + DAY);
        for upto in 1..=3 {
            outlet.send(chunk(upto * 10)).await.unwrap();
        }
        assert_eq!(outlet.handed(0), 0);
        for upto in 1..=3 {
            body.frame().await.unwrap().unwrap();
            assert_eq!(outlet.handed(0), upto * 10);
        }
        outlet.drained().await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_withheld_is_neither_handed_out_nor_counted() {
        let (mut outlet, mut body) = delivery(Some(RHYTHM), STALL, Instant::now() + DAY);
        for upto in 1..=3 {
            outlet.send(chunk(upto)).await.unwrap();
        }
        body.frame().await.unwrap().unwrap();
        outlet.withhold();
        outlet.send(Chunk { bytes: Bytes::from_static(b"last words"), mark: None }).await.unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.data_ref().unwrap(), "last words");
        assert_eq!(outlet.handed(0), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_body_is_a_client_that_left() {
        let (mut outlet, mut body) = delivery(Some(RHYTHM), STALL, Instant::now() + DAY);
        outlet.send(chunk(7)).await.unwrap();
        outlet.send(chunk(9)).await.unwrap();
        body.frame().await.unwrap().unwrap();
        drop(body);
        assert!(outlet.gone().is_cancelled());
        assert_eq!(outlet.send(chunk(11)).await, Err(Undelivered::Gone));
        assert_eq!(outlet.drained().await, Err(Undelivered::Gone));
        assert_eq!(outlet.handed(0), 7, "what was not taken out is not counted");
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_read_to_its_end_is_no_loss() {
        let (mut outlet, mut body) = delivery(Some(RHYTHM), STALL, Instant::now() + DAY);
        let gone = outlet.gone();
        outlet.send(chunk(1)).await.unwrap();
        drop(outlet);
        assert!(body.frame().await.is_some());
        assert!(body.frame().await.is_none());
        drop(body);
        assert!(!gone.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_stands_still_is_cut_after_the_write_stall() {
        let (mut outlet, mut body) = delivery(Some(RHYTHM), STALL, Instant::now() + DAY);
        let began = Instant::now();
        let mut sent = 0;
        let end = loop {
            match outlet.send(chunk(sent)).await {
                Ok(()) => sent += 1,
                Err(end) => break end,
            }
        };
        assert_eq!((end, sent), (Undelivered::Stalled, CHANNEL));
        assert!(began.elapsed() >= STALL && began.elapsed() < STALL * 2);
        assert!(body.frame().await.unwrap().is_err(), "the connection is broken, not ended politely");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_a_piece_now_and_then_is_not_waited_for_past_the_end() {
        let (began, minute) = (Instant::now(), Duration::from_secs(60));
        let (mut outlet, mut body) = delivery(Some(RHYTHM), STALL, began + minute);
        let reading = async {
            while let Some(Ok(_)) = body.frame().await {
                tokio::time::sleep(STALL - RHYTHM).await;
            }
        };
        let sending = async {
            loop {
                if let Err(end) = outlet.send(chunk(1)).await {
                    break (end, outlet.drained().await);
                }
            }
        };
        let (ended, ()) = tokio::join!(sending, reading);
        assert_eq!(ended, (Undelivered::Stalled, Err(Undelivered::Stalled)));
        assert!(began.elapsed() < minute + STALL, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_filled_with_comments_in_its_rhythm() {
        let (mut outlet, mut body) = delivery(Some(RHYTHM), STALL, Instant::now() + DAY);
        let began = Instant::now();
        for round in 1..=3 {
            let frame = body.frame().await.unwrap().unwrap();
            assert_eq!(frame.data_ref().unwrap(), ": waiting\n\n");
            assert_eq!(began.elapsed().as_secs(), round * 10);
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        outlet.send(chunk(1)).await.unwrap();
        body.frame().await.unwrap().unwrap();
        body.frame().await.unwrap().unwrap();
        assert_eq!(began.elapsed().as_secs(), 45, "ten seconds after the last chunk");
        assert_eq!(outlet.handed(0), 1);
    }
}
