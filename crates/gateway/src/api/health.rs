//! Probes. `/healthz` says that the process runs, `/readyz` that it should get traffic.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use schemars::JsonSchema;
use serde::Serialize;

use crate::app::App;
use crate::error::{ApiError, ApiResult};

/// Body of both probes.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Health {
    status: &'static str,
}

/// `GET /healthz`.
pub async fn get_health() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// `GET /readyz`: 503 while stopping and while the store does not answer.
pub async fn get_readiness(State(app): State<Arc<App>>) -> ApiResult<Json<Health>> {
    if app.tasks.is_stopping() {
        return Err(ApiError::draining());
    }
    app.db.ping().await?;
    Ok(Json(Health { status: "ready" }))
}
