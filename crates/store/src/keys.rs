//! API keys and provider keys. Only hashes are stored; the secret is seen once, by the person who made the key.

use cxmpute_wire::{KeyId, MicroCredits, Timestamp, UserId};
use sqlx::FromRow;

use crate::db::{Db, on, read};
use crate::error::DbError;

/// Which side of the account a key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// `cxk_…`: uses the API and pays.
    Api,
    /// `cxp_…`: the first seed's provider routes.
    Provider,
}

impl KeyKind {
    /// The stored name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Provider => "provider",
        }
    }
}

/// A new key.
#[derive(Clone)]
pub struct NewKey {
    /// Public part.
    pub id: KeyId,
    /// Whose.
    pub user_id: UserId,
    /// Which side.
    pub kind: KeyKind,
    /// For people.
    pub name: String,
    /// Peppered hash of the secret.
    pub hash: Vec<u8>,
    /// `live` or another environment.
    pub env: String,
    /// Most it may spend in all; `None` leaves it to the balance.
    pub budget: Option<MicroCredits>,
    /// Now.
    pub created_at: Timestamp,
}

/// A key.
#[derive(Clone)]
pub struct KeyRow {
    /// Public part.
    pub id: KeyId,
    /// Whose.
    pub user_id: UserId,
    /// Which side.
    pub kind: KeyKind,
    /// For people.
    pub name: String,
    /// Peppered hash of the secret.
    pub hash: Vec<u8>,
    /// Environment.
    pub env: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
    /// Most it may spend in all.
    pub budget: Option<MicroCredits>,
    /// Settled so far, less refunds.
    pub spent: MicroCredits,
    /// Bound by running requests.
    pub held: MicroCredits,
    /// Whether the account is suspended.
    pub suspended: bool,
}

#[derive(FromRow)]
struct RawKey {
    id: String,
    user_id: String,
    kind: String,
    name: String,
    hash: Vec<u8>,
    env: String,
    created_at: i64,
    revoked_at: Option<i64>,
    budget: Option<i64>,
    spent: i64,
    held: i64,
    suspended_at: Option<i64>,
}

impl TryFrom<RawKey> for KeyRow {
    type Error = DbError;

    fn try_from(raw: RawKey) -> Result<Self, DbError> {
        Ok(Self {
            id: raw.id.parse().map_err(|e| DbError::impossible("api_keys.id", e))?,
            user_id: raw.user_id.parse().map_err(|e| DbError::impossible("api_keys.user_id", e))?,
            kind: match raw.kind.as_str() {
                "api" => KeyKind::Api,
                "provider" => KeyKind::Provider,
                other => return Err(DbError::impossible("api_keys.kind", other)),
            },
            name: raw.name,
            hash: raw.hash,
            env: raw.env,
            created_at: Timestamp(raw.created_at),
            revoked_at: raw.revoked_at.map(Timestamp),
            budget: raw.budget.map(MicroCredits),
            spent: MicroCredits(raw.spent),
            held: MicroCredits(raw.held),
            suspended: raw.suspended_at.is_some(),
        })
    }
}

impl Db {
    /// Stores a key.
    ///
    /// # Errors
    /// [`DbError::Exists`] when the id is taken; the store failed.
    pub async fn create_key(&self, key: &NewKey) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        on!(&mut tx, c =>
            sqlx::query(
                "INSERT INTO api_keys (id, user_id, kind, name, hash, env, budget, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)")
                .bind(key.id.as_str())
                .bind(key.user_id.as_str())
                .bind(key.kind.as_str())
                .bind(&key.name)
                .bind(&key.hash)
                .bind(&key.env)
                .bind(key.budget.map(MicroCredits::get))
                .bind(key.created_at.0)
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await
    }

    /// The key with this public part, revoked or not.
    ///
    /// # Errors
    /// The store failed.
    pub async fn find_key(&self, id: &KeyId) -> Result<Option<KeyRow>, DbError> {
        let raw: Option<RawKey> = read!(self, e =>
            sqlx::query_as(
                "SELECT k.id, k.user_id, k.kind, k.name, k.hash, k.env, k.created_at, k.revoked_at, k.budget, k.spent,
                        k.held, u.suspended_at
                 FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.id = $1")
                .bind(id.as_str())
                .fetch_optional(e)
                .await?);
        raw.map(KeyRow::try_from).transpose()
    }

    /// The keys of an account, newest first.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list_keys(&self, user: &UserId) -> Result<Vec<KeyRow>, DbError> {
        let raw: Vec<RawKey> = read!(self, e =>
            sqlx::query_as(
                "SELECT k.id, k.user_id, k.kind, k.name, k.hash, k.env, k.created_at, k.revoked_at, k.budget, k.spent,
                        k.held, u.suspended_at
                 FROM api_keys k JOIN users u ON u.id = k.user_id
                 WHERE k.user_id = $1 ORDER BY k.created_at DESC, k.id")
                .bind(user.as_str())
                .fetch_all(e)
                .await?);
        raw.into_iter().map(KeyRow::try_from).collect()
    }

    /// Revokes a key, for its owner (`Some`) or the operator (`None`). True when it was valid.
    ///
    /// # Errors
    /// The store failed.
    pub async fn revoke_key(
        &self,
        id: &KeyId,
        owner: Option<&UserId>,
        now: Timestamp,
    ) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query(
                "UPDATE api_keys SET revoked_at = $2
                 WHERE id = $1 AND revoked_at IS NULL AND (CAST($3 AS TEXT) IS NULL OR user_id = $3)")
                .bind(id.as_str())
                .bind(now.0)
                .bind(owner.map(UserId::as_str))
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await?;
        Ok(done == 1)
    }
}
