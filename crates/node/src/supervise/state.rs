//! When an engine that ended is started again. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// An engine that was ready for this long before it ended is started again at once.
const HEALTHY_AFTER: Duration = Duration::from_secs(1);
/// First wait after an engine failed to become (or stay) ready; doubles.
const FIRST_WAIT: Duration = Duration::from_secs(10);
/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// Ends within this time count together.
const WINDOW: Duration = Duration::from_secs(600);
/// More ends than this within the window make a service degraded.
const MOST_ENDS: usize = 5;

/// What to do about an engine that ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Start it now.
    Now,
    /// Start it after this wait.
    After(Duration),
    /// It fails too often: report `degraded`, try again after this wait.
    Degraded(Duration),
}

/// The ends of one engine so far.
#[derive(Debug, Clone, Default)]
pub struct Restarts {
    ends: VecDeque<Duration>,
    failures: u32,
}

impl Restarts {
    /// The engine ended at `now` (time since any fixed start); `ready_for` is how long it had been ready.
    pub fn after_end(&mut self, now: Duration, ready_for: Option<Duration>) -> Next {
        while self.ends.front().is_some_and(|end| now.saturating_sub(*end) > WINDOW) {
            self.ends.pop_front();
        }
        self.ends.push_back(now);
        if self.ends.len() > MOST_ENDS {
            return Next::Degraded(LONGEST_WAIT);
        }
        if ready_for.is_some_and(|span| span >= HEALTHY_AFTER) {
            self.failures = 0;
            return Next::Now;
        }
        let wait = FIRST_WAIT.saturating_mul(2u32.saturating_pow(self.failures)).min(LONGEST_WAIT);
        self.failures = self.failures.saturating_add(1);
        Next::After(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_healthy_engine_comes_back_at_once_and_a_failing_one_waits_longer_each_time() {
        let mut restarts = Restarts::default();
        assert_eq!(restarts.after_end(s(100), Some(s(60))), Next::Now);
        assert_eq!(restarts.after_end(s(1000), None), Next::After(s(10)));
        assert_eq!(restarts.after_end(s(1020), Some(Duration::from_millis(500))), Next::After(s(20)));
        assert_eq!(restarts.after_end(s(1050), None), Next::After(s(40)));
        assert_eq!(restarts.after_end(s(1200), Some(s(60))), Next::Now);
        assert_eq!(restarts.after_end(s(1300), None), Next::After(s(10)), "a healthy run forgives");
    }

    #[test]
    fn six_ends_in_ten_minutes_degrade_and_time_heals() {
        let mut restarts = Restarts::default();
        for second in 0..5 {
            assert_eq!(restarts.after_end(s(second * 20), Some(s(15))), Next::Now);
        }
        assert_eq!(restarts.after_end(s(100), Some(s(15))), Next::Degraded(s(300)));
        assert_eq!(restarts.after_end(s(1000), Some(s(15))), Next::Now);
    }

    #[test]
    fn the_wait_never_passes_its_cap() {
        let mut restarts = Restarts::default();
        for n in 0..20 {
            match restarts.after_end(s(n * 1000), None) {
                Next::After(wait) => assert!(wait <= s(300)),
                other => panic!("{other:?}"),
            }
        }
    }
}
