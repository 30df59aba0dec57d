//! How fast a node is, learned from real work: averages for the choice, recent samples for percentiles.

use std::time::Duration;

use crate::health::DECAY;

/// Samples that are remembered.
const KEPT: usize = 64;

/// An average of tokens per second in which an old sample weighs less the longer ago the next one came.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Rate {
    value: Option<f64>,
    at: Duration,
}

impl Rate {
    /// Takes `tokens` that came within `span` in. Spans too short to say anything are left out.
    pub fn observe(&mut self, tokens: u64, span: Duration, now: Duration) -> Option<f64> {
        /// Fewer tokens than this measure the network, not the node.
        const LEAST_TOKENS: u64 = 4;
        if tokens < LEAST_TOKENS || span < Duration::from_millis(1) {
            return None;
        }
        let sample = tokens as f64 / span.as_secs_f64();
        let age = now.saturating_sub(self.at).as_secs_f64();
        // A sample replaces at least a fifth, so that a burst of short requests counts as well as one long one.
        let keep = (-age / DECAY.as_secs_f64()).exp().min(0.8);
        self.value = Some(self.value.map_or(sample, |value| value * keep + sample * (1.0 - keep)));
        self.at = now;
        Some(sample)
    }

    /// Tokens per second; `None` while nothing was measured.
    #[must_use]
    pub const fn per_second(&self) -> Option<f64> {
        self.value
    }
}

/// The last samples of one figure.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Samples {
    kept: Vec<f32>,
    next: usize,
}

impl Samples {
    /// Adds a sample; beyond the bound it takes the place of the oldest.
    #[expect(clippy::cast_possible_truncation, reason = "seven digits are more than a measurement has")]
    pub fn add(&mut self, sample: f64) {
        let sample = sample as f32;
        if self.kept.len() < KEPT {
            self.kept.push(sample);
        } else {
            self.kept[self.next] = sample;
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// The samples, in no order.
    pub fn iter(&self) -> impl Iterator<Item = f64> {
        self.kept.iter().map(|sample| f64::from(*sample))
    }

    /// The value that `percent` of the samples do not exceed; `None` without samples.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Option<f64> {
        percentile(self.iter().collect(), percent)
    }
}

/// The value that `percent` (0 to 100) of the samples do not exceed, by nearest rank; `None` without samples.
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rank is a small number from 0"
)]
pub fn percentile(mut samples: Vec<f64>, percent: f64) -> Option<f64> {
    samples.sort_by(f64::total_cmp);
    let rank = (percent.clamp(0.0, 100.0) / 100.0 * samples.len() as f64).ceil() as usize;
    samples.get(rank.max(1) - 1).copied()
}

/// Minutes that an [`Uptime`] looks back.
const MINUTES: usize = 30;

/// In which share of the last half hour something was up, by regular looks.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Uptime {
    /// Minute, looks at which it was up, looks.
    minutes: [(u64, u32, u32); MINUTES],
    now: u64,
}

impl Uptime {
    /// Takes one look in.
    pub fn note(&mut self, up: bool, now: Duration) {
        self.now = now.as_secs() / 60;
        let place = usize::try_from(self.now % MINUTES as u64).unwrap_or(0);
        let minute = &mut self.minutes[place];
        if minute.0 != self.now {
            *minute = (self.now, 0, 0);
        }
        minute.1 += u32::from(up);
        minute.2 += 1;
    }

    /// 0 to 1; `None` while nobody looked.
    #[must_use]
    pub fn share(&self) -> Option<f64> {
        let first = self.now.saturating_sub(MINUTES as u64 - 1);
        let live = self.minutes.iter().filter(|minute| minute.0 >= first);
        let (up, looks) =
            live.fold((0u64, 0u64), |(up, looks), m| (up + u64::from(m.1), looks + u64::from(m.2)));
        (looks > 0).then(|| up as f64 / looks as f64)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rate_is_tokens_over_time_and_follows_changes() {
        let mut rate = Rate::default();
        let s = Duration::from_secs;
        assert_eq!(rate.observe(3, s(1), s(1)), None, "too few tokens");
        rate.observe(100, s(10), s(10));
        assert!((rate.per_second().unwrap() - 10.0).abs() < 1e-9);
        for at in 11..60 {
            rate.observe(100, s(1), s(at));
        }
        assert!((rate.per_second().unwrap() - 100.0).abs() < 1.0);
    }

    #[test]
    fn uptime_forgets_after_half_an_hour() {
        let mut uptime = Uptime::default();
        assert_eq!(uptime.share(), None);
        let minute = |n: u64| Duration::from_secs(n * 60);
        for n in 0..30 {
            uptime.note(n >= 15, minute(n));
        }
        assert_eq!(uptime.share(), Some(0.5));
        for n in 30..45 {
            uptime.note(true, minute(n));
        }
        assert_eq!(uptime.share(), Some(1.0));
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50.0), None);
        for n in 1..=10 {
            samples.add(f64::from(n));
        }
        let of = |percent| samples.percentile(percent).unwrap();
        assert_eq!([of(0.0), of(50.0), of(90.0), of(91.0), of(100.0)], [1.0, 5.0, 9.0, 10.0, 10.0]);
    }

    proptest! {
        #[test]
        fn only_the_newest_samples_count(old in 0.0f64..1e6, new in proptest::collection::vec(0.0f64..1e6, KEPT)) {
            let mut samples = Samples::default();
            for _ in 0..100 { samples.add(old); }
            for sample in &new { samples.add(*sample); }
            prop_assert_eq!(samples.iter().count(), KEPT);
            let most = new.iter().copied().fold(0.0, f64::max);
            prop_assert!((samples.percentile(100.0).unwrap() - most).abs() <= most * 1e-6);
        }
    }
}
