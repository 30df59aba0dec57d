//! Chance, from the operating system. Pure code takes an `Rng` as an argument instead.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Fills `target` with bytes that nobody can guess.
///
/// Ends the program when the operating system has none: every key made after that would be worthless.
#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the operating system")]
pub fn fill(target: &mut [u8]) {
    getrandom::fill(target).expect("the operating system gives random bytes");
}

/// `N` bytes that nobody can guess.
pub fn bytes<const N: usize>() -> [u8; N] {
    let mut out = [0; N];
    fill(&mut out);
    out
}

/// `N` bytes for what is no secret: parts of ids, a choice among equals. They come from a generator of the thread,
/// without asking the operating system each time.
#[expect(clippy::disallowed_methods, reason = "this is the one place that uses the thread's generator")]
pub fn quick<const N: usize>() -> [u8; N] {
    rand::rng().random()
}

/// A fresh generator, seeded by the operating system, for code that takes chance as an argument.
pub fn rng() -> StdRng {
    StdRng::from_seed(bytes())
}

/// A uniformly chosen time from zero to `max`, so that many machines do not act in step.
pub fn jitter(max: Duration) -> Duration {
    jitter_from(&mut rng(), max)
}

/// [`jitter`] with a given generator.
pub fn jitter_from(rng: &mut impl RngExt, max: Duration) -> Duration {
    let max = u64::try_from(max.as_micros()).unwrap_or(u64::MAX);
    Duration::from_micros(rng.random_range(0..=max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        assert_ne!(bytes::<32>(), bytes::<32>());
        assert_ne!(quick::<16>(), quick::<16>());
    }

    #[test]
    fn jitter_stays_in_its_bounds() {
        for _ in 0..100 {
            assert!(jitter(Duration::from_millis(3)) <= Duration::from_millis(3));
        }
    }
}
