//! Whether a model fits on the disk, and what may go for it (NR33). Pure.

use cxmpute_wire::Timestamp;

use super::digest::Digest;

/// A margin is this part of what is fetched …
const MARGIN_PART: u64 = 20;

/// Bytes that must be free before `fetch` more are fetched: 5 % on top, at least `floor`.
#[must_use]
pub fn needed(fetch: u64, floor: u64) -> u64 {
    fetch.saturating_add((fetch / MARGIN_PART).max(floor))
}

/// One blob that the node fetched itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Which.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// When a service last began or ended to use it.
    pub last_used: Timestamp,
    /// A service uses it, or the service that is being prepared will.
    pub in_use: bool,
}

/// Which blobs to delete so that `missing` bytes become free: those unused for longest, no more than needed. Nothing is
/// deleted where all of them together are not enough.
#[must_use]
pub fn evict(kept: &[Kept], missing: u64) -> Option<Vec<Digest>> {
    let mut unused: Vec<&Kept> = kept.iter().filter(|blob| !blob.in_use).collect();
    unused.sort_by_key(|blob| (blob.last_used, blob.digest));
    let (mut freed, mut gone) = (0_u64, Vec::new());
    for blob in unused {
        if freed >= missing {
            break;
        }
        freed = freed.saturating_add(blob.size);
        gone.push(blob.digest);
    }
    (freed >= missing).then_some(gone)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn there_is_a_margin_of_five_percent_and_never_less_than_the_floor() {
        assert_eq!(needed(100 << 30, 1 << 30), 105 << 30);
        assert_eq!(needed(1 << 30, 1 << 30), 2 << 30);
        assert_eq!(needed(u64::MAX, 1), u64::MAX);
    }

    proptest! {
        #[test]
        fn what_goes_is_unused_oldest_and_enough(
            blobs in proptest::collection::vec((1_u64..1_000, 0_i64..50, any::<bool>()), 0..12),
            missing in 0_u64..4_000,
        ) {
            let kept: Vec<Kept> = blobs
                .iter()
                .enumerate()
                .map(|(n, (size, used, in_use))| Kept {
                    digest: Digest::of(&n.to_le_bytes()),
                    size: *size,
                    last_used: Timestamp(*used),
                    in_use: *in_use,
                })
                .collect();
            let find = |digest: &Digest| kept.iter().find(|blob| blob.digest == *digest).unwrap();
            let free: u64 = kept.iter().filter(|blob| !blob.in_use).map(|blob| blob.size).sum();
            match evict(&kept, missing) {
                None => prop_assert!(free < missing),
                Some(gone) => {
                    let sizes: Vec<u64> = gone.iter().map(|digest| find(digest).size).collect();
                    prop_assert!(gone.iter().all(|digest| !find(digest).in_use));
                    prop_assert!(sizes.iter().sum::<u64>() >= missing);
                    let without_last = sizes.iter().rev().skip(1).sum::<u64>();
                    prop_assert!(gone.is_empty() || without_last < missing, "more than needed");
                    let youngest = gone.iter().map(|digest| find(digest).last_used).max();
                    let stays = kept.iter().filter(|blob| !blob.in_use && !gone.contains(&blob.digest));
                    prop_assert!(stays.map(|blob| Some(blob.last_used)).all(|used| used >= youngest));
                }
            }
        }
    }
}
