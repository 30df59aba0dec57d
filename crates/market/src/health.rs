//! How a node does at one service, learned from real work: a peak-sensitive average of its time to first token, and
//! a circuit breaker. Both take the time as an argument (`now` is time since the process started).

use std::time::Duration;

/// Half-life scale of the latency average (GR22): after 10 s an old sample weighs 1/e.
pub const DECAY: Duration = Duration::from_secs(10);

/// What is left of the median for a node that got no work for long. Drifting to the median itself, it would come ever
/// closer to the nodes that get the work and never be preferred to one of them; so it is asked again, by one request,
/// after some seconds (twice the median: 11 s; fifty times: 46 s).
pub const IDLE_SHARE: f64 = 0.5;

/// A latency average that believes bad news at once and good news slowly.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeakEwma {
    value_ms: f64,
    at: Duration,
    measured: bool,
}

impl PeakEwma {
    /// A node nobody measured yet: it counts as the median of its class, never as zero, or every restart would draw
    /// all traffic (GR22).
    #[must_use]
    pub const fn unknown(now: Duration) -> Self {
        Self { value_ms: 0.0, at: now, measured: false }
    }

    /// Takes a sample in: a worse one replaces the average, a better one pulls it down by the time since the last.
    pub fn observe(&mut self, sample: Duration, now: Duration) {
        let sample_ms = sample.as_secs_f64() * 1000.0;
        if !self.measured || sample_ms >= self.value_ms {
            self.value_ms = sample_ms;
        } else {
            let keep = weight(now.saturating_sub(self.at));
            self.value_ms = self.value_ms * keep + sample_ms * (1.0 - keep);
        }
        self.at = now;
        self.measured = true;
    }

    /// The average at `now` in milliseconds. Without new samples it drifts towards [`IDLE_SHARE`] of `median_ms` (the
    /// median of the class), so that one bad moment does not keep a node out of work, and thus out of new samples, for
    /// ever.
    #[must_use]
    pub fn value_ms(&self, now: Duration, median_ms: f64) -> f64 {
        if !self.measured {
            return median_ms;
        }
        let keep = weight(now.saturating_sub(self.at));
        self.value_ms * keep + median_ms * IDLE_SHARE * (1.0 - keep)
    }

    /// The last average, if anything was measured.
    #[must_use]
    pub const fn measured_ms(&self) -> Option<f64> {
        if self.measured { Some(self.value_ms) } else { None }
    }
}

fn weight(age: Duration) -> f64 {
    (-age.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

/// When a breaker opens and for how long (GR27).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerPolicy {
    /// Faults in a row that open it.
    pub consecutive_faults: u32,
    /// Share of successes in percent under which it opens.
    pub least_success_percent: u32,
    /// Outcomes in the window before the share counts.
    pub least_samples: u32,
    /// First time it stays open; the n-th opening lasts n times as long.
    pub open: Duration,
    /// The longest it stays open.
    pub open_cap: Duration,
    /// Ramp of the load after a return.
    pub slow_start: Duration,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self {
            consecutive_faults: 5,
            least_success_percent: 70,
            least_samples: 10,
            open: Duration::from_secs(30),
            open_cap: Duration::from_secs(300),
            slow_start: Duration::from_secs(30),
        }
    }
}

/// Length of the window of outcomes in seconds; one bucket per second.
const WINDOW_S: usize = 30;

/// Whether a breaker lets work through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// Work is welcome.
    Closed,
    /// One trial may go.
    Trial,
    /// A trial is under way; nothing else may go.
    Trying,
    /// No work before this moment.
    Open {
        /// When the first trial may go.
        until: Duration,
    },
}

/// On which terms the work was sent whose outcome is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The breaker was closed.
    Ordinary,
    /// It was the one trial of a half-open breaker.
    Trial,
    /// The breaker was open, but too many others were away as well (GR27).
    Degraded,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    second: u64,
    good: u32,
    bad: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Duration },
    HalfOpen,
}

/// The breaker of one (node, service). Only outcomes of real work move it (GR29).
#[derive(Debug, Clone)]
pub struct Breaker {
    policy: BreakerPolicy,
    state: State,
    in_a_row: u32,
    openings: u32,
    returned_at: Option<Duration>,
    buckets: [Bucket; WINDOW_S],
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(policy: BreakerPolicy) -> Self {
        Self {
            policy,
            state: State::Closed,
            in_a_row: 0,
            openings: 0,
            returned_at: None,
            buckets: [Bucket::default(); WINDOW_S],
        }
    }

    /// Whether work may go at `now`.
    #[must_use]
    pub fn gate(&self, now: Duration) -> Gate {
        match self.state {
            State::Closed => Gate::Closed,
            State::Open { until } if now >= until => Gate::Trial,
            State::Open { until } => Gate::Open { until },
            State::HalfOpen => Gate::Trying,
        }
    }

    /// Books the trial of a breaker whose gate is [`Gate::Trial`]; true when it was booked by this call.
    pub fn begin_trial(&mut self, now: Duration) -> bool {
        let free = self.gate(now) == Gate::Trial;
        if free {
            self.state = State::HalfOpen;
        }
        free
    }

    /// Real work succeeded.
    pub fn succeed(&mut self, sent: Sent, now: Duration) {
        self.bucket(now).good += 1;
        self.in_a_row = 0;
        match (self.state, sent) {
            (State::HalfOpen, Sent::Trial) | (State::HalfOpen | State::Open { .. }, Sent::Degraded) => {
                self.state = State::Closed;
                self.returned_at = Some(now);
                self.buckets = [Bucket::default(); WINDOW_S];
            }
            // Work that was sent before the opening proves nothing about now.
            (State::Open { .. } | State::HalfOpen, _) => {}
            (State::Closed, _) => {
                let calm = self.returned_at.is_none_or(|at| now.saturating_sub(at) > self.policy.open_cap);
                if calm {
                    self.openings = 0;
                }
            }
        }
    }

    /// Real work failed by the node's fault (GR28). Gives whether the breaker opened by it.
    pub fn fail(&mut self, sent: Sent, now: Duration) -> bool {
        self.bucket(now).bad += 1;
        self.in_a_row = self.in_a_row.saturating_add(1);
        let opens = match self.state {
            // Only the trial decides; what was sent before it may still be failing.
            State::HalfOpen => sent == Sent::Trial,
            State::Closed => self.in_a_row >= self.policy.consecutive_faults || self.below_share(now),
            State::Open { .. } => false,
        };
        if opens {
            self.open(now);
        }
        opens
    }

    /// A trial ended without saying anything about the node (the client left, capacity refused): the next may go.
    pub fn forget_trial(&mut self, now: Duration) {
        if self.state == State::HalfOpen {
            self.state = State::Open { until: now };
        }
    }

    /// Share of the usual load it should get, 0.1 to 1: after a return it climbs over the slow start (GR27).
    #[must_use]
    pub fn ramp(&self, now: Duration) -> f64 {
        self.returned_at.map_or(1.0, |at| {
            let done = now.saturating_sub(at).as_secs_f64() / self.policy.slow_start.as_secs_f64();
            done.clamp(0.1, 1.0)
        })
    }

    /// Share of successes in the window, smoothed so that a node without history is trusted.
    #[must_use]
    pub fn reliability(&self, now: Duration) -> f64 {
        let (good, bad) = self.outcomes(now);
        (f64::from(good) + 5.0) / (f64::from(good) + f64::from(bad) + 5.0)
    }

    fn open(&mut self, now: Duration) {
        self.openings = self.openings.saturating_add(1);
        let span = self.policy.open.saturating_mul(self.openings).min(self.policy.open_cap);
        self.state = State::Open { until: now + span };
        self.in_a_row = 0;
    }

    fn below_share(&self, now: Duration) -> bool {
        let (good, bad) = self.outcomes(now);
        let all = good + bad;
        all >= self.policy.least_samples
            && u64::from(good) * 100 < u64::from(all) * u64::from(self.policy.least_success_percent)
    }

    fn outcomes(&self, now: Duration) -> (u32, u32) {
        let first = now.as_secs().saturating_sub(WINDOW_S as u64 - 1);
        let live = self.buckets.iter().filter(|b| b.second >= first && b.second <= now.as_secs());
        live.fold((0, 0), |(good, bad), b| (good + b.good, bad + b.bad))
    }

    fn bucket(&mut self, now: Duration) -> &mut Bucket {
        let second = now.as_secs();
        let place = usize::try_from(second % WINDOW_S as u64).unwrap_or(0);
        let bucket = &mut self.buckets[place];
        if bucket.second != second {
            *bucket = Bucket { second, good: 0, bad: 0 };
        }
        bucket
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_worse_sample_counts_at_once_and_a_better_one_slowly() {
        let mut ewma = PeakEwma::unknown(at(0));
        assert!((ewma.value_ms(at(0), 120.0) - 120.0).abs() < 1e-9, "unknown starts at the median");
        ewma.observe(at(100), at(0));
        ewma.observe(at(900), at(1000));
        assert!((ewma.value_ms(at(1000), 100.0) - 900.0).abs() < 1e-9);
        ewma.observe(at(100), at(2000));
        let value = ewma.value_ms(at(2000), 100.0);
        assert!((800.0..900.0).contains(&value), "{value}");
        let idle = ewma.value_ms(at(102_000), 100.0);
        assert!((50.0..51.0).contains(&idle), "an idle node drifts to half the median: {idle}");
    }

    #[test]
    fn five_faults_in_a_row_open_it_and_one_trial_closes_it() {
        let mut breaker = Breaker::new(BreakerPolicy::default());
        for _ in 0..4 {
            breaker.fail(Sent::Ordinary, at(0));
        }
        assert_eq!(breaker.gate(at(0)), Gate::Closed);
        breaker.fail(Sent::Ordinary, at(0));
        assert_eq!(breaker.gate(at(29_999)), Gate::Open { until: at(30_000) });
        assert_eq!(breaker.gate(at(30_000)), Gate::Trial);
        assert!(breaker.begin_trial(at(30_000)));
        assert!(!breaker.begin_trial(at(30_000)), "one trial at a time");
        assert_eq!(breaker.gate(at(30_001)), Gate::Trying);
        breaker.succeed(Sent::Trial, at(30_100));
        assert_eq!(breaker.gate(at(30_100)), Gate::Closed);
        assert!(breaker.ramp(at(30_200)) < 0.2 && breaker.ramp(at(70_000)) >= 1.0);
    }

    #[test]
    fn each_failed_trial_keeps_it_open_longer_up_to_five_minutes() {
        let mut breaker = Breaker::new(BreakerPolicy::default());
        let mut now = at(0);
        for _ in 0..5 {
            breaker.fail(Sent::Ordinary, now);
        }
        let mut spans = Vec::new();
        for _ in 0..12 {
            let Gate::Open { until } = breaker.gate(now) else { panic!("open expected") };
            spans.push((until - now).as_secs());
            now = until;
            assert!(breaker.begin_trial(now));
            assert!(breaker.fail(Sent::Trial, now));
        }
        assert_eq!(spans[..4], [30, 60, 90, 120]);
        assert_eq!(spans[11], 300);
    }

    #[test]
    fn a_low_share_of_successes_opens_it_only_with_enough_samples() {
        // (good, bad, opens): alternating, so that never five faults stand in a row.
        for (good, bad, opens) in
            [(2, 4, false), (6, 4, true), (7, 3, false), (30, 12, false), (20, 12, true)]
        {
            let mut breaker =
                Breaker::new(BreakerPolicy { consecutive_faults: 1000, ..BreakerPolicy::default() });
            for _ in 0..good {
                breaker.succeed(Sent::Ordinary, at(10));
            }
            for _ in 0..bad {
                breaker.fail(Sent::Ordinary, at(10));
            }
            assert_eq!(matches!(breaker.gate(at(10)), Gate::Open { .. }), opens, "{good} good, {bad} bad");
        }
    }

    #[test]
    fn old_outcomes_leave_the_window() {
        let mut breaker =
            Breaker::new(BreakerPolicy { consecutive_faults: 1000, ..BreakerPolicy::default() });
        for _ in 0..9 {
            breaker.fail(Sent::Ordinary, at(0));
        }
        breaker.fail(Sent::Ordinary, at(31_000));
        assert_eq!(breaker.gate(at(31_000)), Gate::Closed);
    }

    #[test]
    fn a_trial_that_proved_nothing_can_be_repeated() {
        let mut breaker = Breaker::new(BreakerPolicy::default());
        for _ in 0..5 {
            breaker.fail(Sent::Ordinary, at(0));
        }
        assert!(breaker.begin_trial(at(30_000)));
        breaker.forget_trial(at(30_500));
        assert_eq!(breaker.gate(at(30_500)), Gate::Trial);
    }

    #[test]
    fn only_the_trial_ends_a_half_open_breaker() {
        let mut breaker = Breaker::new(BreakerPolicy::default());
        for _ in 0..5 {
            breaker.fail(Sent::Ordinary, at(0));
        }
        assert!(breaker.begin_trial(at(30_000)));
        breaker.succeed(Sent::Ordinary, at(30_001));
        assert!(!breaker.fail(Sent::Ordinary, at(30_002)));
        assert_eq!(breaker.gate(at(30_003)), Gate::Trying, "late outcomes of older work decide nothing");
        breaker.succeed(Sent::Trial, at(30_004));
        assert_eq!(breaker.gate(at(30_004)), Gate::Closed);
    }

    #[test]
    fn the_last_node_returns_by_the_work_it_does() {
        let mut breaker = Breaker::new(BreakerPolicy::default());
        for _ in 0..5 {
            breaker.fail(Sent::Ordinary, at(0));
        }
        assert!(!breaker.fail(Sent::Degraded, at(1_000)), "open already");
        assert_eq!(breaker.gate(at(1_000)), Gate::Open { until: at(30_000) });
        breaker.succeed(Sent::Degraded, at(2_000));
        assert_eq!(breaker.gate(at(2_000)), Gate::Closed);
        assert!(breaker.ramp(at(2_000)) < 0.2, "with a slow start");
    }

    proptest! {
        #[test]
        fn the_average_stays_between_its_samples(samples in proptest::collection::vec((1u64..60_000, 0u64..20_000), 1..50)) {
            let mut ewma = PeakEwma::unknown(at(0));
            let mut now = at(0);
            for (sample, step) in &samples {
                now += at(*step);
                ewma.observe(at(*sample), now);
            }
            let value = ewma.value_ms(now, 1.0);
            let most = samples.iter().map(|s| s.0).max().unwrap_or(0) as f64;
            let least = samples.iter().map(|s| s.0).min().unwrap_or(0) as f64;
            prop_assert!(value <= most + 1e-6 && value >= least - 1e-6);
        }

        #[test]
        fn a_breaker_never_stays_open_for_more_than_five_minutes(steps in proptest::collection::vec((any::<bool>(), 0u64..40_000), 1..300)) {
            let mut breaker = Breaker::new(BreakerPolicy::default());
            let mut now = at(0);
            for (good, step) in steps {
                now += at(step);
                let sent = if breaker.begin_trial(now) { Sent::Trial } else { Sent::Ordinary };
                if good {
                    breaker.succeed(sent, now);
                } else {
                    breaker.fail(sent, now);
                }
                if let Gate::Open { until } = breaker.gate(now) {
                    prop_assert!(until - now <= Duration::from_secs(300));
                }
            }
        }
    }
}
