//! `POST /messages/count_tokens`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse as _, Response};
use cxmpute_wire::ServiceKind;
use cxmpute_wire::anthropic::{CountRequest, TokenCount};
use http::HeaderMap;

use super::check_version;
use super::request::{Translation, translate_count};
use crate::api::openai::parse::{Manners, Parsed, find_model};
use crate::api::openai::pictures::{Source, take_pictures};
use crate::api::openai::support::supports_chat;
use crate::api::openai::validate::{check_chat, check_tools};
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, ApiResult};

/// Counts the tokens that the prompt of a message would be billed for; nothing is asked of a node.
pub async fn count_tokens(
    State(app): State<Arc<App>>,
    caller: Caller,
    headers: HeaderMap,
    Parsed(request, ignored): Parsed<CountRequest>,
) -> ApiResult<Response> {
    check_version(&headers)?;
    let mut manners = Manners::of(&headers)?;
    manners.ignore(ignored)?;
    let Translation { mut request, names } = translate_count(*request)?;
    let model = find_model(&app, &request.model, ServiceKind::Llm)?;
    caller.permit_model(&model)?;
    let checked = check_chat(&request).and_then(|()| check_tools(&request));
    checked.and_then(|()| supports_chat(&model, &request)).map_err(|error| names.refuse(error))?;
    let Some(counter) = app.counters.of(&model).await else {
        let message = format!(
            "There is no tokenizer of the model `{}` here, so its tokens cannot be counted.",
            model.id
        );
        return Err(ApiError::unsupported_parameter("model", message));
    };
    let pictures = take_pictures(&app, &mut request, Source::Request).await;
    let pictures = pictures.map_err(|error| names.refuse(error))?;
    let counted = tokio::task::spawn_blocking(move || counter.count_prompt(&request));
    let count =
        counted.await.map_err(ApiError::internal)?.map_err(|error| match error.is_request_fault() {
            true => ApiError::invalid_parameter(
                "messages",
                "The model's chat template does not take this conversation.",
            ),
            false => ApiError::internal(error),
        })?;
    Ok(manners.sign(Json(TokenCount { input_tokens: count.0 + pictures.tokens }).into_response()))
}
