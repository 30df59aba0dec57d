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
        // The first end of an engine that worked is an accident, however short its life was.
        let accident = self.ends.is_empty() && ready_for.is_some();
        self.ends.push_back(now);
        if self.ends.len() > MOST_ENDS {
            return Next::Degraded(LONGEST_WAIT);
        }
        if accident || ready_for.is_some_and(|span| span >= HEALTHY_AFTER) {
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
    use proptest::prelude::*;

    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_healthy_engine_comes_back_at_once_and_a_failing_one_waits_longer_each_time() {
        let mut restarts = Restarts::default();
        for (now, ready_for, next) in [
            (100, Some(60), Next::Now),
            (1000, None, Next::After(s(10))),
            (1020, Some(0), Next::After(s(20))),
            (1050, None, Next::After(s(40))),
            (1200, Some(60), Next::Now),
            (1300, None, Next::After(s(10))),
            (2500, None, Next::After(s(20))),
            (4000, Some(0), Next::Now),
        ] {
            assert_eq!(restarts.after_end(s(now), ready_for.map(s)), next, "at {now}");
        }
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

    proptest! {
        #[test]
        fn an_engine_is_started_at_most_six_times_in_ten_minutes(
            lives in proptest::collection::vec(proptest::option::of(0u64..30), 1..60),
        ) {
            let mut restarts = Restarts::default();
            let mut now = Duration::ZERO;
            let mut starts = vec![now];
            for life in lives {
                now += s(life.unwrap_or(1));
                let wait = match restarts.after_end(now, life.map(s)) {
                    Next::Now => Duration::ZERO,
                    Next::After(wait) | Next::Degraded(wait) => wait,
                };
                prop_assert!(wait <= s(300));
                now += wait;
                starts.push(now);
            }
            for (at, start) in starts.iter().enumerate() {
                let within = starts[at..].iter().take_while(|other| **other - *start <= s(299)).count();
                prop_assert!(within <= 6, "{within} starts in 299 s");
            }
        }
    }
}
