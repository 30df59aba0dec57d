//! `POST /scrape`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cxmpute_market::catalogue::{Capability, ModelEntry};
use cxmpute_wire::ServiceKind;
use cxmpute_wire::scrape::ScrapeRequest;

use crate::api::openai::parse::{Mannered, Parsed, resolve_service, wishes};
use crate::api::openai::validate::refuse;
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::{ApiError, ApiResult};
use crate::limits;
use crate::relay::{Pages, run_errand};

/// Fetches pages.
pub async fn create_scrape(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    Mannered(manners): Mannered,
    Parsed(mut request, ignored): Parsed<ScrapeRequest>,
) -> ApiResult<Response> {
    let mut manners = manners?;
    manners.ignore(ignored)?;
    let able = |entry: &ModelEntry| !request.render || entry.capabilities.contains(&Capability::Render);
    let model = resolve_service(&app, request.model.as_deref(), ServiceKind::Scrape, able)?;
    if !able(&model) {
        return Err(ApiError::unsupported_parameter("render", "This model runs no scripts of pages."));
    }
    check(&request.urls)?;
    let name = request.model.take().unwrap_or_else(|| model.id.clone());
    let wishes = wishes(&app, &name, request.provider.take().as_ref())?;
    let total = app.config.relay.scrape_total();
    let ticket = manners.ticket(edge, "/scrape", &name, model, wishes, total);
    let pages = Pages { request: *request };
    Box::pin(run_errand(app, caller, ticket, pages)).await.map(|response| manners.sign(response))
}

/// Only what could be an address; whether it may be fetched is judged where it is fetched, for each on its own.
fn check(urls: &[String]) -> ApiResult<()> {
    if urls.is_empty() || urls.len() > limits::PAGES {
        return refuse("urls", format!("urls must be a list of 1 to {} addresses.", limits::PAGES));
    }
    if let Some(at) = urls.iter().position(|url| url.is_empty() || url.len() > limits::URI) {
        return refuse(&format!("urls[{at}]"), format!("An address has 1 to {} bytes.", limits::URI));
    }
    Ok(())
}
