//! A reading: a model, what it has read, and the beginnings that are kept to be read on from.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::model::Decoder;
use crate::model::cache::Cache;

/// Most beginnings that are kept. Looking for one compares them all.
const MOST_KEPT: usize = 256;
/// Beginnings shorter than this are not worth a place: every conversation of a template has them in common.
const LEAST_KEPT: usize = 8;

/// A model and what it has read. A clone reads on from the same place by itself and shares what was read so far.
#[derive(Clone)]
pub struct Run {
    decoder: Arc<Decoder>,
    kept: Arc<Kept>,
    cache: Cache,
    tokens: Vec<u32>,
    salt: Arc<str>,
}

impl Run {
    /// A reading that has read nothing; it and all that begin from it keep beginnings in at most this many bytes.
    pub fn new(decoder: Decoder, kept_bytes: usize) -> Self {
        let layout = decoder.layout();
        let kept =
            Kept { bytes: kept_bytes, block_bytes: layout.block_bytes().max(1), ends: Mutex::default() };
        Self {
            decoder: Arc::new(decoder),
            kept: Arc::new(kept),
            cache: Cache::new(layout),
            tokens: Vec::new(),
            salt: Arc::default(),
        }
    }

    /// A reading that has read as much of a prompt as is kept, but not its last token: the scores after that one are
    /// not kept. See [`Self::position`]. Only what was kept with the same salt is reused.
    pub fn begin(&self, salt: &Arc<str>, prompt: &[u32]) -> Self {
        let (cache, length) =
            self.kept.find(salt, prompt).unwrap_or_else(|| (Cache::new(self.decoder.layout()), 0));
        Self {
            cache,
            tokens: prompt[..length].to_vec(),
            salt: salt.clone(),
            decoder: self.decoder.clone(),
            kept: self.kept.clone(),
        }
    }

    /// How many tokens were read.
    pub fn position(&self) -> usize {
        self.tokens.len()
    }

    /// Reads tokens and gives the scores of the next one.
    ///
    /// # Errors
    /// When the computation fails; nothing is read then.
    pub fn feed(&mut self, tokens: &[u32]) -> candle_core::Result<Vec<f32>> {
        let scores = self.decoder.read(tokens, &mut self.cache)?;
        self.tokens.extend(tokens);
        Ok(scores)
    }

    /// Keeps what was read for later prompts that begin with it.
    pub fn keep(&self) {
        self.kept.add(&self.salt, &self.tokens, &self.cache);
    }
}

/// Beginnings that are kept, the last used at the end.
struct Kept {
    bytes: usize,
    block_bytes: usize,
    ends: Mutex<Vec<Beginning>>,
}

struct Beginning {
    salt: Arc<str>,
    tokens: Vec<u32>,
    cache: Cache,
}

impl Kept {
    /// The longest kept beginning of a prompt that leaves at least one token to read.
    fn find(&self, salt: &str, prompt: &[u32]) -> Option<(Cache, usize)> {
        let most = prompt.len().checked_sub(1)?;
        let mut ends = self.ends.lock();
        let (place, length) = ends
            .iter()
            .enumerate()
            .filter(|(_, end)| *end.salt == *salt)
            .map(|(place, end)| (place, common(&end.tokens, prompt).min(most)))
            .max_by_key(|(_, length)| *length)
            .filter(|(_, length)| *length > 0)?;
        let end = ends.remove(place);
        let cache = end.cache.beginning(length);
        ends.push(end);
        Some((cache, length))
    }

    fn add(&self, salt: &Arc<str>, tokens: &[u32], cache: &Cache) {
        // One that takes more than there is would only push the others out.
        let size = cache.count_new_blocks(&mut HashSet::new()).saturating_mul(self.block_bytes);
        if tokens.len() < LEAST_KEPT || size > self.bytes {
            return;
        }
        let mut ends = self.ends.lock();
        // Any cut of a kept reading can be read on from, so one that is the beginning of another says nothing new.
        if let Some(place) = ends.iter().position(|end| end.salt == *salt && end.tokens.starts_with(tokens)) {
            let end = ends.remove(place);
            ends.push(end);
            return;
        }
        ends.retain(|end| end.salt != *salt || !tokens.starts_with(&end.tokens));
        ends.push(Beginning { salt: salt.clone(), tokens: tokens.to_vec(), cache: cache.clone() });
        // From the last used one back: what does not fit is dropped.
        let mut seen = HashSet::new();
        let mut blocks = 0;
        let fits = |end: &Beginning| {
            blocks += end.cache.count_new_blocks(&mut seen);
            blocks.saturating_mul(self.block_bytes) <= self.bytes
        };
        let kept = ends.iter().rev().take(MOST_KEPT).map(fits).take_while(|fits| *fits).count();
        let dropped = ends.len() - kept;
        ends.drain(..dropped);
    }
}

fn common(left: &[u32], right: &[u32]) -> usize {
    left.iter().zip(right).take_while(|(left, right)| left == right).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::cache::Layout;

    const LAYOUT: Layout = Layout { layers: 1, width: 1 };

    fn kept(blocks: usize) -> Kept {
        let block_bytes = LAYOUT.block_bytes();
        Kept { bytes: blocks * block_bytes, block_bytes, ends: Mutex::default() }
    }

    fn nobody() -> Arc<str> {
        Arc::default()
    }

    fn read(count: usize) -> Cache {
        let mut cache = Cache::new(LAYOUT);
        cache.reserve(count);
        cache.write(0, &vec![1.0; count], &vec![1.0; count]);
        cache.advance(count);
        cache
    }

    fn found(kept: &Kept, prompt: &[u32]) -> usize {
        kept.find("", prompt).map_or(0, |(cache, length)| {
            assert_eq!(cache.length(), length);
            length
        })
    }

    #[test]
    fn the_longest_beginning_is_found_and_one_token_is_left() {
        let kept = kept(100);
        let long: Vec<u32> = (0..50).collect();
        let other: Vec<u32> = (0..20).chain(100..120).collect();
        kept.add(&nobody(), &long, &read(50));
        kept.add(&nobody(), &other, &read(40));
        assert_eq!(found(&kept, &long), 49);
        assert_eq!(found(&kept, &[&long[..], &[7]].concat()), 50);
        assert_eq!(found(&kept, &[&other[..30], &[7, 8]].concat()), 30);
        assert_eq!((found(&kept, &[9, 9]), found(&kept, &[0]), found(&kept, &[])), (0, 0, 0));
    }

    #[test]
    fn a_beginning_of_another_takes_no_place_and_short_ones_are_not_kept() {
        let kept = kept(100);
        let long: Vec<u32> = (0..50).collect();
        kept.add(&nobody(), &long[..30], &read(30));
        kept.add(&nobody(), &long, &read(50));
        kept.add(&nobody(), &long[..40], &read(40));
        kept.add(&nobody(), &[5; 7], &read(7));
        assert_eq!(kept.ends.lock().len(), 1);
    }

    #[test]
    fn memory_is_bounded_and_the_last_used_stay() {
        let kept = kept(4);
        for first in 0..3 {
            kept.add(&nobody(), &[first; 40], &read(40));
        }
        assert_eq!(kept.ends.lock().len(), 2);
        assert_eq!((found(&kept, &[0; 50]), found(&kept, &[1; 50]), found(&kept, &[2; 50])), (0, 40, 40));
        assert_eq!(found(&kept, &[1; 50]), 40);
        kept.add(&nobody(), &[3; 40], &read(40));
        assert_eq!((found(&kept, &[2; 50]), found(&kept, &[1; 50]), found(&kept, &[3; 50])), (0, 40, 40));
        // One that is larger than everything is not kept, and the others stay.
        kept.add(&nobody(), &[4; 200], &read(200));
        assert_eq!((found(&kept, &[4; 200]), found(&kept, &[1; 50]), found(&kept, &[3; 50])), (0, 40, 40));
    }

    #[test]
    fn nothing_is_kept_when_nothing_may_be() {
        let kept = kept(0);
        kept.add(&nobody(), &[1; 40], &read(40));
        assert_eq!(found(&kept, &[1; 40]), 0);
    }

    #[test]
    fn what_was_read_for_one_is_not_reused_for_another() {
        let kept = kept(100);
        let prompt: Vec<u32> = (0..50).collect();
        let (ada, bob): (Arc<str>, Arc<str>) = ("ada".into(), "bob".into());
        kept.add(&ada, &prompt, &read(50));
        assert!(kept.find("ada", &prompt).is_some());
        assert!(kept.find("bob", &prompt).is_none() && kept.find("", &prompt).is_none());
        kept.add(&bob, &prompt, &read(50));
        assert_eq!(kept.ends.lock().len(), 2);
    }
}
