//! Limits over time: buckets for requests and tokens, slots for what runs at once, and the budget of retries. All in
//! whole numbers, so that no rounding ever adds up to a request too many.

use std::time::Duration;

use crate::route::EJECTED_PERCENT_CAP;

/// What one minute's worth of a bucket is divided into: nanoseconds of a minute. A bucket of `r` per minute then fills by
/// exactly `r` parts per nanosecond.
const PARTS: i128 = 60_000_000_000;

/// Most per minute that a bucket reckons with; keeps every product far inside its type.
const MOST: u64 = 1_000_000_000_000;

/// So much per minute, and at most as much at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    per_minute: u64,
}

impl Rate {
    /// `per_minute`, held between 1 and 10^12.
    #[must_use]
    pub fn per_minute(per_minute: u64) -> Self {
        Self { per_minute: per_minute.clamp(1, MOST) }
    }

    /// This process's part when `replicas` share the rate and know nothing of each other: never more in sum than the
    /// whole, except that everybody may do one.
    #[must_use]
    pub fn shared_by(self, replicas: u64) -> Self {
        Self::per_minute(self.per_minute / replicas.max(1))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.per_minute
    }

    fn size(self) -> i128 {
        i128::from(self.per_minute) * PARTS
    }
}

/// A bucket that fills at a steady rate up to one minute's worth. It keeps what is missing, so that a changed rate holds
/// at once, and a bucket that misses nothing is as good as none: it may be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bucket {
    /// In parts; above the size when more was used than was asked for.
    missing: i128,
    at: Duration,
}

impl Bucket {
    /// Takes `amount` out, or a full bucket where it is more than that: no request is too large for ever.
    ///
    /// # Errors
    /// How long to wait until that much is in it; nothing is taken then.
    pub fn take(&mut self, rate: Rate, amount: u64, now: Duration) -> Result<(), Duration> {
        self.fill(rate, now);
        let wanted = i128::from(amount.min(rate.per_minute)) * PARTS;
        let over = self.missing + wanted - rate.size();
        if over > 0 {
            return Err(span(over, rate));
        }
        self.missing += wanted;
        Ok(())
    }

    /// Puts right what was taken: `taken` was asked for, `used` is the truth. What was too little is owed, up to a
    /// minute's worth; the debt is paid before anything else is given.
    pub fn correct(&mut self, rate: Rate, taken: u64, used: u64, now: Duration) {
        self.fill(rate, now);
        let taken = i128::from(taken.min(rate.per_minute)) * PARTS;
        let used = i128::from(used.min(MOST)) * PARTS;
        self.missing = (self.missing - taken + used).clamp(0, 2 * rate.size());
    }

    /// What can be taken at `now`, in whole ones.
    #[must_use]
    pub fn left(&self, rate: Rate, now: Duration) -> u64 {
        let left = (rate.size() - self.missing_at(rate, now)).max(0) / PARTS;
        u64::try_from(left).unwrap_or(0)
    }

    /// How long until it is full again.
    #[must_use]
    pub fn until_full(&self, rate: Rate, now: Duration) -> Duration {
        span(self.missing_at(rate, now), rate)
    }

    fn fill(&mut self, rate: Rate, now: Duration) {
        self.missing = self.missing_at(rate, now);
        self.at = self.at.max(now);
    }

    fn missing_at(&self, rate: Rate, now: Duration) -> i128 {
        let nanos = i128::try_from(now.saturating_sub(self.at).as_nanos()).unwrap_or(i128::MAX);
        let filled = nanos.saturating_mul(i128::from(rate.per_minute));
        self.missing.saturating_sub(filled).max(0)
    }
}

/// The time in which so many parts fill up, rounded up.
fn span(parts: i128, rate: Rate) -> Duration {
    let rate = i128::from(rate.per_minute);
    let nanos = parts.max(0).saturating_add(rate - 1) / rate;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

/// How many run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Slots {
    taken: u64,
}

impl Slots {
    /// Takes a slot; false when `most` are taken.
    #[must_use]
    pub fn take(&mut self, most: Option<u64>) -> bool {
        if most.is_some_and(|most| self.taken >= most) {
            return false;
        }
        self.taken += 1;
        true
    }

    /// Gives one back.
    pub fn give_back(&mut self) {
        self.taken = self.taken.saturating_sub(1);
    }

    /// How many are taken.
    #[must_use]
    pub const fn taken(&self) -> u64 {
        self.taken
    }
}

/// Whole seconds after which a refused client should come again: never before `wait` is over, at least 1, and up to a
/// quarter more by `chance`, so that a crowd does not return at once.
#[must_use]
pub fn retry_after(wait: Duration, chance: u64) -> u64 {
    let jitter = wait.as_millis() / 4 * u128::from(chance % 1024) / 1024;
    let millis =
        wait.as_millis().saturating_add(u128::from(!wait.subsec_nanos().is_multiple_of(1_000_000))) + jitter;
    u64::try_from(millis.div_ceil(1000)).unwrap_or(u64::MAX).max(1)
}

/// A span as OpenAI prints it in `x-ratelimit-reset-*`: `0s`, `12ms`, `1.5s`, `6m0s`, `1h0m3s`; whole milliseconds, rounded
/// up.
#[must_use]
pub fn print_reset(span: Duration) -> String {
    let millis = span.as_nanos().div_ceil(1_000_000);
    if millis == 0 {
        return "0s".to_owned();
    }
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let (hours, minutes, rest) = (millis / 3_600_000, millis / 60_000 % 60, millis % 60_000);
    let mut seconds = format!("{}.{:03}", rest / 1000, rest % 1000);
    seconds.truncate(seconds.trim_end_matches('0').trim_end_matches('.').len());
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Seconds of requests that a retry budget looks at (GR31).
const BUDGET_WINDOW_S: usize = 10;

/// The floor of a retry budget never lies above this, however many nodes a service has: one retry in 100 ms is no storm.
const MOST_LEAST: u64 = 100;

/// Retries that are always allowed within the window, or a service that is new or quiet would show its clients the faults
/// of a node until the breaker has seen enough of them. It is as many as those breakers let through that may keep nodes away
/// at all (half of `nodes`, at least one): `faults` in a row each, and as many again that were under way when the last of
/// them came back.
#[must_use]
pub fn least_retries(faults: u32, nodes: usize) -> u64 {
    let away = (nodes * EJECTED_PERCENT_CAP / 100).max(1);
    (2 * u64::from(faults)).saturating_mul(away as u64).min(MOST_LEAST)
}

/// Retries may be at most a share of the requests of the last 10 s, so that a failing fleet is not buried under its
/// own retries. A few are always allowed ([`least_retries`]).
#[derive(Debug, Clone)]
pub struct RetryBudget {
    percent: u64,
    buckets: [(u64, u32, u32); BUDGET_WINDOW_S],
}

impl RetryBudget {
    /// Retries may be `percent` of the requests.
    #[must_use]
    pub const fn new(percent: u64) -> Self {
        Self { percent, buckets: [(0, 0, 0); BUDGET_WINDOW_S] }
    }

    /// Counts a request (its first attempt).
    pub fn request(&mut self, now: Duration) {
        self.bucket(now).1 += 1;
    }

    /// Takes one retry; false when the budget, and the `least` that is always allowed, is used up.
    pub fn retry(&mut self, least: u64, now: Duration) -> bool {
        let first = now.as_secs().saturating_sub(BUDGET_WINDOW_S as u64 - 1);
        let live = self.buckets.iter().filter(|b| b.0 >= first && b.0 <= now.as_secs());
        let (requests, retries) =
            live.fold((0u64, 0u64), |(q, r), b| (q + u64::from(b.1), r + u64::from(b.2)));
        let allowed = (requests * self.percent / 100).max(least);
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
    use proptest::prelude::*;

    use super::*;
    use crate::health::{Breaker, BreakerPolicy, Gate, Sent};

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn rate(per_minute: u64) -> Rate {
        Rate::per_minute(per_minute)
    }

    #[test]
    fn a_bucket_gives_a_minute_at_once_and_its_rate_after_that() {
        let (mut bucket, rate) = (Bucket::default(), rate(120));
        for _ in 0..120 {
            assert_eq!(bucket.take(rate, 1, s(0)), Ok(()));
        }
        assert_eq!(bucket.take(rate, 1, s(0)), Err(Duration::from_millis(500)));
        assert_eq!((bucket.left(rate, s(0)), bucket.until_full(rate, s(0))), (0, s(60)));
        assert_eq!(bucket.take(rate, 2, s(1)), Ok(()));
        assert_eq!(bucket.left(rate, s(31)), 60);
        assert_eq!(bucket.left(rate, s(1000)), 120, "never more than its size");
        assert_eq!(bucket.take(rate, 500, s(1000)), Ok(()), "what is too large takes all");
        assert_eq!(bucket.take(rate, 500, s(1000)), Err(s(60)));
    }

    #[test]
    fn a_clock_that_stands_or_goes_back_fills_nothing() {
        let (mut bucket, rate) = (Bucket::default(), rate(1));
        assert_eq!(bucket.take(rate, 1, s(10)), Ok(()));
        assert!(bucket.take(rate, 1, s(5)).is_err());
        assert!(bucket.take(rate, 1, s(10)).is_err());
        assert_eq!(bucket.take(rate, 1, s(70)), Ok(()));
    }

    #[test]
    fn a_wrong_estimate_is_put_right_and_a_debt_is_paid_first() {
        let (mut bucket, rate) = (Bucket::default(), rate(60));
        bucket.take(rate, 50, s(0)).unwrap();
        bucket.correct(rate, 50, 10, s(0));
        assert_eq!(bucket.left(rate, s(0)), 50);
        bucket.take(rate, 50, s(0)).unwrap();
        bucket.correct(rate, 50, 80, s(0));
        assert_eq!(bucket.left(rate, s(0)), 0);
        assert_eq!(bucket.take(rate, 1, s(0)), Err(s(31)), "30 are owed");
        bucket.correct(rate, 0, 1_000_000, s(0));
        assert_eq!(bucket.until_full(rate, s(0)), s(120), "a debt ends");
    }

    #[test]
    fn a_changed_rate_holds_at_once() {
        let mut bucket = Bucket::default();
        bucket.take(rate(100), 40, s(0)).unwrap();
        assert_eq!(bucket.left(rate(50), s(0)), 10);
        assert_eq!(bucket.left(rate(1000), s(0)), 960);
        assert_eq!(bucket.left(rate(10), s(0)), 0);
    }

    #[test]
    fn shares_of_replicas_are_never_more_than_the_whole() {
        for (whole, replicas, part) in [(100, 1, 100), (100, 3, 33), (100, 0, 100), (2, 3, 1)] {
            assert_eq!(rate(whole).shared_by(replicas).get(), part);
        }
    }

    #[test]
    fn slots_are_taken_and_given_back() {
        let mut slots = Slots::default();
        assert!(slots.take(Some(2)) && slots.take(Some(2)) && !slots.take(Some(2)));
        slots.give_back();
        assert!(slots.take(Some(2)));
        assert!(slots.take(None));
        assert_eq!(slots.taken(), 3);
    }

    #[test]
    fn a_refused_client_never_comes_too_early_and_not_all_at_once() {
        let millis = Duration::from_millis;
        assert_eq!(retry_after(Duration::ZERO, 0), 1);
        assert_eq!(retry_after(millis(1), u64::MAX), 1);
        assert_eq!(retry_after(millis(1000), 0), 1);
        assert_eq!(retry_after(millis(1001), 0), 2);
        let all: Vec<u64> = (0..1024).map(|chance| retry_after(s(40), chance)).collect();
        assert_eq!((all.iter().min(), all.iter().max()), (Some(&40), Some(&50)));
    }

    #[test]
    fn resets_are_printed_as_openai_prints_them() {
        let table = [
            (0, "0s"),
            (1, "1ms"),
            (999_999, "1ms"),
            (1_000_001, "2ms"),
            (59_000_000, "59ms"),
            (1_000_000_000, "1s"),
            (1_500_000_000, "1.5s"),
            (8_640_000_000, "8.64s"),
            (60_000_000_000, "1m0s"),
            (360_000_000_000, "6m0s"),
            (3_603_000_000_000, "1h0m3s"),
        ];
        for (nanos, text) in table {
            assert_eq!(print_reset(Duration::from_nanos(nanos)), text);
        }
    }

    proptest! {
        /// Whatever is asked when, in any time `t` never more is given than the rate allows plus one minute's worth.
        #[test]
        fn never_more_than_rate_times_time_and_a_burst(
            per_minute in 1_u64..5_000,
            steps in prop::collection::vec((0_u64..3_000, 0_u64..400), 1..200),
        ) {
            let rate = rate(per_minute);
            let mut bucket = Bucket::default();
            let mut now = 0;
            let mut given: Vec<(u64, u64)> = Vec::new();
            for (wait, amount) in steps {
                now += wait;
                let amount = amount.min(per_minute);
                if bucket.take(rate, amount, Duration::from_millis(now)).is_ok() {
                    given.push((now, amount));
                }
            }
            for from in 0..given.len() {
                let mut sum = 0;
                for (at, amount) in &given[from..] {
                    sum += amount;
                    let span = u128::from(at - given[from].0);
                    let most = u128::from(per_minute) * (60_000 + span);
                    prop_assert!(u128::from(sum) * 60_000 <= most, "{sum} in {span} ms");
                }
            }
        }

        /// What a bucket says about itself is what it does.
        #[test]
        fn a_wait_is_exact(per_minute in 1_u64..1_000_000, first in 0_u64..2_000_000, second in 1_u64..2_000_000) {
            let rate = rate(per_minute);
            let mut bucket = Bucket::default();
            bucket.take(rate, first, s(5)).unwrap();
            if let Err(wait) = bucket.take(rate, second, s(5)) {
                let early = s(5) + wait - Duration::from_nanos(1);
                prop_assert!(bucket.take(rate, second, early).is_err());
                prop_assert_eq!(bucket.take(rate, second, s(5) + wait), Ok(()));
            }
        }

        /// Corrections with the truth leave what the truth alone would have left.
        #[test]
        fn an_exact_correction_leaves_the_true_use(taken in 0_u64..600, used in 0_u64..600) {
            let rate = rate(600);
            let mut bucket = Bucket::default();
            bucket.take(rate, taken, s(0)).unwrap();
            bucket.correct(rate, taken, used, s(0));
            prop_assert_eq!(bucket.left(rate, s(0)), 600 - used);
        }
    }

    #[test]
    fn retries_are_a_fifth_of_the_requests_and_at_least_a_few() {
        let mut budget = RetryBudget::new(20);
        assert_eq!((0..10).filter(|_| budget.retry(3, s(0))).count(), 3);
        for _ in 0..100 {
            budget.request(s(1));
        }
        assert_eq!((0..100).filter(|_| budget.retry(3, s(1))).count(), 17, "20 in all");
        assert_eq!((0..10).filter(|_| budget.retry(3, s(60))).count(), 3, "the window moved on");
    }

    #[test]
    fn the_floor_grows_with_the_nodes_that_may_be_away_and_has_an_end() {
        for (nodes, least) in [(0, 10), (1, 10), (2, 10), (3, 10), (4, 20), (5, 20), (20, 100), (10_000, 100)]
        {
            assert_eq!(least_retries(5, nodes), least, "{nodes} nodes");
        }
    }

    /// A service that has only just begun: whatever the faulty half of its nodes costs until their breakers open, with
    /// so many requests under way on each of them, nobody is refused a retry.
    #[test]
    fn the_faults_until_the_breakers_open_fit_the_floor() {
        for (nodes, faulty, under_way) in [(2, 1, 1), (2, 1, 6), (3, 1, 6), (4, 2, 6), (5, 1, 8), (5, 2, 6)] {
            let mut budget = RetryBudget::new(20);
            let policy = BreakerPolicy::default();
            for _ in 0..faulty {
                let mut breaker = Breaker::new(policy);
                // All that is routed while the breaker is closed comes back as a fault.
                let mut left = under_way;
                while left > 0 {
                    budget.request(s(0));
                    let least = least_retries(policy.consecutive_faults, nodes);
                    assert!(budget.retry(least, s(0)), "{faulty} of {nodes} nodes, {under_way} under way");
                    breaker.fail(Sent::Ordinary, s(0));
                    left -= u32::from(breaker.gate(s(0)) != Gate::Closed);
                }
            }
        }
    }
}
