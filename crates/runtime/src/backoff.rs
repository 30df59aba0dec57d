//! Waiting between tries: doubling with full jitter.

use std::time::Duration;

use rand::RngExt;

use crate::random::jitter_from;

/// Waits drawn uniformly from zero to a bound that doubles with each try up to a cap ("full jitter": it spreads a
/// herd of clients better than any wait with a fixed part).
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    cap: Duration,
    tries: u32,
}

impl Backoff {
    /// Bounds: `first`, 2 × `first`, 4 × `first` … `cap`.
    pub fn new(first: Duration, cap: Duration) -> Self {
        Self { first, cap, tries: 0 }
    }

    /// The next wait.
    pub fn next(&mut self, rng: &mut impl RngExt) -> Duration {
        let bound = self.bound();
        self.tries = self.tries.saturating_add(1);
        jitter_from(rng, bound)
    }

    /// The longest the next wait can be.
    pub fn bound(&self) -> Duration {
        self.first.saturating_mul(2u32.saturating_pow(self.tries)).min(self.cap)
    }

    /// Tries since the beginning or the last [`Backoff::reset`].
    pub fn tries(&self) -> u32 {
        self.tries
    }

    /// It worked: begin again with the first bound.
    pub fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn bounds_double_to_the_cap_and_start_over() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(30));
        let mut bounds = Vec::new();
        for _ in 0..40 {
            let bound = backoff.bound();
            assert!(backoff.next(&mut rng) <= bound);
            bounds.push(bound.as_secs());
        }
        assert_eq!(bounds[..6], [2, 4, 8, 16, 30, 30]);
        assert_eq!(bounds[39], 30);
        backoff.reset();
        assert_eq!(backoff.bound(), Duration::from_secs(2));
    }
}
