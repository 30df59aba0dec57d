//! API keys and provider keys. Only hashes are stored; the secret is seen once, by the person who made the key.

use cxmpute_wire::{KeyId, MicroCredits, Timestamp, UserId};
use sqlx::{AssertSqlSafe, FromRow};

use crate::db::{Db, on, read};
use crate::error::DbError;
use crate::limits::{KeySettings, Limits, list};

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
    /// Expiry and manners.
    pub settings: KeySettings,
    /// The key's limits, defaults included.
    pub limits: Limits,
    /// Limits of the whole account, defaults included.
    pub account: Limits,
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
    expires_at: Option<i64>,
    strict: i64,
    force_usage: i64,
    requests_per_minute: Option<i64>,
    tokens_per_minute: Option<i64>,
    concurrent: Option<i64>,
    spend_per_day: Option<i64>,
    spend_per_month: Option<i64>,
    models: Option<String>,
    routes: Option<String>,
    account_requests_per_minute: Option<i64>,
    account_tokens_per_minute: Option<i64>,
    account_concurrent: Option<i64>,
    account_spend_per_day: Option<i64>,
    account_spend_per_month: Option<i64>,
    account_models: Option<String>,
    account_routes: Option<String>,
}

/// A key with its account and the limits of both, 0 turned into "no limit".
const SELECT: &str =
    "SELECT k.id, k.user_id, k.kind, k.name, k.hash, k.env, k.created_at, k.revoked_at, k.budget,
    k.spent,
    k.held - CAST((SELECT COALESCE(SUM(a.amount), 0) FROM allowances a WHERE a.key_id = k.id) AS BIGINT) AS held,
    u.suspended_at, k.expires_at, k.strict, k.force_usage,
    NULLIF(COALESCE(k.requests_per_minute, dk.requests_per_minute), 0) AS requests_per_minute,
    NULLIF(COALESCE(k.tokens_per_minute, dk.tokens_per_minute), 0) AS tokens_per_minute,
    NULLIF(COALESCE(k.concurrent, dk.concurrent), 0) AS concurrent,
    NULLIF(COALESCE(k.spend_per_day, dk.spend_per_day), 0) AS spend_per_day,
    NULLIF(COALESCE(k.spend_per_month, dk.spend_per_month), 0) AS spend_per_month,
    k.models, k.routes,
    NULLIF(COALESCE(u.requests_per_minute, da.requests_per_minute), 0) AS account_requests_per_minute,
    NULLIF(COALESCE(u.tokens_per_minute, da.tokens_per_minute), 0) AS account_tokens_per_minute,
    NULLIF(COALESCE(u.concurrent, da.concurrent), 0) AS account_concurrent,
    NULLIF(COALESCE(u.spend_per_day, da.spend_per_day), 0) AS account_spend_per_day,
    NULLIF(COALESCE(u.spend_per_month, da.spend_per_month), 0) AS account_spend_per_month,
    u.models AS account_models, u.routes AS account_routes
 FROM api_keys k JOIN users u ON u.id = k.user_id
   JOIN limit_defaults dk ON dk.subject = 'key' JOIN limit_defaults da ON da.subject = 'account'";

impl TryFrom<RawKey> for KeyRow {
    type Error = DbError;

    fn try_from(raw: RawKey) -> Result<Self, DbError> {
        let count = |value: Option<i64>| value.map(|value| u64::try_from(value).unwrap_or(0));
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
            settings: KeySettings {
                expires_at: raw.expires_at.map(Timestamp),
                strict: raw.strict != 0,
                force_usage: raw.force_usage != 0,
            },
            limits: Limits {
                requests_per_minute: count(raw.requests_per_minute),
                tokens_per_minute: count(raw.tokens_per_minute),
                concurrent: count(raw.concurrent),
                spend_per_day: raw.spend_per_day.map(MicroCredits),
                spend_per_month: raw.spend_per_month.map(MicroCredits),
                models: list(raw.models)?,
                routes: list(raw.routes)?,
            },
            account: Limits {
                requests_per_minute: count(raw.account_requests_per_minute),
                tokens_per_minute: count(raw.account_tokens_per_minute),
                concurrent: count(raw.account_concurrent),
                spend_per_day: raw.account_spend_per_day.map(MicroCredits),
                spend_per_month: raw.account_spend_per_month.map(MicroCredits),
                models: list(raw.account_models)?,
                routes: list(raw.account_routes)?,
            },
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
            sqlx::query_as(AssertSqlSafe(format!("{SELECT} WHERE k.id = $1")))
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
            sqlx::query_as(AssertSqlSafe(format!("{SELECT} WHERE k.user_id = $1 ORDER BY k.created_at DESC, k.id")))
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
        tx.recall("key_id", id.as_str()).await?;
        tx.commit().await?;
        Ok(done == 1)
    }
}
