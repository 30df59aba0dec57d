//! `POST /images/generations`, and `POST /image` as the first seed had it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cxmpute_market::catalogue::{Canvas, ModelEntry};
use cxmpute_wire::ServiceKind;
use cxmpute_wire::openai::{
    DrawRequest, ImageRequest, ImageResponse, PictureFormat, SeedImageRequest, commands_engine, read_size,
};

use super::parse::{Mannered, Parsed, resolve_service, wishes};
use super::validate::refuse;
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::{ApiError, ApiResult};
use crate::limits;
use crate::relay::{Drawing, DrawingForm, run_errand};

/// Steps of the first seed when none are named.
const SEED_STEPS: u64 = 30;
/// Width and height of the first seed when none are named.
const SEED_SIDE: u64 = 512;

/// Draws pictures.
pub async fn create_images(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    Mannered(manners): Mannered,
    Parsed(mut request, ignored): Parsed<ImageRequest>,
) -> ApiResult<Response> {
    let mut manners = manners?;
    manners.ignore(ignored)?;
    let model = resolve_service(&app, request.model.as_deref(), ServiceKind::Image, |_| true)?;
    check_choices(&request)?;
    let canvas = canvas(&model)?;
    let size = size(request.size.as_deref(), &canvas)?;
    let drawing = Drawing::new(
        DrawRequest {
            model: model.id.clone(),
            prompt: drawable(std::mem::take(&mut request.prompt), "prompt")?,
            n: request.n.unwrap_or(1),
            size: format!("{}x{}", size.0, size.1),
            response_format: ImageResponse::B64Json,
            negative_prompt: avoided(request.negative_prompt.take(), "negative_prompt")?,
            num_inference_steps: steps(request.num_inference_steps, "num_inference_steps")?,
            seed: seed(request.seed)?,
        },
        canvas.units(size.0, size.1),
        request.output_format.unwrap_or_default(),
        DrawingForm::List(app.clock.now().seconds()),
    )?;
    let name = request.model.take().unwrap_or_else(|| model.id.clone());
    let wishes = wishes(&app, &name, request.provider.as_ref())?;
    let total = app.config.relay.image_total();
    let ticket = manners.ticket(edge, "/images/generations", &name, model, wishes, total);
    Box::pin(run_errand(app, caller, ticket, drawing)).await.map(|response| manners.sign(response))
}

/// Draws one picture, with the names and defaults of the first seed; always a PNG.
pub async fn create_seed_image(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    Mannered(manners): Mannered,
    Parsed(mut request, ignored): Parsed<SeedImageRequest>,
) -> ApiResult<Response> {
    let mut manners = manners?;
    manners.ignore(ignored)?;
    let model = resolve_service(&app, request.model.as_deref(), ServiceKind::Image, |_| true)?;
    let canvas = canvas(&model)?;
    let side = |wanted: Option<u64>, param| fits(wanted.unwrap_or(SEED_SIDE), param, &canvas);
    let (width, height) = (side(request.width, "width")?, side(request.height, "height")?);
    let drawing = Drawing::new(
        DrawRequest {
            model: model.id.clone(),
            prompt: drawable(std::mem::take(&mut request.prompt), "prompt")?,
            n: 1,
            size: format!("{width}x{height}"),
            response_format: ImageResponse::B64Json,
            negative_prompt: avoided(request.negative_prompt.take(), "negativePrompt")?,
            num_inference_steps: steps(
                request.num_inference_steps.or(Some(SEED_STEPS)),
                "numInferenceSteps",
            )?,
            seed: None,
        },
        canvas.units(width, height),
        PictureFormat::Png,
        DrawingForm::Bare,
    )?;
    let name = request.model.take().unwrap_or_else(|| model.id.clone());
    let wishes = wishes(&app, &name, request.provider.as_ref())?;
    let total = app.config.relay.image_total();
    let ticket = manners.ticket(edge, "/image", &name, model, wishes, total);
    Box::pin(run_errand(app, caller, ticket, drawing)).await.map(|response| manners.sign(response))
}

/// The fields with few values.
fn check_choices(request: &ImageRequest) -> ApiResult<()> {
    if request.n.is_some_and(|n| !(1..=limits::DRAWN).contains(&n)) {
        return refuse("n", format!("n must be 1 to {}.", limits::DRAWN));
    }
    let unsupported = |field, message: &'static str| Err(ApiError::unsupported_parameter(field, message));
    if request.response_format == Some(ImageResponse::Url) {
        let message = "Pictures are sent as b64_json: none is kept here, so there is no address to give.";
        return unsupported("response_format", message);
    }
    if request.stream == Some(true) {
        return unsupported("stream", "Pictures come whole; leave stream out.");
    }
    match request.quality.as_deref() {
        None | Some("auto" | "standard" | "medium") => {}
        Some("low" | "high" | "hd") => {
            return unsupported("quality", "No model here has more than one quality.");
        }
        Some(_) => return refuse("quality", "quality is auto, standard or medium."),
    }
    match request.background.as_deref() {
        None | Some("auto" | "opaque") => Ok(()),
        Some("transparent") => unsupported("background", "No model here draws transparency."),
        Some(_) => refuse("background", "background is auto or opaque."),
    }
}

fn canvas(model: &ModelEntry) -> ApiResult<Canvas> {
    model.canvas.ok_or_else(|| ApiError::internal(anyhow::anyhow!("{} draws and has no canvas", model.id)))
}

fn size(wanted: Option<&str>, canvas: &Canvas) -> ApiResult<(u32, u32)> {
    let text = match wanted {
        None | Some("auto") => return Ok(canvas.usual),
        Some(text) => text,
    };
    let Some((width, height)) = read_size(text) else {
        return refuse("size", "size is auto, or width and height such as 512x512.");
    };
    Ok((fits(width.into(), "size", canvas)?, fits(height.into(), "size", canvas)?))
}

fn fits(side: u64, param: &str, canvas: &Canvas) -> ApiResult<u32> {
    let (least, step) = limits::DRAWN_SIDE;
    match u32::try_from(side) {
        Ok(side) if (least..=canvas.most_side).contains(&side) && side.is_multiple_of(step) => Ok(side),
        _ => {
            let most = canvas.most_side;
            refuse(
                param,
                format!("A side has {least} to {most} pixels with this model, a multiple of {step}."),
            )
        }
    }
}

fn steps(wanted: Option<u64>, param: &str) -> ApiResult<Option<u64>> {
    match wanted {
        Some(steps) if !(1..=limits::DRAWN_STEPS).contains(&steps) => {
            refuse(param, format!("{param} must be 1 to {}.", limits::DRAWN_STEPS))
        }
        steps => Ok(steps),
    }
}

/// Engines read a seed as an unsigned number of 32 bits.
fn seed(wanted: Option<i64>) -> ApiResult<Option<i64>> {
    match wanted {
        Some(seed) if u32::try_from(seed).is_err() => {
            refuse("seed", format!("seed must be 0 to {}.", u32::MAX))
        }
        seed => Ok(seed),
    }
}

fn drawable(text: String, param: &str) -> ApiResult<String> {
    if text.trim().is_empty() {
        return refuse(param, format!("{param} must not be empty."));
    }
    avoided(Some(text), param).map(Option::unwrap_or_default)
}

/// What a picture does not show; an empty text is none.
fn avoided(text: Option<String>, param: &str) -> ApiResult<Option<String>> {
    let Some(text) = text.filter(|text| !text.trim().is_empty()) else { return Ok(None) };
    let length = text.chars().count();
    if length > limits::DRAWN_CHARACTERS {
        let message =
            format!("{param} has {length} characters; at most {} are drawn.", limits::DRAWN_CHARACTERS);
        return refuse(param, message);
    }
    if text.contains('\0') {
        return refuse(param, format!("{param} must not hold the character 0."));
    }
    if commands_engine(&text) {
        let message = format!("{param} holds a command to a server in angle brackets; only words are drawn.");
        return refuse(param, message);
    }
    Ok(Some(text))
}
