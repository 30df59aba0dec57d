//! `GET /models` and `GET /models/{id}`: what can be asked for, at what price, and whether somebody serves it now.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use cxmpute_market::catalogue::ModelEntry;
use cxmpute_market::price::{PriceRow, print_exactly};
use cxmpute_wire::MicroCredits;
use cxmpute_wire::openai::{
    Architecture, Availability, ModelList, ModelObject, ModelStats, Pricing, PricingMicro,
};
use http::{HeaderValue, header};

use crate::app::App;
use crate::error::{ApiError, ApiResult};

/// Availability changes within seconds; prices only with a new version.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=5");

/// All models.
pub async fn list_models(State(app): State<Arc<App>>) -> Response {
    let data = app.catalogue.entries().iter().map(|entry| describe(&app, entry)).collect();
    cached(Json(ModelList { object: "list".to_owned(), data }))
}

/// One model, by id or alias.
pub async fn get_model(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> ApiResult<Response> {
    let Path(id) = id.map_err(|_| ApiError::invalid_parameter("id", "id is no UTF-8 text."))?;
    let entry = app.catalogue.resolve(&id).ok_or_else(|| ApiError::model_not_found(&id))?;
    Ok(cached(Json(describe(&app, entry))))
}

fn cached(body: impl IntoResponse) -> Response {
    let mut response = body.into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, CACHE);
    response
}

fn describe(app: &App, entry: &ModelEntry) -> ModelObject {
    let state = app.fleet.state(&entry.service);
    let status = match (state.routable, state.loading) {
        (1.., _) => "ready",
        (0, true) => "loading",
        (0, false) => "none",
    };
    let some = |tokens: u64| (tokens > 0).then_some(tokens);
    let file = |role: &str| entry.files.iter().find(|file| file.role == role).map(|file| file.sha256.clone());
    ModelObject {
        id: entry.id.clone(),
        object: "model".to_owned(),
        created: entry.created,
        owned_by: entry.owned_by.clone(),
        name: entry.name.clone(),
        description: entry.description.clone(),
        aliases: entry.aliases.clone(),
        kind: entry.kind,
        context_length: some(entry.context_length.0),
        max_completion_tokens: some(entry.max_completion_tokens.0),
        dimensions: entry.dimensions,
        architecture: architecture(entry, file("tokenizer").or_else(|| file("model"))),
        pricing: pricing(&entry.price),
        pricing_micro: PricingMicro {
            prompt: entry.price.prompt.0,
            completion: entry.price.completion.0,
            embedding: entry.price.embedding.0,
            character: entry.price.character.0,
            second: entry.price.second.0,
            image: entry.price.image.0,
            url: entry.price.url.0,
            minimum: entry.price.minimum.0,
            share_bp: entry.price.share_bp,
            version: entry.price.version,
        },
        availability: Availability {
            status: status.to_owned(),
            nodes: state.routable,
            regions: state.regions,
        },
        quantizations: state.quantizations,
        stats: ModelStats {
            ttft_ms_p50: rounded(state.ttft_ms_p50),
            ttft_ms_p95: rounded(state.ttft_ms_p95),
            tokens_per_s_p50: rounded(state.tokens_per_s_p50),
            uptime_30m: state.uptime_30m,
        },
        supported_parameters: entry
            .supported_parameters
            .iter()
            .map(|parameter| parameter.name().to_owned())
            .collect(),
        digest: file("model"),
    }
}

fn architecture(entry: &ModelEntry, tokenizer: Option<String>) -> Architecture {
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let (input, output) = (owned(entry.input_modalities()), owned(entry.output_modalities()));
    Architecture {
        modality: format!("{}->{}", input.join("+"), output.join("+")),
        input_modalities: input,
        output_modalities: output,
        tokenizer,
    }
}

/// Credits per single unit: micro-credits per 10^6 units are exactly 10^-12 credits per unit.
fn per_unit(price: MicroCredits) -> String {
    print_exactly(price.0.into())
}

/// A measurement with one decimal; more would be noise.
fn rounded(figure: Option<f64>) -> Option<f64> {
    figure.map(|figure| (figure * 10.0).round() / 10.0)
}

fn pricing(price: &PriceRow) -> Pricing {
    Pricing {
        prompt: per_unit(price.prompt),
        completion: per_unit(price.completion),
        embedding: per_unit(price.embedding),
        character: per_unit(price.character),
        second: per_unit(price.second),
        image: per_unit(price.image),
        url: per_unit(price.url),
    }
}
