//! Keys and values of what a model has read, in blocks that readings share.
//!
//! A clone shares all blocks; writing into a shared block copies that one block first. So a beginning that several
//! answers have in common lies in memory once, and cutting a reading back to any place costs nothing.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

/// Tokens of one block.
pub const BLOCK: usize = 32;

/// How a cache lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Layers of the model.
    pub layers: usize,
    /// Numbers per token and layer, of the keys as of the values.
    pub width: usize,
}

impl Layout {
    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        self.block_numbers().saturating_mul(size_of::<f32>())
    }

    /// Bytes that one token takes.
    pub fn token_bytes(self) -> usize {
        self.block_bytes() / BLOCK
    }

    fn block_numbers(self) -> usize {
        self.layers.saturating_mul(self.width).saturating_mul(2 * BLOCK)
    }
}

/// Keys and values of a sequence of tokens.
#[derive(Debug, Clone)]
pub struct Cache {
    layout: Layout,
    blocks: Vec<Arc<Vec<f32>>>,
    length: usize,
}

impl Cache {
    /// A cache that holds nothing.
    pub fn new(layout: Layout) -> Self {
        Self { layout, blocks: Vec::new(), length: 0 }
    }

    /// Tokens that it holds.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The same for the first `length` tokens only.
    pub fn beginning(&self, length: usize) -> Self {
        let length = length.min(self.length);
        let blocks = self.blocks[..length.div_ceil(BLOCK)].to_vec();
        Self { layout: self.layout, blocks, length }
    }

    /// Makes room for more tokens. What is written there counts once [`Self::advance`] is called.
    pub fn reserve(&mut self, count: usize) {
        let blocks = (self.length + count).div_ceil(BLOCK);
        while self.blocks.len() < blocks {
            self.blocks.push(Arc::new(vec![0.0; self.layout.block_numbers()]));
        }
    }

    /// Writes keys and values of one layer for the tokens after those that are held.
    pub fn write(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let width = self.layout.width;
        for (row, (key, value)) in keys.chunks_exact(width).zip(values.chunks_exact(width)).enumerate() {
            let token = self.length + row;
            let at = self.place(layer, token % BLOCK);
            let block = Arc::make_mut(&mut self.blocks[token / BLOCK]);
            block[at..at + width].copy_from_slice(key);
            let at = at + BLOCK * width;
            block[at..at + width].copy_from_slice(value);
        }
    }

    /// Counts tokens that were written in every layer.
    pub fn advance(&mut self, count: usize) {
        self.length += count;
    }

    /// Shows the keys of one layer, token by token.
    pub fn keys(&self, layer: usize, tokens: Range<usize>, see: impl FnMut(&[f32])) {
        self.walk(self.place(layer, 0), tokens, see);
    }

    /// Shows the values of one layer, token by token.
    pub fn values(&self, layer: usize, tokens: Range<usize>, see: impl FnMut(&[f32])) {
        self.walk(self.place(layer, 0) + BLOCK * self.layout.width, tokens, see);
    }

    /// Adds the blocks that are not in the set yet, and tells how many those are.
    pub fn count_new_blocks(&self, seen: &mut HashSet<usize>) -> usize {
        self.blocks.iter().filter(|block| seen.insert(Arc::as_ptr(block).addr())).count()
    }

    fn walk(&self, start: usize, tokens: Range<usize>, mut see: impl FnMut(&[f32])) {
        let width = self.layout.width;
        let mut token = tokens.start;
        while token < tokens.end {
            let end = tokens.end.min((token / BLOCK + 1) * BLOCK);
            let rows = start + token % BLOCK * width..start + ((end - 1) % BLOCK + 1) * width;
            self.blocks[token / BLOCK][rows].chunks_exact(width).for_each(&mut see);
            token = end;
        }
    }

    fn place(&self, layer: usize, slot: usize) -> usize {
        (layer * 2 * BLOCK + slot) * self.layout.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { layers: 2, width: 3 };

    fn put(cache: &mut Cache, numbers: Range<u16>) {
        let rows = |offset: f32| -> Vec<f32> {
            numbers
                .clone()
                .flat_map(|n| (0..3_u8).map(move |i| f32::from(n) + f32::from(i) / 10.0 + offset))
                .collect()
        };
        cache.reserve(numbers.len());
        for layer in 0..2_u8 {
            cache.write(layer.into(), &rows(f32::from(layer) * 1e3), &rows(f32::from(layer) * 1e3 + 5e3));
        }
        cache.advance(numbers.len());
    }

    fn firsts(cache: &Cache, layer: usize, tokens: Range<usize>) -> Vec<f32> {
        let mut out = Vec::new();
        cache.keys(layer, tokens.clone(), |key| out.push(key[0]));
        cache.values(layer, tokens, |value| out.push(value[0]));
        out
    }

    #[test]
    fn what_was_written_is_shown_across_blocks() {
        let mut cache = Cache::new(LAYOUT);
        put(&mut cache, 0..70);
        put(&mut cache, 70..71);
        assert_eq!(cache.length(), 71);
        assert_eq!(firsts(&cache, 1, 62..66), [1062., 1063., 1064., 1065., 6062., 6063., 6064., 6065.]);
        assert_eq!(firsts(&cache, 0, 70..71), [70., 5070.]);
        assert!(firsts(&cache, 0, 5..5).is_empty());
    }

    #[test]
    fn clones_share_blocks_and_never_see_each_others_writing() {
        let mut first = Cache::new(LAYOUT);
        put(&mut first, 0..40);
        let mut second = first.beginning(35);
        assert_eq!((second.length(), first.beginning(99).length()), (35, 40));
        let mut seen = HashSet::new();
        assert_eq!((first.count_new_blocks(&mut seen), second.count_new_blocks(&mut seen)), (2, 0));
        put(&mut second, 200..202);
        assert_eq!(second.count_new_blocks(&mut seen), 1);
        assert_eq!(firsts(&first, 0, 34..37), [34., 35., 36., 5034., 5035., 5036.]);
        assert_eq!(firsts(&second, 0, 34..37), [34., 200., 201., 5034., 5200., 5201.]);
    }
}
