//! `POST /completions`, the legacy route.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::openai::CompletionRequest;

use super::parse::{Mannered, Parsed, resolve_alternatives, resolve_model, wishes};
use super::support::supports_completion;
use super::validate::{check_completion, output_limit};
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::ApiResult;
use crate::relay::{Ask, Form, Job, Pictures, Rules, run_llm};

/// Continues texts, as a stream or whole.
pub async fn create_completion(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    Mannered(manners): Mannered,
    Parsed(request, ignored): Parsed<CompletionRequest>,
) -> ApiResult<Response> {
    let mut manners = manners?;
    manners.ignore(ignored)?;
    let (model, counter) = resolve_model(&app, &request.model, ServiceKind::Llm).await?;
    check_completion(&request)?;
    supports_completion(&model, &request)?;
    let asked = request.max_tokens.unwrap_or(CompletionRequest::DEFAULT_MAX_TOKENS);
    let (limit, explicit_limit) = output_limit(Some(asked), &model, "max_tokens")?;
    let choices = (request.prompt.texts().len() as u64).saturating_mul(request.n.unwrap_or(1));
    let alternatives =
        resolve_alternatives(&app, request.models.as_deref(), &model, Some(asked), "max_tokens").await?;
    let job = Job {
        request_id: edge.request_id,
        watch: edge.watch,
        arrived: edge.arrived,
        created: app.clock.now().seconds(),
        form: Form::OpenAi,
        rules: Rules::of_completion(&request),
        force_usage: caller.key.settings.force_usage,
        timeout: manners.timeout,
        #[cfg(feature = "sabotage")]
        extra: manners.names(),
        model,
        model_name: request.model.clone(),
        choices: usize::try_from(choices).unwrap_or(1),
        limit,
        explicit_limit,
        alternatives,
        wishes: wishes(&app, &request.model, request.provider.as_ref())?,
        counter,
        title: manners.title.take(),
        referer: manners.referer.take(),
        pictures: Pictures::default(),
        ask: Ask::Completion(request),
    };
    Box::pin(run_llm(app, caller, job)).await.map(|response| manners.sign(response))
}
