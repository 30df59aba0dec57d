//! When an engine that ended is started again. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// First wait after an engine failed to become ready; doubles.
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
    /// The engine ended at `now` (time since any fixed start); `was_ready` tells whether this start of it had worked.
    pub fn after_end(&mut self, now: Duration, was_ready: bool) -> Next {
        while self.ends.front().is_some_and(|end| now.saturating_sub(*end) > WINDOW) {
            self.ends.pop_front();
        }
        self.ends.push_back(now);
        if self.ends.len() > MOST_ENDS {
            return Next::Degraded(LONGEST_WAIT);
        }
        // An engine that worked ended by accident; one that only seems to work runs into the limit above.
        if was_ready {
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
    fn an_engine_that_worked_comes_back_at_once_and_a_failing_one_waits_longer_each_time() {
        let mut restarts = Restarts::default();
        for (now, was_ready, next) in [
            (100, true, Next::Now),
            (1000, false, Next::After(s(10))),
            (1020, false, Next::After(s(20))),
            (1050, false, Next::After(s(40))),
            (1200, true, Next::Now),
            (1300, false, Next::After(s(10))),
            (2500, false, Next::After(s(20))),
            (4000, true, Next::Now),
        ] {
            assert_eq!(restarts.after_end(s(now), was_ready), next, "at {now}");
        }
    }

    #[test]
    fn six_ends_in_ten_minutes_degrade_and_time_heals() {
        let mut restarts = Restarts::default();
        for second in 0..5 {
            assert_eq!(restarts.after_end(s(second * 20), true), Next::Now);
        }
        assert_eq!(restarts.after_end(s(100), true), Next::Degraded(s(300)));
        assert_eq!(restarts.after_end(s(1000), true), Next::Now);
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
                let wait = match restarts.after_end(now, life.is_some()) {
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
