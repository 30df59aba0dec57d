//! `GET /credits`: the figures of the caller's account (MR17).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use cxmpute_wire::MicroCredits;
use schemars::JsonSchema;
use serde::Serialize;

use super::Data;
use crate::app::App;
use crate::auth::Caller;
use crate::error::ApiResult;

/// Credits as exact decimal texts, and the same in whole micro-credits for programs.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Credits {
    balance: String,
    held: String,
    available: String,
    promo: String,
    total_credits: String,
    total_usage: String,
    balance_micro: MicroCredits,
    held_micro: MicroCredits,
    available_micro: MicroCredits,
    promo_micro: MicroCredits,
    total_usage_micro: MicroCredits,
    currency: &'static str,
}

/// `GET /credits`.
pub async fn get_credits(State(app): State<Arc<App>>, caller: Caller) -> ApiResult<Json<Data<Credits>>> {
    let balance = app.db.balance(&caller.user_id).await?;
    let spent = app.db.spent_in_all(&caller.user_id).await?;
    let total = balance.total();
    Ok(Json(Data {
        data: Credits {
            balance: total.to_credits(),
            held: balance.held.to_credits(),
            available: balance.available.to_credits(),
            promo: balance.promo.to_credits(),
            total_credits: total.saturating_add(spent).to_credits(),
            total_usage: spent.to_credits(),
            balance_micro: total,
            held_micro: balance.held,
            available_micro: balance.available,
            promo_micro: balance.promo,
            total_usage_micro: spent,
            currency: "credits",
        },
    }))
}
