//! `POST /responses`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cxmpute_wire::openai::ResponsesRequest;
use http::HeaderMap;

use super::chat::answer;
use super::parse::{Manners, Parsed};
use super::responses_answer::{ResponseStream, respond};
use super::responses_request::{Translation, translate};
use crate::api::translation;
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::ApiResult;
use crate::relay::Form;

/// Answers in the words of OpenAI's Responses, as a stream or whole.
pub async fn create_response(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    headers: HeaderMap,
    Parsed(request, ignored): Parsed<ResponsesRequest>,
) -> ApiResult<Response> {
    let mut manners = Manners::of(&headers)?;
    manners.ignore(ignored)?;
    let Translation { request, names, mut response } = translate(*request)?;
    response.created_at = app.clock.now().seconds();
    let streamed = request.streamed();
    let answered = Box::pin(answer(app, edge, caller, manners, Box::new(request), Form::Responses)).await;
    let answered = answered.map_err(|error| names.refuse(error))?;
    response.id = translation::answer_id(answered.headers());
    if streamed {
        return Ok(translation::stream(answered, ResponseStream::new(response)));
    }
    translation::whole(answered, |chat| respond(response, chat)).await
}
