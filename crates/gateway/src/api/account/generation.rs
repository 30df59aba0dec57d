//! `GET /generation?id=`: the receipt of one request, readable only by its account.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use cxmpute_market::ledger::End;
use cxmpute_market::price::Units;
use cxmpute_store::{AttemptRow, GenerationRow};
use cxmpute_wire::openai::CostDetails;
use cxmpute_wire::{MicroCredits, Millis, RequestId, Tokens};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Data;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, ApiResult};
use crate::fleet::slug;
use crate::relay::cost_details;

/// The query.
#[derive(Debug, Deserialize)]
pub struct GenerationQuery {
    id: String,
}

/// The receipt.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Generation {
    id: RequestId,
    model: String,
    created_at: i64,
    finished_at: Option<i64>,
    streamed: bool,
    /// `running` while there is no end yet.
    outcome: &'static str,
    cancelled: bool,
    finish_reason: Option<String>,
    provider: Option<String>,
    latency_ms: Option<Millis>,
    first_token_ms: Option<Millis>,
    generation_ms: Option<Millis>,
    tokens_prompt: Tokens,
    tokens_completion: Tokens,
    tokens_embedding: Tokens,
    /// Characters, where they are priced.
    characters: u64,
    /// Seconds of sound.
    seconds: u64,
    /// Pictures that were looked at, or charged for being drawn.
    images: u64,
    /// Pages with content.
    urls: u64,
    provider_claimed: Option<Claimed>,
    total_cost: String,
    total_cost_micro: MicroCredits,
    /// What `total_cost` is made of; null while there is no end yet.
    cost_details: Option<CostDetails>,
    price: String,
    price_version: i64,
    attempts: Vec<Attempt>,
    title: Option<String>,
    referer: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Claimed {
    prompt: Tokens,
    completion: Tokens,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Attempt {
    attempt: i64,
    provider: String,
    outcome: &'static str,
    code: Option<String>,
    first_token_ms: Option<Millis>,
    total_ms: Option<Millis>,
}

/// `GET /generation?id=`.
pub async fn get_generation(
    State(app): State<Arc<App>>,
    caller: Caller,
    query: Result<Query<GenerationQuery>, QueryRejection>,
) -> ApiResult<Json<Data<Generation>>> {
    let Query(query) =
        query.map_err(|_| ApiError::invalid_parameter("id", "Give the request's id as ?id=req_…."))?;
    // Answers print the request id after a prefix of OpenAI's (`chatcmpl-…`); both names find the row.
    let tail = query.id.rsplit_once(['-', '_']).map_or(query.id.as_str(), |(_, tail)| tail);
    let id: RequestId = format!("{}{tail}", RequestId::PREFIX)
        .parse()
        .map_err(|_| ApiError::invalid_parameter("id", "id is not the id of a request."))?;
    let row = app.db.generation(&id, &caller.user_id).await?.ok_or_else(ApiError::not_found)?;
    let attempts = app.db.list_attempts(&id, &caller.user_id).await?;
    let claimed = app.db.claimed_units(&id, &caller.user_id).await?;
    let price = match row.end {
        Some(_) => app.db.price(&row.price.0, row.price.1).await?,
        None => None,
    };
    let details = price.map(|price| cost_details(&price, &row.units, row.cost));
    Ok(Json(Data { data: view(row, attempts, claimed, details) }))
}

fn view(
    row: GenerationRow,
    attempts: Vec<AttemptRow>,
    claimed: Option<Units>,
    cost_details: Option<CostDetails>,
) -> Generation {
    let generation_ms = match (row.latency, row.first_token) {
        (Some(all), Some(first)) => Some(all.saturating_sub(first)),
        _ => None,
    };
    let gone = |end: End| matches!(end, End::ClientGone | End::ClientGoneBeforeAccept | End::StalledReader);
    Generation {
        id: row.id,
        model: row.model,
        created_at: row.created_at.0,
        finished_at: row.finished_at.map(|at| at.0),
        streamed: row.streamed,
        outcome: row.end.map_or("running", End::as_str),
        cancelled: row.end.is_some_and(gone),
        finish_reason: row.finish_reason,
        provider: row.provision_id.as_ref().map(slug),
        latency_ms: row.latency,
        first_token_ms: row.first_token,
        generation_ms,
        tokens_prompt: row.units.prompt,
        tokens_completion: row.units.completion,
        tokens_embedding: row.units.embedding,
        characters: row.units.characters,
        seconds: row.units.seconds,
        images: row.units.images,
        urls: row.units.urls,
        provider_claimed: claimed
            .map(|claimed| Claimed { prompt: claimed.prompt, completion: claimed.completion }),
        total_cost: row.cost.to_credits(),
        total_cost_micro: row.cost,
        cost_details,
        price: row.price.0,
        price_version: row.price.1,
        attempts: attempts.into_iter().map(attempt).collect(),
        title: row.title,
        referer: row.referer,
    }
}

fn attempt(row: AttemptRow) -> Attempt {
    Attempt {
        attempt: row.attempt,
        provider: slug(&row.provision_id),
        outcome: row.outcome.as_str(),
        code: row.code,
        first_token_ms: row.first_token,
        total_ms: row.total,
    }
}
