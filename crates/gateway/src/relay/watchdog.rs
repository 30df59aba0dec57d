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
    /// The request's whole time is over.
    Total,
}

/// Watches an attempt after its acceptance. The timer is moved only when it fires, not with every event.
#[derive(Debug)]
pub struct Watchdog {
    total: Instant,
    first_token: Instant,
    gap: Duration,
    last: Option<Instant>,
    sleep: Pin<Box<Sleep>>,
}

impl Watchdog {
    /// Starts watching now.
    #[must_use]
    pub fn new(first_token: Duration, gap: Duration, total: Instant) -> Self {
        let first_token = Instant::now() + first_token;
        let sleep = Box::pin(tokio::time::sleep_until(first_token.min(total)));
        Self { total, first_token, gap, last: None, sleep }
    }

    /// Content came, and was handed on; only from now on is the node waited for again.
    pub fn content(&mut self) {
        let now = Instant::now();
        if self.last.replace(now).is_none() {
            // The gap may be shorter than the rest of the first deadline.
            self.sleep.as_mut().reset((now + self.gap).min(self.total));
        }
    }

    fn due(&self) -> (Instant, Late) {
        let (at, late) = match self.last {
            None => (self.first_token, Late::FirstToken),
            Some(last) => (last + self.gap, Late::Gap),
        };
        if self.total <= at { (self.total, Late::Total) } else { (at, late) }
    }

    /// Waits for `future`, but not past the deadlines.
    ///
    /// # Errors
    /// The deadline that passed.
    pub async fn guard<F: Future>(&mut self, future: F) -> Result<F::Output, Late> {
        tokio::pin!(future);
        loop {
            tokio::select! {
                biased;
                output = &mut future => return Ok(output),
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
    async fn time_in_which_the_client_was_waited_for_does_not_count() {
        let mut dog = Watchdog::new(S(30), S(5), Instant::now() + S(1000));
        dog.content();
        tokio::time::sleep(S(60)).await;
        dog.content();
        assert!(dog.guard(tokio::time::sleep(S(4))).await.is_ok());
    }
}
