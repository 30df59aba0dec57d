//! What was used: one row per request, and sums over them. Never the source of a balance (MR10).

use cxmpute_market::ledger::End;
use cxmpute_market::price::Units;
use cxmpute_wire::{KeyId, MicroCredits, Millis, ProvisionId, RequestId, Timestamp, Tokens, UserId};
use sqlx::FromRow;

use crate::db::{Db, read};
use crate::error::DbError;

/// One request as its payer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GenerationRow {
    /// The request.
    pub id: RequestId,
    /// With which key.
    pub key_id: KeyId,
    /// Route.
    pub route: String,
    /// Model.
    pub model: String,
    /// Whether it was streamed.
    pub streamed: bool,
    /// `X-Title`.
    pub title: Option<String>,
    /// `Referer`.
    pub referer: Option<String>,
    /// How it ended; absent while it runs.
    pub end: Option<End>,
    /// As given to the client.
    pub finish_reason: Option<String>,
    /// Who served it.
    pub provision_id: Option<ProvisionId>,
    /// Number of attempts.
    pub attempts: i64,
    /// The gateway's count.
    pub units: Units,
    /// What the user paid.
    pub cost: MicroCredits,
    /// What the provider earned.
    pub provider_reward: MicroCredits,
    /// Price row: id and version.
    pub price: (String, i64),
    /// Until the first content.
    pub first_token: Option<Millis>,
    /// In all.
    pub latency: Option<Millis>,
    /// When it came in.
    pub created_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

/// Sums over finished requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct UsageTotals {
    /// Number of requests.
    pub requests: i64,
    /// Prompt tokens.
    pub prompt: i64,
    /// Completion tokens.
    pub completion: i64,
    /// Embedded tokens.
    pub embedding: i64,
    /// What they cost.
    pub cost: MicroCredits,
}

#[derive(FromRow)]
struct RawGeneration {
    id: String,
    key_id: String,
    route: String,
    model: String,
    streamed: i64,
    title: Option<String>,
    referer: Option<String>,
    outcome: Option<String>,
    finish_reason: Option<String>,
    provision_id: Option<String>,
    attempts: i64,
    prompt: i64,
    completion: i64,
    embedding: i64,
    characters: i64,
    seconds: i64,
    urls: i64,
    images: i64,
    cost: i64,
    provider_reward: i64,
    price_id: String,
    price_version: i64,
    first_token_ms: Option<i64>,
    latency_ms: Option<i64>,
    created_at: i64,
    finished_at: Option<i64>,
}

/// The row of one request of one user: one that runs, which is a hold, or a finished one.
const GENERATION_SQL: &str =
    "SELECT request_id AS id, key_id, route, model, streamed, title, referer, CAST(NULL AS TEXT) AS outcome,
            CAST(NULL AS TEXT) AS finish_reason, provision_id, attempt AS attempts,
            CAST(0 AS BIGINT) AS prompt, CAST(0 AS BIGINT) AS completion, CAST(0 AS BIGINT) AS embedding,
            CAST(0 AS BIGINT) AS characters, CAST(0 AS BIGINT) AS seconds, CAST(0 AS BIGINT) AS urls,
            CAST(0 AS BIGINT) AS images, CAST(0 AS BIGINT) AS cost,
            CAST(0 AS BIGINT) AS provider_reward, price_id, price_version,
            CAST(NULL AS BIGINT) AS first_token_ms, CAST(NULL AS BIGINT) AS latency_ms, created_at,
            CAST(NULL AS BIGINT) AS finished_at
     FROM holds WHERE request_id = $1 AND user_id = $2
     UNION ALL
     SELECT id, key_id, route, model, streamed, title, referer, outcome, finish_reason, provision_id, attempts,
            prompt, completion, embedding, characters, seconds, urls, images, cost, provider_reward, price_id,
            price_version, first_token_ms, latency_ms, created_at, finished_at
     FROM requests WHERE id = $1 AND user_id = $2";

impl TryFrom<RawGeneration> for GenerationRow {
    type Error = DbError;

    fn try_from(raw: RawGeneration) -> Result<Self, DbError> {
        let count = |n: i64| u64::try_from(n).unwrap_or(0);
        let end = raw
            .outcome
            .map(|name| End::from_name(&name).ok_or_else(|| DbError::impossible("requests.outcome", name)))
            .transpose()?;
        Ok(Self {
            id: raw.id.parse().map_err(|e| DbError::impossible("requests.id", e))?,
            key_id: raw.key_id.parse().map_err(|e| DbError::impossible("requests.key_id", e))?,
            route: raw.route,
            model: raw.model,
            streamed: raw.streamed != 0,
            title: raw.title,
            referer: raw.referer,
            end,
            finish_reason: raw.finish_reason,
            provision_id: raw
                .provision_id
                .map(|id| id.parse().map_err(|e| DbError::impossible("requests.provision_id", e)))
                .transpose()?,
            attempts: raw.attempts,
            units: Units {
                prompt: Tokens(count(raw.prompt)),
                completion: Tokens(count(raw.completion)),
                embedding: Tokens(count(raw.embedding)),
                characters: count(raw.characters),
                seconds: count(raw.seconds),
                urls: count(raw.urls),
                images: count(raw.images),
            },
            cost: MicroCredits(raw.cost),
            provider_reward: MicroCredits(raw.provider_reward),
            price: (raw.price_id, raw.price_version),
            first_token: raw.first_token_ms.map(|span| Millis(count(span))),
            latency: raw.latency_ms.map(|span| Millis(count(span))),
            created_at: Timestamp(raw.created_at),
            finished_at: raw.finished_at.map(Timestamp),
        })
    }
}

impl Db {
    /// One request of this user; a foreign one is as good as none.
    ///
    /// # Errors
    /// The store failed.
    pub async fn generation(&self, id: &RequestId, user: &UserId) -> Result<Option<GenerationRow>, DbError> {
        let raw: Option<RawGeneration> = read!(self, e =>
            sqlx::query_as(GENERATION_SQL)
                .bind(id.as_str())
                .bind(user.as_str())
                .fetch_optional(e)
                .await?);
        raw.map(GenerationRow::try_from).transpose()
    }

    /// What a user has paid for requests with all keys, less what was refunded (MR9): the running totals of the keys, which
    /// `check_ledger` holds to the requests.
    ///
    /// # Errors
    /// The store failed.
    pub async fn spent_in_all(&self, user: &UserId) -> Result<MicroCredits, DbError> {
        let spent: i64 = read!(self, e =>
            sqlx::query_scalar("SELECT CAST(COALESCE(SUM(spent), 0) AS BIGINT) FROM api_keys WHERE user_id = $1")
                .bind(user.as_str())
                .fetch_one(e)
                .await?);
        Ok(MicroCredits(spent))
    }

    /// What a user has used, of all keys or of one; refunds lower the cost (MR9). Looks at every request there ever was, so
    /// it is for reckoning, not for answering.
    ///
    /// # Errors
    /// The store failed.
    pub async fn usage_totals(&self, user: &UserId, key: Option<&KeyId>) -> Result<UsageTotals, DbError> {
        let (requests, prompt, completion, embedding, cost): (i64, i64, i64, i64, i64) = read!(self, e =>
            sqlx::query_as(
                "SELECT COUNT(*),
                        CAST(COALESCE(SUM(r.prompt), 0) AS BIGINT),
                        CAST(COALESCE(SUM(r.completion), 0) AS BIGINT),
                        CAST(COALESCE(SUM(r.embedding), 0) AS BIGINT),
                        CAST(COALESCE(SUM(r.cost - r.refunded), 0) AS BIGINT)
                 FROM requests r
                 WHERE r.user_id = $1 AND (CAST($2 AS TEXT) IS NULL OR r.key_id = $2)")
                .bind(user.as_str())
                .bind(key.map(KeyId::as_str))
                .fetch_one(e)
                .await?);
        Ok(UsageTotals { requests, prompt, completion, embedding, cost: MicroCredits(cost) })
    }

    /// Number of requests that run now, of all users.
    ///
    /// # Errors
    /// The store failed.
    pub async fn running_requests(&self) -> Result<i64, DbError> {
        Ok(read!(self, e =>
            sqlx::query_scalar("SELECT COUNT(*) FROM holds").fetch_one(e).await?))
    }
}
