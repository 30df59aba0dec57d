//! `POST /chat/completions`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::openai::ChatRequest;

use super::old_form::modernise;
use super::parse::{Mannered, Manners, Parsed, resolve_alternatives, resolve_model, wishes};
use super::pictures::{Source, has_pictures, picture_bytes, take_pictures};
use super::support::supports_chat;
use super::validate::{check_chat, check_tools, output_limit};
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::{ApiError, ApiResult};
use crate::limits;
use crate::relay::{Ask, Form, Job, Pictures, Rules, run_llm};

/// Answers a conversation, as a stream or whole.
pub async fn create_chat_completion(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    Mannered(manners): Mannered,
    Parsed(request, ignored): Parsed<ChatRequest>,
) -> ApiResult<Response> {
    let mut manners = manners?;
    manners.ignore(ignored)?;
    Box::pin(answer(app, edge, caller, manners, request, Form::OpenAi)).await
}

/// Checks a conversation and has it answered: as it came, or translated from the words of another API.
///
/// # Errors
/// It is refused, in the words of a chat, or it fails before the first content.
pub async fn answer(
    app: Arc<App>,
    edge: Edge,
    caller: Caller,
    mut manners: Manners,
    mut request: Box<ChatRequest>,
    form: Form,
) -> ApiResult<Response> {
    // Only pictures may be large.
    if manners.read > limits::BODY && manners.read.saturating_sub(picture_bytes(&request)) > limits::BODY {
        return Err(ApiError::body_too_large(limits::BODY));
    }
    // A list without tools asks for nothing; clients send it, and not every engine takes it.
    request.tools = request.tools.take().filter(|tools| !tools.is_empty());
    let (model, counter) = resolve_model(&app, &request.model, ServiceKind::Llm).await?;
    check_chat(&request)?;
    supports_chat(&model, &request)?;
    let old_form = modernise(&mut request)?;
    check_tools(&request)?;
    let param = match form {
        Form::Responses => "max_output_tokens",
        _ if request.max_tokens.is_none() => "max_completion_tokens",
        _ => "max_tokens",
    };
    let (limit, explicit_limit) = output_limit(request.output_limit(), &model, param)?;
    let alternatives =
        resolve_alternatives(&app, request.models.as_deref(), &model, request.output_limit(), param).await?;
    for alternative in &alternatives {
        supports_chat(&alternative.model, &request)?;
    }
    let pictures = if has_pictures(&request) {
        // Nothing is fetched for a key that may not use the model.
        caller.permit_model(&model)?;
        // Boxed: the requests without pictures need not have room for it.
        Box::pin(take_pictures(&app, &mut request, Source::Anywhere)).await?
    } else {
        Pictures::default()
    };
    let (request, rules) = chat_rules(request, old_form).await?;
    let job = Job {
        request_id: edge.request_id,
        watch: edge.watch,
        arrived: edge.arrived,
        created: app.clock.now().seconds(),
        form,
        rules,
        force_usage: caller.key.settings.force_usage,
        timeout: manners.timeout,
        #[cfg(feature = "sabotage")]
        extra: manners.names(),
        model,
        model_name: request.model.clone(),
        choices: usize::try_from(request.n.unwrap_or(1)).unwrap_or(1),
        limit,
        explicit_limit,
        alternatives,
        wishes: wishes(&app, &request.model, request.provider.as_ref())?,
        counter,
        title: manners.title.take(),
        referer: manners.referer.take(),
        pictures,
        ask: Ask::Chat(request),
    };
    Box::pin(run_llm(app, caller, job)).await.map(|response| manners.sign(response))
}

/// The rules of the answer; schemas are compiled off the async threads.
async fn chat_rules(request: Box<ChatRequest>, old_form: bool) -> ApiResult<(Box<ChatRequest>, Rules)> {
    if request.tools.is_none() && request.response_format.is_none() {
        let rules = Rules::of_chat(&request, old_form)?;
        return Ok((request, rules));
    }
    let made = tokio::task::spawn_blocking(move || {
        let rules = Rules::of_chat(&request, old_form);
        rules.map(|rules| (request, rules))
    });
    made.await.map_err(ApiError::internal)?
}
