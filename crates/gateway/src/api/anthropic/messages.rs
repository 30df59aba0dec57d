//! `POST /messages`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cxmpute_wire::anthropic::MessagesRequest;
use http::HeaderMap;

use super::answer::{MessageStream, message};
use super::check_version;
use super::request::{Translation, translate};
use crate::api::openai::chat::answer;
use crate::api::openai::parse::{Manners, Parsed};
use crate::api::translation;
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::ApiResult;
use crate::relay::Form;

/// Answers a conversation in Anthropic's words, as a stream or whole.
pub async fn create_message(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    headers: HeaderMap,
    Parsed(request, ignored): Parsed<MessagesRequest>,
) -> ApiResult<Response> {
    check_version(&headers)?;
    let mut manners = Manners::of(&headers)?;
    manners.ignore(ignored)?;
    let Translation { request, names } = translate(*request)?;
    let (streamed, model) = (request.streamed(), request.model.clone());
    let answered = Box::pin(answer(app, edge, caller, manners, Box::new(request), Form::Messages)).await;
    let response = answered.map_err(|error| names.refuse(error))?;
    if streamed {
        let stream = MessageStream::new(translation::answer_id(response.headers()), model);
        return Ok(translation::stream(response, stream));
    }
    translation::whole(response, message).await
}
