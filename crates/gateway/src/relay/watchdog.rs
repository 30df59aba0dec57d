//! The deadlines of one attempt on one timer: first token, gap between tokens, the request as a whole.

use std::pin::Pin;
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Which deadline passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Late {
    /// No content came in time.
    FirstToken,
    /// Content stopped coming.
    Gap,
    /// Content comes, but slower than one piece in [`PER_PIECE`] on average.
    Rate,
    /// The request's whole time is over.
    Total,
}

impl Late {
    /// The label in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::FirstToken => "first_token",
            Self::Gap => "gap",
            Self::Rate => "rate",
            Self::Total => "total",
        }
    }
}

/// The slowest average: one piece of content, which is at least a token, in this time.
const PER_PIECE: Duration = Duration::from_secs(10);
/// A quick beginning does not pay for a stream that crawls for ever: so much lead counts, in gaps.
const LEAD_GAPS: u32 = 2;

/// Watches an attempt after its acceptance. The timer is moved only when it fires, not with every event.
#[derive(Debug)]
pub struct Watchdog {
    total: Instant,
    first_token: Instant,
    gap: Duration,
    last: Option<Instant>,
    /// How long the node may still be waited for before it is slower than the slowest average.
    lead: Duration,
    /// When the node was last heard; what comes after is the client's time.
    heard: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl Watchdog {
    /// Starts watching now.
    #[must_use]
    pub fn new(first_token: Duration, gap: Duration, total: Instant) -> Self {
        let now = Instant::now();
        let first_token = now + first_token;
        let sleep = Box::pin(tokio::time::sleep_until(first_token.min(total)));
        Self { total, first_token, gap, last: None, lead: gap, heard: now, sleep }
    }

    /// Content came, and was handed on; only from now on is the node waited for again.
    pub fn content(&mut self) {
        let now = Instant::now();
        match self.last.replace(now) {
            // The gap may be shorter than the rest of the first deadline.
            None => self.sleep.as_mut().reset((now + self.gap).min(self.total)),
            Some(last) => {
                let waited = self.heard.saturating_duration_since(last);
                self.lead = (self.lead.saturating_sub(waited) + PER_PIECE).min(self.gap * LEAD_GAPS);
            }
        }
    }

    fn due(&self) -> (Instant, Late) {
        let (at, late) = match self.last {
            None => (self.first_token, Late::FirstToken),
            Some(last) if self.lead < self.gap => (last + self.lead, Late::Rate),
            Some(last) => (last + self.gap, Late::Gap),
        };
        if self.total <= at { (self.total, Late::Total) } else { (at, late) }
    }

    /// Waits for `future`, but not past the deadlines. What comes when the whole time is over is dropped.
    ///
    /// # Errors
    /// The deadline that passed.
    pub async fn guard<F: Future>(&mut self, future: F) -> Result<F::Output, Late> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                output = &mut future => {
                    self.heard = Instant::now();
                    // A node that always has something ready leaves the timer unasked for ever.
                    return if self.heard >= self.total { Err(Late::Total) } else { Ok(output) };
                }
                () = self.sleep.as_mut() => {
                    let (at, late) = self.due();
                    if Instant::now() >= at {
                        return Err(late);
                    }
                    self.sleep.as_mut().reset(at);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[tokio::test(start_paused = true)]
    async fn each_deadline_has_its_name() {
        let start = Instant::now();
        let mut dog = Watchdog::new(S(30), S(5), start + S(100));
        assert_eq!(dog.guard(std::future::pending::<()>()).await, Err(Late::FirstToken));
        assert_eq!(start.elapsed(), S(30));
        let start = Instant::now();
        let mut dog = Watchdog::new(S(30), S(5), start + S(100));
        dog.guard(tokio::time::sleep(S(2))).await.unwrap();
        dog.content();
        dog.guard(tokio::time::sleep(S(4))).await.unwrap();
        dog.content();
        assert_eq!(dog.guard(std::future::pending::<()>()).await, Err(Late::Gap));
        assert_eq!(start.elapsed(), S(11));
        let start = Instant::now();
        let mut dog = Watchdog::new(S(30), S(5), start + S(3));
        assert_eq!(dog.guard(std::future::pending::<()>()).await, Err(Late::Total));
        assert_eq!(start.elapsed(), S(3));
    }

    #[tokio::test(start_paused = true)]
    async fn the_whole_time_ends_though_there_is_always_something_ready() {
        let start = Instant::now();
        let mut dog = Watchdog::new(S(30), S(30), start + S(100));
        let mut taken = 0;
        while dog.guard(std::future::ready(())).await.is_ok() {
            dog.content();
            taken += 1;
            assert!(taken < 10, "{:?} after the start", start.elapsed());
            // The client takes one piece in this time.
            tokio::time::sleep(S(20)).await;
        }
        assert_eq!((taken, start.elapsed()), (5, S(100)));
        assert_eq!(dog.guard(std::future::ready(())).await, Err(Late::Total));
    }

    #[tokio::test(start_paused = true)]
    async fn time_in_which_the_client_was_waited_for_does_not_count() {
        let mut dog = Watchdog::new(S(30), S(5), Instant::now() + S(1000));
        dog.content();
        tokio::time::sleep(S(60)).await;
        dog.content();
        assert!(dog.guard(tokio::time::sleep(S(4))).await.is_ok());
    }

    /// A piece every so many seconds, until the watchdog barks: after how many pieces, and why.
    async fn drip(every: Duration, most: u32) -> (u32, Option<Late>) {
        let mut dog = Watchdog::new(S(30), S(30), Instant::now() + S(100_000));
        for piece in 0..most {
            if let Err(late) = dog.guard(tokio::time::sleep(every)).await {
                return (piece, Some(late));
            }
            dog.content();
        }
        (most, None)
    }

    #[tokio::test(start_paused = true)]
    async fn less_than_one_piece_in_ten_seconds_is_a_stall_though_no_gap_is_too_long() {
        assert_eq!(drip(S(10), 1_000).await, (1_000, None));
        assert_eq!(drip(Duration::from_millis(1), 5_000).await, (5_000, None));
        let (pieces, late) = drip(S(25), 1_000).await;
        assert_eq!(late, Some(Late::Rate));
        assert!((2..=5).contains(&pieces), "{pieces}");
        let (pieces, late) = drip(S(11), 1_000).await;
        assert!(late == Some(Late::Rate) && pieces > 10, "a little too slow takes a while: {pieces}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quick_beginning_does_not_pay_for_a_crawl() {
        let mut dog = Watchdog::new(S(30), S(30), Instant::now() + S(100_000));
        for _ in 0..1_000 {
            dog.guard(tokio::time::sleep(Duration::from_millis(10))).await.unwrap();
            dog.content();
        }
        let crawl = Instant::now();
        let late = loop {
            match dog.guard(tokio::time::sleep(S(25))).await {
                Ok(()) => dog.content(),
                Err(late) => break late,
            }
        };
        assert_eq!(late, Late::Rate);
        assert!(crawl.elapsed() < S(150), "{:?}", crawl.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_slowly_does_not_make_the_node_slow() {
        let mut dog = Watchdog::new(S(30), S(30), Instant::now() + S(100_000));
        for _ in 0..100 {
            dog.guard(tokio::time::sleep(S(1))).await.unwrap();
            tokio::time::sleep(S(25)).await;
            dog.content();
        }
    }
}
