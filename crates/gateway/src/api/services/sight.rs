//! `POST /m/caption`, `/m/query`, `/m/detect` and `/m/point`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use base64::Engine as _;
use bytes::Bytes;
use cxmpute_market::catalogue::{Capability, ModelEntry};
use cxmpute_wire::ServiceKind;
use cxmpute_wire::sight::SightRequest;

use crate::api::openai::parse::{Mannered, Parsed, resolve_service, wishes};
use crate::api::openai::validate::refuse;
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::{ApiError, ApiResult};
use crate::limits;
use crate::media::{NoPicture, Picture};
use crate::relay::{Sight, Wanted, run_errand};

/// Says what a picture shows.
pub async fn create_caption(
    app: State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    manners: Mannered,
    request: Parsed<SightRequest>,
) -> ApiResult<Response> {
    look(app, edge, caller, manners, request, "/m/caption", |_| Ok(Wanted::Caption)).await
}

/// Answers a question about a picture.
pub async fn create_answer(
    app: State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    manners: Mannered,
    request: Parsed<SightRequest>,
) -> ApiResult<Response> {
    look(app, edge, caller, manners, request, "/m/query", |request| {
        named(request.question.as_deref(), "question").map(|_| Wanted::Answer)
    })
    .await
}

/// Finds things in a picture, as boxes.
pub async fn create_detection(
    app: State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    manners: Mannered,
    request: Parsed<SightRequest>,
) -> ApiResult<Response> {
    look(app, edge, caller, manners, request, "/m/detect", |request| {
        named(request.target.as_deref(), "target").map(Wanted::Boxes)
    })
    .await
}

/// Finds things in a picture, as points.
pub async fn create_pointing(
    app: State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    manners: Mannered,
    request: Parsed<SightRequest>,
) -> ApiResult<Response> {
    look(app, edge, caller, manners, request, "/m/point", |request| {
        named(request.target.as_deref(), "target").map(Wanted::Points)
    })
    .await
}

async fn look(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    Mannered(manners): Mannered,
    Parsed(mut request, ignored): Parsed<SightRequest>,
    route: &'static str,
    wanted: impl Fn(&SightRequest) -> ApiResult<Wanted>,
) -> ApiResult<Response> {
    let mut manners = manners?;
    manners.ignore(ignored)?;
    let able = |entry: &ModelEntry| entry.capabilities.contains(&Capability::Ocr);
    let model = resolve_service(&app, request.model.as_deref(), ServiceKind::Vision, able)?;
    let wanted = wanted(&request)?;
    let name = request.model.take().unwrap_or_else(|| model.id.clone());
    let wishes = wishes(&app, &name, request.provider.take().as_ref())?;
    let picture = picture(&app, *request).await?;
    let total = app.config.relay.sight_total();
    let ticket = manners.ticket(edge, route, &name, model, wishes, total);
    let sight = Sight { picture, wanted };
    Box::pin(run_errand(app, caller, ticket, sight)).await.map(|response| manners.sign(response))
}

fn named(text: Option<&str>, param: &str) -> ApiResult<String> {
    match text.map(str::trim) {
        Some(text) if !text.is_empty() && text.chars().count() <= limits::QUESTION_CHARACTERS => {
            Ok(text.to_owned())
        }
        Some(_) => refuse(param, format!("{param} must be 1 to {} characters.", limits::QUESTION_CHARACTERS)),
        None => refuse(param, format!("`{param}` is missing.")),
    }
}

/// The one picture of a request.
async fn picture(app: &App, request: SightRequest) -> ApiResult<Picture> {
    const PARAMS: [&str; 3] = ["imageUrl", "imageBase64", "imageUint8"];
    let given = [request.image_url.is_some(), request.image_base64.is_some(), request.image_uint8.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        let first =
            PARAMS.iter().zip(given).filter(|(_, given)| *given).nth(1).map_or("imageUrl", |(name, _)| name);
        return refuse(first, "Give exactly one of imageUrl, imageBase64 and imageUint8.");
    }
    if let Some(url) = request.image_url {
        if url.is_empty() || url.len() > limits::URI {
            return refuse("imageUrl", format!("An address has 1 to {} bytes.", limits::URI));
        }
        return app.media.fetch(&url).await.map_err(|error| not_fetched(&error));
    }
    let (param, bytes) = match (request.image_base64, request.image_uint8) {
        (Some(text), _) => ("imageBase64", decode(&text)?),
        (None, numbers) => ("imageUint8", numbers.unwrap_or_default()),
    };
    if bytes.len() > limits::IMAGE_BYTES {
        return refuse(param, format!("The picture has more than {} bytes.", limits::IMAGE_BYTES));
    }
    let picture = app.media.picture(Bytes::from(bytes)).await;
    picture.map_err(|error| ApiError::invalid_parameter(param, sentence(&error.to_string())))
}

fn decode(text: &str) -> ApiResult<Vec<u8>> {
    let data = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").map(|(_, data)| data),
        None => Some(text),
    };
    let decoded = data.and_then(|data| base64::engine::general_purpose::STANDARD.decode(data.trim()).ok());
    decoded.ok_or_else(|| ApiError::invalid_parameter("imageBase64", "imageBase64 is no base64."))
}

/// What went wrong with an address, without what stands behind it.
fn not_fetched(error: &NoPicture) -> ApiError {
    ApiError::invalid_parameter("imageUrl", sentence(&format!("the picture was not fetched: {error}")))
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}
