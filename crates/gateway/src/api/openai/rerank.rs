//! `POST /rerank`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::openai::RerankRequest;

use super::parse::{Mannered, Parsed, resolve_model, wishes};
use super::validate::refuse;
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::ApiResult;
use crate::limits;
use crate::relay::{Embedding, Rerank, run_errand};

/// Orders documents by how near they are to a query.
pub async fn create_rerank(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    Mannered(manners): Mannered,
    Parsed(request, ignored): Parsed<RerankRequest>,
) -> ApiResult<Response> {
    let mut manners = manners?;
    manners.ignore(ignored)?;
    let (model, counter) = resolve_model(&app, &request.model, ServiceKind::Embeddings).await?;
    check(&request)?;
    let wishes = wishes(&app, &request.model, request.provider.as_ref())?;
    let total = app.config.relay.embeddings_total();
    let ticket = manners.ticket(edge, "/rerank", &request.model, model, wishes, total);
    let documents = request.documents.iter().map(|document| document.text().to_owned());
    let texts = std::iter::once(request.query.clone()).chain(documents).collect();
    let rerank = Rerank {
        texts: Embedding {
            texts,
            base64: false,
            truncate: None,
            context: ticket.model.context_length,
            dimensions: ticket.model.dimensions,
            counter,
        },
        top: request.top_n.map_or(usize::MAX, |top| usize::try_from(top).unwrap_or(usize::MAX)),
        with_texts: request.return_documents.unwrap_or(false),
    };
    Box::pin(run_errand(app, caller, ticket, rerank)).await.map(|response| manners.sign(response))
}

fn check(request: &RerankRequest) -> ApiResult<()> {
    if request.query.is_empty() {
        return refuse("query", "query must not be empty.");
    }
    // The query is one of the texts that are embedded.
    let most = limits::INPUTS - 1;
    if request.documents.is_empty() || request.documents.len() > most {
        return refuse("documents", format!("documents must be a list of 1 to {most} texts."));
    }
    if let Some(at) = request.documents.iter().position(|document| document.text().is_empty()) {
        return refuse(&format!("documents[{at}]"), "documents must not hold an empty text.");
    }
    if request.top_n == Some(0) {
        return refuse("top_n", "top_n must be at least 1.");
    }
    Ok(())
}
