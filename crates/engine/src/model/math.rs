//! What is computed between the matrices.

use rayon::prelude::*;

use super::cache::Cache;
use super::shape::Shape;

/// Multiplications below which attention is not worth handing to other threads.
const WORTH_SHARING: usize = 1 << 18;

/// Adds a vector to another.
pub fn add(target: &mut [f32], other: &[f32]) {
    for (target, other) in target.iter_mut().zip(other) {
        *target += other;
    }
}

/// The product of two vectors. Eight sums side by side, always in the same order.
pub fn dot(left: &[f32], right: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (left_blocks, right_blocks) = (left.chunks_exact(8), right.chunks_exact(8));
    let rest: f32 = left_blocks.remainder().iter().zip(right_blocks.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in left_blocks.zip(right_blocks) {
        for lane in 0..8 {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Divides each row by its root mean square and multiplies it with `weight`; a row is as long as that.
pub fn normalize(input: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut out = Vec::with_capacity(input.len());
    for row in input.chunks_exact(weight.len()) {
        let mean = dot(row, row) / weight.len() as f32;
        let factor = 1.0 / (mean + epsilon).sqrt();
        out.extend(row.iter().zip(weight).map(|(value, weight)| value * factor * weight));
    }
    out
}

/// x · σ(x).
pub fn silu(x: f32) -> f32 {
    x / (1.0 + (-x).exp())
}

/// GELU as Gemma has it, by a hyperbolic tangent.
pub fn gelu(x: f32) -> f32 {
    const ROOT: f32 = 0.797_884_6; // √(2/π)
    0.5 * x * (1.0 + (ROOT * (x + 0.044_715 * x * x * x)).tanh())
}

/// Bends a score so that it stays within ± `limit`.
pub fn cap(score: f32, limit: f32) -> f32 {
    (score / limit).tanh() * limit
}

/// What each head of each new token takes from the tokens it sees: its own and those before it, at most `window` of
/// them. The keys and values of the new tokens are in the cache already.
pub fn attend(
    shape: &Shape,
    cache: &Cache,
    layer: usize,
    window: Option<usize>,
    queries: &[f32],
) -> Vec<f32> {
    let begin = cache.length();
    let mut out = vec![0.0; queries.len()];
    let one = |(number, (query, out)): (usize, (&[f32], &mut [f32]))| {
        let (row, head) = (number / shape.heads, number % shape.heads);
        let end = begin + row + 1;
        let first = window.map_or(0, |window| end.saturating_sub(window));
        let place = head / (shape.heads / shape.kv_heads) * shape.head..;
        mix(shape, cache, layer, first..end, place.start, query, out);
    };
    let pairs = queries.par_chunks_exact(shape.head).zip(out.par_chunks_exact_mut(shape.head));
    let rows = queries.len() / (shape.heads * shape.head);
    let work = queries.len() * (begin + rows);
    if work >= WORTH_SHARING && rayon::current_num_threads() > 1 {
        pairs.enumerate().for_each(one);
    } else {
        queries.chunks_exact(shape.head).zip(out.chunks_exact_mut(shape.head)).enumerate().for_each(one);
    }
    out
}

fn mix(
    shape: &Shape,
    cache: &Cache,
    layer: usize,
    seen: std::ops::Range<usize>,
    place: usize,
    query: &[f32],
    out: &mut [f32],
) {
    let part = place..place + shape.head;
    let mut scores = Vec::with_capacity(seen.len());
    let mut best = f32::NEG_INFINITY;
    cache.keys(layer, seen.clone(), |key| {
        let mut score = dot(query, &key[part.clone()]) * shape.score_scale;
        if let Some(limit) = shape.score_cap {
            score = cap(score, limit);
        }
        best = best.max(score);
        scores.push(score);
    });
    let mut sum = 0.0;
    for score in &mut scores {
        *score = (*score - best).exp();
        sum += *score;
    }
    let mut weights = scores.iter();
    cache.values(layer, seen, |value| {
        let weight = weights.next().copied().unwrap_or_default() / sum;
        for (out, value) in out.iter_mut().zip(&value[part.clone()]) {
            *out += weight * value;
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_and_norms_are_those_of_the_definition() {
        let row: Vec<f32> = (1..=11_u8).map(f32::from).collect();
        assert!((dot(&row, &row) - 506.0).abs() < 1e-3);
        let out = normalize(&[3.0, 4.0, 0.0, 2.0], &[1.0, 2.0], 0.0);
        let expected = [3.0 / 12.5_f32.sqrt(), 8.0 / 12.5_f32.sqrt(), 0.0, 4.0 / 2_f32.sqrt()];
        assert!(out.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{out:?}");
    }

    #[test]
    fn activations_are_those_of_the_definition() {
        assert!((silu(1.0) - 0.731_058_6).abs() < 1e-6 && silu(-100.0).abs() < 1e-6);
        assert!((gelu(1.0) - 0.841_192).abs() < 1e-5 && (gelu(-1.0) + 0.158_808).abs() < 1e-5);
        assert!((cap(1000.0, 30.0) - 30.0).abs() < 1e-6 && (cap(0.1, 30.0) - 0.1).abs() < 1e-4);
    }
}
