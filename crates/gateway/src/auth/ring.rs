//! Checking keys. The checksum comes first and needs no store; a valid key is remembered for at most one second, which
//! is how soon a revocation works everywhere (SR15).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_runtime::Clock;
use cxmpute_store::{Db, DbError, KeyKind, KeyRow};
use cxmpute_wire::KeyId;
use parking_lot::Mutex;

use super::key;
use super::pepper::{Pepper, same};

/// How long the store's word about a key is good.
const VALID: Duration = Duration::from_secs(1);
/// After this long one caller asks again while the others still use what is known.
const RENEW: Duration = Duration::from_millis(500);
/// Keys remembered at a time.
const CAPACITY: usize = 10_000;

/// Why a key does not open anything.
#[derive(Debug, thiserror::Error)]
pub enum KeyFault {
    /// Missing, malformed, unknown, revoked or of the other kind: all the same to a stranger.
    #[error("no valid key")]
    Invalid,
    /// The key is good, its account is suspended.
    #[error("the account is suspended")]
    Suspended,
    /// Nobody knows whether the key is good.
    #[error("the store did not answer")]
    Store(#[source] DbError),
}

/// The keys that were checked lately.
#[derive(Clone)]
pub struct KeyRing {
    db: Db,
    pepper: Pepper,
    clock: Clock,
    known: Arc<Mutex<HashMap<KeyId, Known>>>,
}

struct Known {
    row: Arc<KeyRow>,
    read_at: Duration,
    renewing: bool,
}

impl KeyRing {
    /// An empty ring.
    #[must_use]
    pub fn new(db: Db, pepper: Pepper, clock: Clock) -> Self {
        Self { db, pepper, clock, known: Arc::default() }
    }

    /// The hash under which a key or grant is stored.
    #[must_use]
    pub fn hash(&self, text: &str) -> [u8; 32] {
        self.pepper.hash(text)
    }

    /// The row of a key that is valid now.
    pub async fn check(&self, text: &str, kind: KeyKind) -> Result<Arc<KeyRow>, KeyFault> {
        let (printed, id) = key::parse(text).ok_or(KeyFault::Invalid)?;
        if printed != kind {
            return Err(KeyFault::Invalid);
        }
        let row = match self.remembered(&id) {
            Some(row) => row,
            None => self.read(&id).await?,
        };
        if !same(&row.hash, &self.pepper.hash(text)) || row.kind != kind || row.revoked_at.is_some() {
            return Err(KeyFault::Invalid);
        }
        if row.suspended { Err(KeyFault::Suspended) } else { Ok(row) }
    }

    fn remembered(&self, id: &KeyId) -> Option<Arc<KeyRow>> {
        let now = self.clock.mono();
        let mut known = self.known.lock();
        let entry = known.get_mut(id)?;
        let age = now.saturating_sub(entry.read_at);
        if age >= VALID {
            return None;
        }
        if age >= RENEW && !entry.renewing {
            entry.renewing = true;
            return None;
        }
        Some(entry.row.clone())
    }

    async fn read(&self, id: &KeyId) -> Result<Arc<KeyRow>, KeyFault> {
        // The age counts from before the read: a revocation during it must not be missed for longer.
        let read_at = self.clock.mono();
        let row = self.db.find_key(id).await.map_err(KeyFault::Store)?;
        let row = Arc::new(row.ok_or(KeyFault::Invalid)?);
        let mut known = self.known.lock();
        if known.len() >= CAPACITY && !known.contains_key(id) {
            known.retain(|_, entry| read_at.saturating_sub(entry.read_at) < VALID);
            if known.len() >= CAPACITY {
                known.clear();
            }
        }
        known.insert(id.clone(), Known { row: row.clone(), read_at, renewing: false });
        Ok(row)
    }
}
