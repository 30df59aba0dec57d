//! Limits over time: a token bucket, and the budget of retries.

use std::time::Duration;

/// A bucket that fills at a steady rate up to its size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenBucket {
    per_second: f64,
    size: f64,
    level: f64,
    at: Duration,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub const fn new(per_second: f64, size: f64, now: Duration) -> Self {
        Self { per_second, size, level: size, at: now }
    }

    /// Takes `amount` out.
    ///
    /// # Errors
    /// How long to wait until that much is in it; nothing is taken then.
    pub fn take(&mut self, amount: f64, now: Duration) -> Result<(), Duration> {
        self.level = self.level_at(now);
        self.at = self.at.max(now);
        if self.level + 1e-9 >= amount {
            self.level = (self.level - amount).max(0.0);
            return Ok(());
        }
        Err(Duration::from_secs_f64(((amount - self.level) / self.per_second.max(1e-9)).min(86_400.0)))
    }

    /// What is in it at `now`.
    #[must_use]
    pub fn level_at(&self, now: Duration) -> f64 {
        (self.level + now.saturating_sub(self.at).as_secs_f64() * self.per_second).min(self.size)
    }
}

/// Seconds of requests that a retry budget looks at (GR31).
const BUDGET_WINDOW_S: usize = 10;

/// Retries may be at most a share of the requests of the last 10 s, so that a failing fleet is not buried under its
/// own retries. A few are always allowed, or a quiet service could never retry at all.
#[derive(Debug, Clone)]
pub struct RetryBudget {
    percent: u64,
    floor: u64,
    buckets: [(u64, u32, u32); BUDGET_WINDOW_S],
}

impl Default for RetryBudget {
    /// 20 % of the requests, at least 3.
    fn default() -> Self {
        Self { percent: 20, floor: 3, buckets: [(0, 0, 0); BUDGET_WINDOW_S] }
    }
}

impl RetryBudget {
    /// Retries may be `percent` of the requests, at least 3.
    #[must_use]
    pub fn new(percent: u64) -> Self {
        Self { percent, ..Self::default() }
    }

    /// Counts a request (its first attempt).
    pub fn request(&mut self, now: Duration) {
        self.bucket(now).1 += 1;
    }

    /// Takes one retry; false when the budget is used up.
    pub fn retry(&mut self, now: Duration) -> bool {
        let first = now.as_secs().saturating_sub(BUDGET_WINDOW_S as u64 - 1);
        let live = self.buckets.iter().filter(|b| b.0 >= first && b.0 <= now.as_secs());
        let (requests, retries) =
            live.fold((0u64, 0u64), |(q, r), b| (q + u64::from(b.1), r + u64::from(b.2)));
        let allowed = (requests * self.percent / 100).max(self.floor);
        if retries >= allowed {
            return false;
        }
        self.bucket(now).2 += 1;
        true
    }

    fn bucket(&mut self, now: Duration) -> &mut (u64, u32, u32) {
        let second = now.as_secs();
        let place = usize::try_from(second % BUDGET_WINDOW_S as u64).unwrap_or(0);
        let bucket = &mut self.buckets[place];
        if bucket.0 != second {
            *bucket = (second, 0, 0);
        }
        bucket
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_bucket_gives_its_size_at_once_and_its_rate_after_that() {
        let mut bucket = TokenBucket::new(2.0, 4.0, s(0));
        for _ in 0..4 {
            assert_eq!(bucket.take(1.0, s(0)), Ok(()));
        }
        assert_eq!(bucket.take(1.0, s(0)), Err(Duration::from_millis(500)));
        assert_eq!(bucket.take(2.0, s(1)), Ok(()));
        assert!(bucket.take(5.0, s(1000)).is_err(), "never more than its size");
        assert_eq!(bucket.take(4.0, s(1000)), Ok(()));
    }

    #[test]
    fn a_clock_that_stands_fills_nothing() {
        let mut bucket = TokenBucket::new(1.0, 1.0, s(10));
        assert_eq!(bucket.take(1.0, s(10)), Ok(()));
        assert!(bucket.take(1.0, s(5)).is_err());
    }

    #[test]
    fn retries_are_a_fifth_of_the_requests_and_at_least_three() {
        let mut budget = RetryBudget::default();
        assert_eq!((0..10).filter(|_| budget.retry(s(0))).count(), 3);
        for _ in 0..100 {
            budget.request(s(1));
        }
        assert_eq!((0..100).filter(|_| budget.retry(s(1))).count(), 17, "20 in all");
        assert_eq!((0..10).filter(|_| budget.retry(s(60))).count(), 3, "the window moved on");
    }
}
