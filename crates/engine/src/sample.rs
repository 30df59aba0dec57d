//! Choosing the next token from the model's scores.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// 0 takes the likeliest token; higher is more varied.
    pub temperature: f64,
    /// Only the likeliest tokens that together reach this probability.
    pub top_p: f64,
    /// Only this many of the likeliest tokens.
    pub top_k: Option<usize>,
}

/// Chooses tokens; the same seed and scores give the same choices.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    chance: StdRng,
}

impl Sampler {
    /// A sampler that begins at a seed.
    pub fn new(sampling: Sampling, seed: u64) -> Self {
        Self { sampling, chance: StdRng::seed_from_u64(seed) }
    }

    /// The next token. `scores` has one score per token of the vocabulary; scores that are not numbers never win.
    pub fn choose(&mut self, scores: &[f32]) -> Option<u32> {
        // Below this temperature the likeliest token has all the probability a float can express.
        if self.sampling.temperature < 1e-4 || self.sampling.top_k == Some(1) {
            return likeliest(scores);
        }
        let mut ranked: Vec<(u32, f64)> = (0..)
            .zip(scores)
            .filter(|(_, score)| score.is_finite())
            .map(|(id, score)| (id, f64::from(*score)))
            .collect();
        // Ties keep the order of the vocabulary, so that equal runs stay equal.
        let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
        if let Some(top_k) = self.sampling.top_k.filter(|top_k| (1..ranked.len()).contains(top_k)) {
            ranked.select_nth_unstable_by(top_k - 1, order);
            ranked.truncate(top_k);
        }
        // A whole vocabulary is sorted only when something depends on the order.
        if self.sampling.top_p < 1.0 || self.sampling.top_k.is_some() {
            ranked.sort_unstable_by(order);
        }
        let best = ranked.iter().map(|(_, score)| *score).max_by(f64::total_cmp)?;
        for (_, weight) in &mut ranked {
            *weight = ((*weight - best) / self.sampling.temperature).exp();
        }
        let sum: f64 = ranked.iter().map(|(_, weight)| weight).sum();
        let nucleus = sum * self.sampling.top_p;
        let mut kept = 0.0;
        let mut count = 0;
        for (_, weight) in &ranked {
            kept += weight;
            count += 1;
            if kept >= nucleus {
                break;
            }
        }
        let mut left = self.chance.random::<f64>() * kept;
        for (id, weight) in &ranked[..count] {
            left -= weight;
            if left < 0.0 {
                return Some(*id);
            }
        }
        ranked[..count].last().map(|(id, _)| *id)
    }
}

fn likeliest(scores: &[f32]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (id, score) in (0..).zip(scores) {
        if !score.is_nan() && best.is_none_or(|(_, top)| *score > top) {
            best = Some((id, *score));
        }
    }
    best.map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(sampling: Sampling, seed: u64, scores: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, seed);
        (0..2000).map(|_| sampler.choose(scores).unwrap()).collect()
    }

    #[test]
    fn zero_is_greedy_and_ties_take_the_first() {
        let greedy = Sampling { temperature: 0.0, top_p: 1.0, top_k: None };
        assert_eq!(Sampler::new(greedy, 1).choose(&[0.5, 2.0, 2.0, f32::NAN]), Some(1));
        assert_eq!(Sampler::new(greedy, 1).choose(&[]), None);
        assert_eq!(Sampler::new(greedy, 1).choose(&[f32::NAN]), None);
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let free = Sampling { temperature: 1.0, top_p: 1.0, top_k: None };
        let scores = [0.0, 3f32.ln(), f32::NEG_INFINITY];
        let first = drawn(free, 7, &scores);
        assert_eq!(first, drawn(free, 7, &scores));
        assert_ne!(first, drawn(free, 8, &scores));
        let ones = first.iter().filter(|id| **id == 1).count();
        assert!((1350..1650).contains(&ones), "{ones} of 2000, expected about 1500");
        assert!(!first.contains(&2));
    }

    #[test]
    fn top_k_and_top_p_cut_the_tail() {
        let scores = [1.0, 4.0, 3.0, 2.0];
        let top_k = Sampling { temperature: 2.0, top_p: 1.0, top_k: Some(2) };
        assert!(drawn(top_k, 1, &scores).iter().all(|id| [1, 2].contains(id)));
        let top_p = Sampling { temperature: 1.0, top_p: 0.5, top_k: None };
        assert!(drawn(top_p, 1, &scores).iter().all(|id| *id == 1));
    }
}
