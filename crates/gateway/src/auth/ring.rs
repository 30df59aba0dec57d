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
use crate::error::{ApiError, ApiResult};

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
    /// The key is good, its end date has passed.
    #[error("the key has expired")]
    Expired,
    /// The key is good, its account is suspended.
    #[error("the account is suspended")]
    Suspended,
    /// Too many wrong keys came from the same address; nobody looked at this one.
    #[error("too many wrong keys")]
    Limited(ApiError),
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

/// What the ring knows of a key.
enum Remembered {
    Fresh(Arc<KeyRow>),
    Stale,
    Never,
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

    /// The row of a key that is valid now. `stranger` is asked before anything is done for a key that nobody here has
    /// seen lately.
    pub async fn check(
        &self,
        text: &str,
        kind: KeyKind,
        stranger: impl FnOnce() -> ApiResult<()>,
    ) -> Result<Arc<KeyRow>, KeyFault> {
        let parsed = key::parse(text).filter(|(printed, _)| *printed == kind);
        let Some((_, id)) = parsed else {
            stranger().map_err(KeyFault::Limited)?;
            return Err(KeyFault::Invalid);
        };
        let row = match self.remembered(&id) {
            Remembered::Fresh(row) => row,
            Remembered::Stale => self.read(&id).await?,
            Remembered::Never => {
                stranger().map_err(KeyFault::Limited)?;
                self.read(&id).await?
            }
        };
        if !same(&row.hash, &self.pepper.hash(text)) || row.kind != kind || row.revoked_at.is_some() {
            return Err(KeyFault::Invalid);
        }
        if row.settings.expires_at.is_some_and(|end| end <= self.clock.now()) {
            return Err(KeyFault::Expired);
        }
        if row.suspended { Err(KeyFault::Suspended) } else { Ok(row) }
    }

    fn remembered(&self, id: &KeyId) -> Remembered {
        let now = self.clock.mono();
        let mut known = self.known.lock();
        let Some(entry) = known.get_mut(id) else { return Remembered::Never };
        let age = now.saturating_sub(entry.read_at);
        if age >= VALID {
            return Remembered::Stale;
        }
        if age >= RENEW && !entry.renewing {
            entry.renewing = true;
            return Remembered::Stale;
        }
        Remembered::Fresh(entry.row.clone())
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
