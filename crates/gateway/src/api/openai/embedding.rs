//! `POST /embeddings`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::openai::EmbeddingRequest;
use http::HeaderMap;

use super::parse::{Manners, Parsed, resolve_model, wishes};
use super::validate::check_embedding;
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::ApiResult;
use crate::relay::{EmbedJob, run_embeddings};

/// Turns texts into vectors.
pub async fn create_embedding(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    headers: HeaderMap,
    Parsed(request, ignored): Parsed<EmbeddingRequest>,
) -> ApiResult<Response> {
    let mut manners = Manners::of(&headers)?;
    manners.ignore(ignored)?;
    let (model, counter) = resolve_model(&app, &request.model, ServiceKind::Embeddings).await?;
    check_embedding(&request, &model)?;
    let job = EmbedJob {
        timeout: manners.timeout,
        request_id: edge.request_id,
        watch: edge.watch,
        arrived: edge.arrived,
        wishes: wishes(&app, &request.model, request.provider.as_ref())?,
        request,
        model,
        counter,
        title: manners.title.take(),
        referer: manners.referer.take(),
    };
    Box::pin(run_embeddings(app, caller, job)).await.map(|response| manners.sign(response))
}
