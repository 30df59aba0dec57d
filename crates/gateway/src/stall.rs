//! Streams of HTTP/2 whose client takes nothing. The socket's own timer does not see them: their bytes wait for the
//! client's window and never reach the socket, and the connection may be busy with other streams. So each stream is watched
//! by itself, and one that stands still with something to send is dropped, which resets it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

tokio::task_local! {
    /// The stream that runs in this task.
    static STREAM: Taking;
}

/// Since when an answer has something that its client does not take. Clones belong to the same stream.
#[derive(Debug, Clone, Default)]
pub struct Taking(Arc<Mutex<Option<Instant>>>);

impl Taking {
    /// That of the stream which runs in this task; none where streams are not watched.
    #[must_use]
    pub fn of_this_stream() -> Option<Self> {
        STREAM.try_with(Self::clone).ok()
    }

    /// The body gave something, and is not asked again before that is on its way.
    pub fn offered(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// The body was asked and has nothing: the client waits for us.
    pub fn caught_up(&self) {
        *self.0.lock() = None;
    }
}

/// Runs a stream to its end, or until its client took nothing of what it was offered for `span`; for ever without one.
pub async fn unless_stuck<F: Future<Output = ()>>(stream: F, span: Option<Duration>) {
    let Some(span) = span else { return stream.await };
    let taking = Taking::default();
    let watched = async {
        let mut stream = pin!(stream);
        // One timer for the whole stream, made when it first stands still.
        let mut timer: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|cx| {
            if stream.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            // Only the poll above changes it, so there is nothing to be woken for but the timer.
            let Some(since) = *taking.0.lock() else { return Poll::Pending };
            let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(since + span)));
            if timer.deadline() != since + span {
                timer.as_mut().reset(since + span);
            }
            let stuck = timer.as_mut().poll(cx);
            if stuck.is_ready() {
                tracing::debug!("a client left the window of a stream shut; the stream is reset");
            }
            stuck
        })
        .await;
    };
    STREAM.scope(taking.clone(), watched).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: Duration = Duration::from_secs(30);

    /// Offers something now and then, each time after a pause, and is taken up at once or never.
    async fn stream(pauses: u32, pause: Duration, taken: bool) {
        let taking = Taking::of_this_stream().unwrap();
        for _ in 0..pauses {
            taking.offered();
            if taken {
                taking.caught_up();
            }
            tokio::time::sleep(pause).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_not_taken_is_dropped_after_the_span() {
        let start = Instant::now();
        unless_stuck(stream(1, Duration::from_secs(1_000), false), Some(SPAN)).await;
        assert_eq!(start.elapsed().as_secs(), 30);
    }

    #[tokio::test(start_paused = true)]
    async fn each_thing_that_is_taken_begins_the_span_anew() {
        let start = Instant::now();
        unless_stuck(stream(10, Duration::from_secs(29), false), Some(SPAN)).await;
        assert_eq!(start.elapsed().as_secs(), 290);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_waits_for_us_is_never_cut() {
        let start = Instant::now();
        unless_stuck(stream(2, Duration::from_secs(500), true), Some(SPAN)).await;
        assert_eq!(start.elapsed().as_secs(), 1_000);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_span_nothing_is_watched() {
        unless_stuck(async { assert!(Taking::of_this_stream().is_none()) }, None).await;
    }
}
