//! How far the files of one service are, and how fast they come.

use std::collections::VecDeque;
use std::time::Duration;

use cxmpute_wire::Bytes;
use cxmpute_wire::control::Progress;

/// The rate is that of this span.
const SPAN: Duration = Duration::from_secs(10);
/// Below this span nobody can tell a rate.
const LEAST_SPAN: Duration = Duration::from_millis(500);
/// Samples are at least this far apart.
const APART: Duration = Duration::from_millis(100);

/// Counts the bytes of several files that arrive at the same time.
#[derive(Clone, Debug)]
pub struct Meter {
    total: u64,
    here: u64,
    source: String,
    /// Bytes that came over the network, and when; what was on the disk already says nothing about a rate.
    samples: VecDeque<(Duration, u64)>,
    arrived: u64,
}

impl Meter {
    /// Nothing of `total` bytes is here.
    #[must_use]
    pub const fn new(total: u64) -> Self {
        Self { total, here: 0, source: String::new(), samples: VecDeque::new(), arrived: 0 }
    }

    /// These bytes are here, wherever they were before.
    pub fn found(&mut self, bytes: u64) {
        self.here = self.here.saturating_add(bytes);
    }

    /// These bytes are not here after all.
    pub fn lost(&mut self, bytes: u64) {
        self.here = self.here.saturating_sub(bytes);
    }

    /// This source is asked now.
    pub fn asks(&mut self, source: &str) {
        source.clone_into(&mut self.source);
    }

    /// These bytes came.
    pub fn came(&mut self, bytes: u64, source: &str, now: Duration) {
        self.found(bytes);
        self.arrived = self.arrived.saturating_add(bytes);
        if self.source != source {
            source.clone_into(&mut self.source);
        }
        if self.samples.back().is_none_or(|(at, _)| *at + APART <= now) {
            self.samples.push_back((now, self.arrived));
        }
        while self.samples.get(1).is_some_and(|(at, _)| *at + SPAN <= now) {
            self.samples.pop_front();
        }
    }

    /// What to report.
    #[must_use]
    pub fn progress(&self, now: Duration) -> Progress {
        let first = self.samples.front().copied().filter(|(at, _)| *at + LEAST_SPAN <= now);
        let rate = first.map_or(0, |(at, before)| {
            let millis = u64::try_from(now.saturating_sub(at).as_millis()).unwrap_or(u64::MAX).max(1);
            (self.arrived - before).saturating_mul(1000) / millis
        });
        Progress {
            bytes: Bytes(self.here.min(self.total)),
            total: Bytes(self.total),
            source: self.source.clone(),
            rate,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_that_of_what_came_lately() {
        let ms = Duration::from_millis;
        let mut meter = Meter::new(1_000_000);
        meter.found(100_000);
        meter.came(1, "a", ms(0));
        assert_eq!(meter.progress(ms(10)).rate, 0, "nobody can tell yet");
        for at in 1..=20 {
            meter.came(1_000, "a", ms(at * 100));
        }
        let progress = meter.progress(ms(2_000));
        assert_eq!((progress.rate, progress.bytes.0, progress.source.as_str()), (10_000, 120_001, "a"));
        assert_eq!(progress.seconds_left(), Some(87));
        // Then it is silent: the rate falls, and is nothing in the end.
        assert!(meter.progress(ms(8_000)).rate < 3_000);
        for at in 10..40 {
            meter.came(100, "b", ms(at * 1_000));
        }
        assert_eq!(meter.progress(ms(39_000)).rate, 100);
        meter.lost(20_000);
        assert_eq!(meter.progress(ms(39_000)).bytes.0, 103_001);
    }
}
