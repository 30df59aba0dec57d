//! A bounded map of tallies. One that is idle for so long that its buckets are full again says nothing and is dropped;
//! when all are busy, the oldest go.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::tally::Tally;

/// After this long without a request every bucket is full: a minute's worth and at most as much debt.
const FORGOTTEN: Duration = Duration::from_secs(121);
/// How often the whole shelf is looked through for what can be forgotten.
const SWEEP: Duration = Duration::from_secs(60);

/// Tallies by whose they are.
pub(super) struct Shelf<K> {
    capacity: usize,
    inner: Mutex<Inner<K>>,
}

struct Inner<K> {
    entries: HashMap<K, Entry>,
    swept: Duration,
}

struct Entry {
    tally: Arc<Tally>,
    used: Duration,
}

impl<K: Clone + Eq + Hash> Shelf<K> {
    /// An empty shelf for at most `capacity` tallies, beside those that running requests hold.
    pub(super) fn new(capacity: usize) -> Self {
        let inner = Inner { entries: HashMap::new(), swept: Duration::ZERO };
        Self { capacity: capacity.max(1), inner: Mutex::new(inner) }
    }

    /// The tally of `key`, made when there is none.
    pub(super) fn get(&self, key: &K, now: Duration) -> Arc<Tally> {
        let mut inner = self.inner.lock();
        if let Some(entry) = inner.entries.get_mut(key) {
            entry.used = entry.used.max(now);
            return entry.tally.clone();
        }
        if inner.entries.len() >= self.capacity || now.saturating_sub(inner.swept) >= SWEEP {
            inner.sweep(self.capacity, now);
        }
        let tally = Arc::new(Tally::default());
        inner.entries.insert(key.clone(), Entry { tally: tally.clone(), used: now });
        tally
    }

    /// The tally of `key`, if there is one.
    pub(super) fn find(&self, key: &K) -> Option<Arc<Tally>> {
        self.inner.lock().entries.get(key).map(|entry| entry.tally.clone())
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.inner.lock().entries.len()
    }
}

impl<K: Clone + Eq + Hash> Inner<K> {
    fn sweep(&mut self, capacity: usize, now: Duration) {
        self.swept = now;
        let is_free = |entry: &Entry| Arc::strong_count(&entry.tally) == 1;
        self.entries.retain(|_, entry| !is_free(entry) || now.saturating_sub(entry.used) < FORGOTTEN);
        if self.entries.len() < capacity {
            return;
        }
        // An eighth at a time, so that a full shelf is not sorted for every newcomer.
        let mut ages: Vec<(Duration, K)> = self
            .entries
            .iter()
            .filter(|(_, entry)| is_free(entry))
            .map(|(key, entry)| (entry.used, key.clone()))
            .collect();
        ages.sort_by_key(|(used, _)| *used);
        for (_, key) in ages.into_iter().take(capacity / 8 + 1) {
            self.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shelf_stays_bounded_and_keeps_what_runs() {
        let shelf = Shelf::new(64);
        let running = shelf.get(&usize::MAX, Duration::ZERO);
        for n in 0..10_000 {
            shelf.get(&n, Duration::from_millis(n as u64));
        }
        assert!(shelf.len() <= 64, "{}", shelf.len());
        assert!(Arc::ptr_eq(&running, &shelf.find(&usize::MAX).unwrap()));
        drop(running);
        shelf.get(&1, Duration::from_secs(1000));
        assert_eq!(shelf.len(), 1, "what was idle for long is forgotten");
    }
}
