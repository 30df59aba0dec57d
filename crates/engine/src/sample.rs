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
    /// Only tokens at least this likely, relative to the likeliest one; 0 is no bound.
    pub min_p: f64,
}

/// The seed of one of several answers: the first has the request's own, each further one another that follows from
/// it, so that a request with a seed gives the same answers again.
pub fn derived_seed(seed: u64, index: u64) -> u64 {
    if index == 0 {
        return seed;
    }
    // SplitMix64: neighbouring seeds and places give unrelated values.
    let mut mixed = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
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

    /// The next token. `scores` has one score per token of the vocabulary; a score that is no finite number never
    /// wins. Bounds apply in this order: `top_k` on the scores; then, on the probabilities at the temperature,
    /// `min_p` and `top_p`.
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
        let best = ranked.iter().map(|(_, score)| *score).max_by(f64::total_cmp)?;
        if self.sampling.min_p > 0.0 {
            let least = self.sampling.min_p.ln() * self.sampling.temperature;
            ranked.retain(|(_, score)| score - best >= least);
        }
        // A whole vocabulary is sorted only when something depends on the order.
        if self.sampling.top_p < 1.0 || self.sampling.top_k.is_some() {
            ranked.sort_unstable_by(order);
        }
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
        if score.is_finite() && best.is_none_or(|(_, top)| *score > top) {
            best = Some((id, *score));
        }
    }
    best.map(|(id, _)| id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FREE: Sampling = Sampling { temperature: 1.0, top_p: 1.0, top_k: None, min_p: 0.0 };

    fn drawn(sampling: Sampling, seed: u64, scores: &[f32]) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling, seed);
        (0..2000).map(|_| sampler.choose(scores).unwrap()).collect()
    }

    #[test]
    fn zero_is_greedy_and_ties_take_the_first() {
        let greedy = Sampling { temperature: 0.0, ..FREE };
        assert_eq!(Sampler::new(greedy, 1).choose(&[0.5, 2.0, 2.0, f32::NAN]), Some(1));
        assert_eq!(Sampler::new(greedy, 1).choose(&[]), None);
        assert_eq!(Sampler::new(greedy, 1).choose(&[f32::NAN, f32::NEG_INFINITY]), None);
    }

    #[test]
    fn draws_follow_the_distribution_and_the_seed() {
        let scores = [0.0, 3f32.ln(), f32::NEG_INFINITY];
        let first = drawn(FREE, 7, &scores);
        assert_eq!(first, drawn(FREE, 7, &scores));
        assert_ne!(first, drawn(FREE, 8, &scores));
        let ones = first.iter().filter(|id| **id == 1).count();
        assert!((1350..1650).contains(&ones), "{ones} of 2000, expected about 1500");
        assert!(!first.contains(&2));
    }

    #[test]
    fn bounds_cut_the_tail() {
        let scores = [1.0, 4.0, 3.0, 2.0];
        let top_k = Sampling { temperature: 2.0, top_k: Some(2), ..FREE };
        assert!(drawn(top_k, 1, &scores).iter().all(|id| [1, 2].contains(id)));
        let top_p = Sampling { top_p: 0.5, ..FREE };
        assert!(drawn(top_p, 1, &scores).iter().all(|id| *id == 1));
        // e^-1 is about 0.37 and e^-2 about 0.14 of the likeliest token.
        let min_p = drawn(Sampling { min_p: 0.2, ..FREE }, 1, &scores);
        assert!(min_p.contains(&2) && min_p.iter().all(|id| [1, 2].contains(id)));
        // At a higher temperature they are nearer to it.
        assert!(drawn(Sampling { min_p: 0.2, temperature: 2.0, ..FREE }, 1, &scores).contains(&0));
    }

    #[test]
    fn each_answer_has_a_seed_of_its_own_and_the_first_the_requests() {
        assert_eq!(derived_seed(7, 0), 7);
        let seeds: std::collections::BTreeSet<u64> =
            (0..8).flat_map(|seed| (0..64).map(move |index| derived_seed(seed, index))).collect();
        assert_eq!(seeds.len(), 8 * 64);
    }

    proptest! {
        #[test]
        fn whatever_the_bounds_a_token_with_a_score_is_chosen(
            scores in prop::collection::vec(prop_oneof![Just(f32::NEG_INFINITY), Just(f32::NAN), -50f32..50.0], 1..40),
            temperature in 0f64..2.0, top_p in 0f64..=1.0, top_k in prop::option::of(1usize..50),
            min_p in 0f64..=1.0, seed: u64,
        ) {
            let chosen = Sampler::new(Sampling { temperature, top_p, top_k, min_p }, seed).choose(&scores);
            match chosen {
                Some(id) => prop_assert!(scores[id as usize].is_finite()),
                None => prop_assert!(!scores.iter().any(|score| score.is_finite())),
            }
        }
    }
}
