//! `POST /m/caption`, `/m/query`, `/m/detect` and `/m/point`: by a model that sees and talks, or by one that reads text.

use std::sync::Arc;

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::response::Response;
use base64::Engine as _;
use bytes::Bytes;
use cxmpute_market::catalogue::{Capability, ModelEntry};
use cxmpute_market::picture::Detail;
use cxmpute_wire::sight::SightRequest;
use cxmpute_wire::{Code, ServiceKind};

use crate::api::openai::parse::{Mannered, Parsed, find_any, resolve_model, wishes};
use crate::api::openai::pictures::sentence;
use crate::api::openai::validate::refuse;
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::{ApiError, ApiResult};
use crate::limits;
use crate::media::{NoPicture, PictureError};
use crate::relay::{Look, Sight, Wanted, run_errand};

/// A request about a picture, with all that its four routes need to know of it.
pub struct Glance {
    app: Arc<App>,
    edge: Edge,
    caller: Caller,
    manners: Mannered,
    request: Parsed<SightRequest>,
}

impl FromRequest<Arc<App>> for Glance {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> ApiResult<Self> {
        let (mut parts, body) = request.into_parts();
        let edge = Edge::from_request_parts(&mut parts, app).await?;
        let caller = Caller::from_request_parts(&mut parts, app).await?;
        let manners = Mannered::from_request_parts(&mut parts, app).await?;
        let request = Parsed::from_request(Request::from_parts(parts, body), app).await?;
        Ok(Self { app: app.clone(), edge, caller, manners, request })
    }
}

/// Says what a picture shows.
pub async fn create_caption(glance: Glance) -> ApiResult<Response> {
    let wanted = |request: &SightRequest| Ok(Wanted::Caption(request.length.unwrap_or_default()));
    glance.look("/m/caption", Capability::Caption, wanted).await
}

/// Answers a question about a picture.
pub async fn create_answer(glance: Glance) -> ApiResult<Response> {
    let wanted = |request: &SightRequest| named(request.question.as_deref(), "question").map(Wanted::Answer);
    glance.look("/m/query", Capability::Query, wanted).await
}

/// Finds things in a picture, as boxes.
pub async fn create_detection(glance: Glance) -> ApiResult<Response> {
    let wanted = |request: &SightRequest| named(request.target.as_deref(), "target").map(Wanted::Boxes);
    glance.look("/m/detect", Capability::Detect, wanted).await
}

/// Finds things in a picture, as points.
pub async fn create_pointing(glance: Glance) -> ApiResult<Response> {
    let wanted = |request: &SightRequest| named(request.target.as_deref(), "target").map(Wanted::Points);
    glance.look("/m/point", Capability::Point, wanted).await
}

impl Glance {
    async fn look(
        self,
        route: &'static str,
        capability: Capability,
        wanted: impl Fn(&SightRequest) -> ApiResult<Wanted>,
    ) -> ApiResult<Response> {
        let Self { app, edge, caller, manners: Mannered(manners), request: Parsed(mut request, ignored) } =
            self;
        let mut manners = manners?;
        manners.ignore(ignored)?;
        let model = seer(&app, request.model.as_deref(), capability)?;
        let wanted = wanted(&request)?;
        let name = request.model.take().unwrap_or_else(|| model.id.clone());
        let wishes = wishes(&app, &name, request.provider.take().as_ref())?;
        let source = source(*request)?;
        caller.permit_model(&model)?;
        let total = app.config.relay.sight_total();
        let answered = if model.kind == ServiceKind::Llm {
            let (_, counter) = resolve_model(&app, &model.id, ServiceKind::Llm).await?;
            let view = match source {
                Source::Address(url) => {
                    app.media.fetch_view(&url, Detail::High).await.map_err(not_fetched)?
                }
                Source::File(param, file) => {
                    app.media.view(file, Detail::High).await.map_err(|error| broken(param, error))?
                }
            };
            let ticket = manners.ticket(edge, route, &name, model, wishes, total);
            let look = Look::new(&ticket, counter, view, wanted);
            Box::pin(run_errand(app, caller, ticket, look)).await
        } else {
            let picture = match source {
                Source::Address(url) => app.media.fetch(&url).await.map_err(not_fetched)?,
                Source::File(param, file) => {
                    app.media.picture(file).await.map_err(|error| broken(param, error))?
                }
            };
            let ticket = manners.ticket(edge, route, &name, model, wishes, total);
            Box::pin(run_errand(app, caller, ticket, Sight { picture, wanted })).await
        };
        answered.map(|response| manners.sign(response))
    }
}

/// The model that looks: the named one, or where none is named one that nodes serve now, those that see before those that only
/// read.
fn seer(app: &App, name: Option<&str>, capability: Capability) -> ApiResult<Arc<ModelEntry>> {
    let sees = |entry: &ModelEntry| {
        entry.kind == ServiceKind::Llm && entry.can(Capability::Vision) && entry.can(capability)
    };
    let reads = |entry: &ModelEntry| entry.kind == ServiceKind::Vision && entry.can(Capability::Ocr);
    if let Some(name) = name {
        let entry = find_any(app, name, &[ServiceKind::Vision, ServiceKind::Llm])?;
        if sees(&entry) || reads(&entry) {
            return Ok(entry);
        }
        let message = format!(
            "The model `{}` cannot do this; it needs the capability {}.",
            entry.id,
            capability.name()
        );
        return Err(ApiError::unsupported_parameter("model", message));
    }
    let entries = app.catalogue.entries();
    let served = |entry: &&Arc<ModelEntry>| app.fleet.state(&entry.service).routable > 0;
    let seeing = || entries.iter().filter(|entry| sees(entry));
    let reading = || entries.iter().filter(|entry| reads(entry));
    let found = seeing().chain(reading()).find(served).or_else(|| reading().chain(seeing()).next());
    found.cloned().ok_or_else(|| {
        ApiError::new(Code::ModelNotFound, "The catalogue has no model that can do this.").param("model")
    })
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

/// Where the one picture of a request is.
enum Source {
    Address(String),
    /// The field, and the file in it.
    File(&'static str, Bytes),
}

fn source(request: SightRequest) -> ApiResult<Source> {
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
        return Ok(Source::Address(url));
    }
    let (param, bytes) = match (request.image_base64, request.image_uint8) {
        (Some(text), _) => ("imageBase64", decode(&text)?),
        (None, numbers) => ("imageUint8", numbers.unwrap_or_default()),
    };
    if bytes.len() > limits::IMAGE_BYTES {
        return refuse(param, format!("The picture has more than {} bytes.", limits::IMAGE_BYTES));
    }
    Ok(Source::File(param, bytes.into()))
}

fn decode(text: &str) -> ApiResult<Vec<u8>> {
    let data = match text.strip_prefix("data:") {
        Some(rest) => rest.split_once(";base64,").map(|(_, data)| data),
        None => Some(text),
    };
    let decoded = data.and_then(|data| base64::engine::general_purpose::STANDARD.decode(data.trim()).ok());
    decoded.ok_or_else(|| ApiError::invalid_parameter("imageBase64", "imageBase64 is no base64."))
}

fn broken(param: &'static str, error: PictureError) -> ApiError {
    ApiError::invalid_parameter(param, sentence(&error.to_string()))
}

/// What went wrong with an address, without what stands behind it.
#[expect(clippy::needless_pass_by_value, reason = "what an error is turned into takes it")]
fn not_fetched(error: NoPicture) -> ApiError {
    ApiError::invalid_parameter("imageUrl", sentence(&format!("the picture was not fetched: {error}")))
}
