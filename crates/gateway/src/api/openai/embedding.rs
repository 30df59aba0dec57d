//! `POST /embeddings`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::openai::EmbeddingRequest;

use super::parse::{Mannered, Parsed, resolve_model, wishes};
use super::validate::check_embedding;
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::ApiResult;
use crate::relay::{Embedding, run_errand};

/// Turns texts into vectors.
pub async fn create_embedding(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    Mannered(manners): Mannered,
    Parsed(request, ignored): Parsed<EmbeddingRequest>,
) -> ApiResult<Response> {
    let mut manners = manners?;
    manners.ignore(ignored)?;
    let (model, counter) = resolve_model(&app, &request.model, ServiceKind::Embeddings).await?;
    check_embedding(&request, &model)?;
    let wishes = wishes(&app, &request.model, request.provider.as_ref())?;
    let total = app.config.relay.embeddings_total();
    let ticket = manners.ticket(edge, "/embeddings", &request.model, model, wishes, total);
    let embedding = Embedding::of(*request, &ticket, counter);
    Box::pin(run_errand(app, caller, ticket, embedding)).await.map(|response| manners.sign(response))
}
