//! `GET /key`: what the caller's key may do and has done.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use cxmpute_store::Limits;
use cxmpute_wire::{KeyId, MicroCredits};
use schemars::JsonSchema;
use serde::Serialize;

use super::Data;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, ApiResult};

/// The key without its secret. What is not limited is null; amounts are exact decimal credits.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeyView {
    id: KeyId,
    label: String,
    /// Spent so far, less refunds.
    usage: String,
    /// Most it may spend in all.
    limit: Option<String>,
    /// What is left of that, less what running requests hold.
    limit_remaining: Option<String>,
    /// This UTC day.
    day: Period,
    /// This UTC month.
    month: Period,
    rate_limit: Option<RateLimit>,
    /// Tokens in and out per minute.
    tokens_per_minute: Option<u64>,
    /// Requests for paid work at the same time.
    concurrent: Option<u64>,
    models: Option<Vec<String>>,
    routes: Option<Vec<String>>,
    /// Milliseconds since 1970 UTC.
    expires_at: Option<i64>,
    /// Fields outside the schema are refused.
    strict: bool,
    /// Streams always end with a usage chunk.
    force_usage: bool,
    /// What holds for all keys of the account together.
    account: AccountLimits,
}

/// Spending in a period.
#[derive(Debug, Serialize, JsonSchema)]
struct Period {
    /// Spent in it, with what running requests hold.
    usage: String,
    limit: Option<String>,
    limit_remaining: Option<String>,
}

/// Requests per interval.
#[derive(Debug, Serialize, JsonSchema)]
struct RateLimit {
    requests: u64,
    interval: &'static str,
}

/// Limits of an account.
#[derive(Debug, Serialize, JsonSchema)]
struct AccountLimits {
    rate_limit: Option<RateLimit>,
    tokens_per_minute: Option<u64>,
    concurrent: Option<u64>,
    spend_per_day: Option<String>,
    spend_per_month: Option<String>,
    models: Option<Vec<String>>,
    routes: Option<Vec<String>>,
}

/// `GET /key`.
pub async fn get_key(State(app): State<Arc<App>>, caller: Caller) -> ApiResult<Json<Data<KeyView>>> {
    // Fresh from the store: the remembered row may be a second old, and these figures move with every request.
    let row = app.db.find_key(&caller.key_id).await?.ok_or_else(ApiError::invalid_api_key)?;
    let (day, month) = app.db.period_spend(&caller.key_id).await?;
    let used = row.spent.saturating_add(row.held);
    Ok(Json(Data {
        data: KeyView {
            id: row.id,
            usage: row.spent.to_credits(),
            limit: row.budget.map(MicroCredits::to_credits),
            limit_remaining: left(row.budget, used),
            day: period(row.limits.spend_per_day, day),
            month: period(row.limits.spend_per_month, month),
            label: row.name,
            rate_limit: rate_limit(&row.limits),
            tokens_per_minute: row.limits.tokens_per_minute,
            concurrent: row.limits.concurrent,
            models: row.limits.models,
            routes: row.limits.routes,
            expires_at: row.settings.expires_at.map(|at| at.0),
            strict: row.settings.strict,
            force_usage: row.settings.force_usage,
            account: AccountLimits {
                rate_limit: rate_limit(&row.account),
                tokens_per_minute: row.account.tokens_per_minute,
                concurrent: row.account.concurrent,
                spend_per_day: row.account.spend_per_day.map(MicroCredits::to_credits),
                spend_per_month: row.account.spend_per_month.map(MicroCredits::to_credits),
                models: row.account.models,
                routes: row.account.routes,
            },
        },
    }))
}

fn left(limit: Option<MicroCredits>, used: MicroCredits) -> Option<String> {
    limit.map(|limit| limit.saturating_sub(used).max(MicroCredits::ZERO).to_credits())
}

fn period(limit: Option<MicroCredits>, used: MicroCredits) -> Period {
    Period {
        usage: used.to_credits(),
        limit: limit.map(MicroCredits::to_credits),
        limit_remaining: left(limit, used),
    }
}

fn rate_limit(limits: &Limits) -> Option<RateLimit> {
    limits.requests_per_minute.map(|requests| RateLimit { requests, interval: "1m" })
}
