//! Decoders of the supported architectures: tokens in, scores of the next token out.
//!
//! One decoder serves all architectures; what tells them apart is data ([`shape`]). Matrices stay quantized as they
//! lie in the file and are multiplied by candle's kernels; everything between them is computed here, row by row, so
//! that a token gets the same bits whether it is read alone or among others: that is what lets [`mod@crate::run`]
//! reuse what was read before without changing an answer.

pub mod cache;
mod math;
mod rotation;
pub mod shape;
mod weights;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::Context as _;
use cxmpute_tokens::gguf::Header;

use self::cache::{Cache, Layout};
use self::math::{add, attend, cap, normalize};
use self::rotation::{Rotation, Turns};
use self::shape::{Gate, Shape};
use self::weights::{Layer, Matrix, Source};

/// A model that can be read with by many at the same time.
pub struct Decoder {
    shape: Shape,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    output: Matrix,
    /// How queries and keys turn in layers that see everything.
    wide: Rotation,
    /// The same in layers with a window.
    narrow: Rotation,
}

impl Decoder {
    /// Loads the weights of a file for a context of at most this many tokens.
    ///
    /// # Errors
    /// When the file lacks a tensor, or one is of another size than the header says, with one sentence.
    pub fn load(path: &Path, header: &Header, shape: Shape, context: usize) -> anyhow::Result<Self> {
        let mut reader = BufReader::with_capacity(1 << 20, File::open(path)?);
        let mut source = Source::open(&mut reader)?;
        let embedding = source.embedding(&shape)?;
        let output = match source.output(&shape)? {
            Some(output) => output,
            None => embedding.clone(),
        };
        let layers = (0..shape.layers)
            .map(|number| source.layer(&shape, number).with_context(|| format!("layer {number}")))
            .collect::<anyhow::Result<_>>()?;
        let factors = source.rotation_factors(&shape, header, context)?;
        Ok(Self {
            norm: source.vector("output_norm.weight", shape.width)?,
            wide: Rotation::new(&shape, shape.rotary.base, shape.rotary.stretch, factors.as_deref()),
            narrow: Rotation::new(&shape, shape.rotary.narrow_base, 1.0, factors.as_deref()),
            shape,
            embedding,
            layers,
            output,
        })
    }

    /// How a cache of this model lies in memory.
    pub fn layout(&self) -> Layout {
        self.shape.layout()
    }

    /// Reads tokens after what the cache holds, adds them to it, and gives the scores of the token after the last.
    ///
    /// # Errors
    /// When a token is outside the vocabulary or the computation fails; the cache then holds what it held.
    pub fn read(&self, tokens: &[u32], cache: &mut Cache) -> candle_core::Result<Vec<f32>> {
        if tokens.is_empty() || tokens.iter().any(|token| *token as usize >= self.shape.vocabulary) {
            candle_core::bail!("no token or one outside the vocabulary");
        }
        let shape = &self.shape;
        let mut state = self.embedding.rows(tokens)?;
        for value in &mut state {
            *value *= shape.embedding_scale;
        }
        let begin = cache.length();
        let wide = self.wide.turns(begin, tokens.len());
        let narrow = self.narrow.turns(begin, tokens.len());
        cache.reserve(tokens.len());
        for (number, layer) in self.layers.iter().enumerate() {
            let window = shape.window_of(number);
            let turns = if window.is_some() { &narrow } else { &wide };
            let mixed = self.attention(layer, number, window, turns, &state, cache)?;
            add(&mut state, &mixed);
            let fed = self.feed_forward(layer, &state)?;
            add(&mut state, &fed);
        }
        cache.advance(tokens.len());
        let last = state.split_off(state.len() - shape.width);
        let last = normalize(&last, &self.norm, shape.epsilon);
        let mut scores = self.output.apply(&last)?;
        if let Some(limit) = shape.output_cap {
            scores.iter_mut().for_each(|score| *score = cap(*score, limit));
        }
        Ok(scores)
    }

    fn attention(
        &self,
        layer: &Layer,
        number: usize,
        window: Option<usize>,
        turns: &Turns,
        state: &[f32],
        cache: &mut Cache,
    ) -> candle_core::Result<Vec<f32>> {
        let shape = &self.shape;
        let input = normalize(state, &layer.attention_norm, shape.epsilon);
        let (mut queries, mut keys, values) = layer.projections.apply(&input, shape)?;
        if let Some(norm) = &layer.query_norm {
            queries = normalize(&queries, norm, shape.epsilon);
        }
        if let Some(norm) = &layer.key_norm {
            keys = normalize(&keys, norm, shape.epsilon);
        }
        turns.apply(&mut queries, shape.heads, shape.head);
        turns.apply(&mut keys, shape.kv_heads, shape.head);
        cache.write(number, &keys, &values);
        let mixed = attend(shape, cache, number, window, &queries);
        let mixed = layer.attention_output.apply(&mixed)?;
        Ok(match &layer.attention_post_norm {
            Some(norm) => normalize(&mixed, norm, shape.epsilon),
            None => mixed,
        })
    }

    fn feed_forward(&self, layer: &Layer, state: &[f32]) -> candle_core::Result<Vec<f32>> {
        let shape = &self.shape;
        let input = normalize(state, &layer.feed_norm, shape.epsilon);
        let (mut gate, up) = layer.feed_up.apply(&input, shape.feed_forward)?;
        let activation = match shape.gate {
            Gate::Silu => math::silu,
            Gate::Gelu => math::gelu,
        };
        for (gate, up) in gate.iter_mut().zip(up) {
            *gate = activation(*gate) * up;
        }
        let fed = layer.feed_down.apply(&gate)?;
        Ok(match &layer.feed_post_norm {
            Some(norm) => normalize(&fed, norm, shape.epsilon),
            None => fed,
        })
    }
}
