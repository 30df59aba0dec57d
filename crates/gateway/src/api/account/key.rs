//! `GET /key`: what the caller's key may do and has done.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use cxmpute_wire::{KeyId, MicroCredits};
use schemars::JsonSchema;
use serde::Serialize;

use super::Data;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, ApiResult};

/// The key without its secret. What is not limited is null.
#[derive(Debug, Serialize, JsonSchema)]
pub struct KeyView {
    id: KeyId,
    label: String,
    usage: String,
    limit: Option<String>,
    limit_remaining: Option<String>,
    rate_limit: Option<()>,
    models: Option<()>,
    routes: Option<()>,
    expires_at: Option<()>,
}

/// `GET /key`.
pub async fn get_key(State(app): State<Arc<App>>, caller: Caller) -> ApiResult<Json<Data<KeyView>>> {
    // Fresh from the store: the remembered row may be a second old, and these figures move with every request.
    let row = app.db.find_key(&caller.key_id).await?.ok_or_else(ApiError::invalid_api_key)?;
    let left = |budget: MicroCredits| {
        budget.saturating_sub(row.spent).saturating_sub(row.held).max(MicroCredits::ZERO).to_credits()
    };
    Ok(Json(Data {
        data: KeyView {
            id: row.id,
            usage: row.spent.to_credits(),
            limit: row.budget.map(MicroCredits::to_credits),
            limit_remaining: row.budget.map(left),
            label: row.name,
            rate_limit: None,
            models: None,
            routes: None,
            expires_at: None,
        },
    }))
}
