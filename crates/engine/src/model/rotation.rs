//! Rotary positions: queries and keys are turned by angles that grow with their place.
//!
//! Angles are computed for the places that are read, not looked up in a table of fixed length: the context is as
//! long as the model was made for.

use super::shape::{Pairs, Shape};

/// The turning of one kind of layers.
pub struct Rotation {
    /// Angle per place of each pair.
    speeds: Vec<f32>,
    pairs: Pairs,
    /// What the turned parts are multiplied with.
    factor: f32,
}

/// Sines and cosines of some places.
pub struct Turns {
    turns: Vec<(f32, f32)>,
    per_place: usize,
    pairs: Pairs,
}

impl Rotation {
    /// Speeds fall from 1 by powers of `base`; `stretch` and `factors` (one per pair) slow them down.
    pub fn new(shape: &Shape, base: f32, stretch: f32, factors: Option<&[f32]>) -> Self {
        let rotated = shape.rotary.rotated;
        let speeds = (0..rotated / 2).map(|pair| {
            let speed = 1.0 / base.powf((2 * pair) as f32 / rotated as f32);
            let slower = factors.and_then(|factors| factors.get(pair)).copied().unwrap_or(1.0);
            speed / slower / stretch
        });
        Self { speeds: speeds.collect(), pairs: shape.rotary.pairs, factor: shape.rotary.factor }
    }

    /// The turns of `count` places from `begin` on.
    pub fn turns(&self, begin: usize, count: usize) -> Turns {
        let turn = |angle: f32| {
            let (sine, cosine) = angle.sin_cos();
            (sine * self.factor, cosine * self.factor)
        };
        let places = begin..begin + count;
        let turns = places.flat_map(|place| self.speeds.iter().map(move |speed| turn(place as f32 * speed)));
        Turns { turns: turns.collect(), per_place: self.speeds.len(), pairs: self.pairs }
    }
}

impl Turns {
    /// Turns rows of `heads` heads of `head` numbers each; what is behind the turned part of a head stays.
    pub fn apply(&self, rows: &mut [f32], heads: usize, head: usize) {
        for (row, turns) in rows.chunks_exact_mut(heads * head).zip(self.turns.chunks_exact(self.per_place)) {
            for head in row.chunks_exact_mut(head) {
                for (pair, (sine, cosine)) in turns.iter().enumerate() {
                    let (first, second) = match self.pairs {
                        Pairs::Neighbours => (2 * pair, 2 * pair + 1),
                        Pairs::Halves => (pair, pair + self.per_place),
                    };
                    let (a, b) = (head[first], head[second]);
                    head[first] = a * cosine - b * sine;
                    head[second] = a * sine + b * cosine;
                }
            }
        }
    }
}
