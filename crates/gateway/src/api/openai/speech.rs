//! `POST /audio/speech`, and `POST /tts` as the first seed had it.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use cxmpute_market::catalogue::ModelEntry;
use cxmpute_wire::ServiceKind;
use cxmpute_wire::openai::{AudioFormat, SpeechRequest, StreamFormat, TtsRequest};

use super::parse::{Mannered, Parsed, resolve_service, wishes};
use super::validate::refuse;
use crate::app::App;
use crate::auth::Caller;
use crate::edge::Edge;
use crate::error::{ApiError, ApiResult};
use crate::limits;
use crate::relay::{Speech, run_errand};

/// The voice of the first seed when none is named.
const SEED_VOICE: &str = "af_bella";
/// Slowest and fastest, as OpenAI has it.
const SPEEDS: std::ops::RangeInclusive<f64> = 0.25..=4.0;

/// Says a text.
pub async fn create_speech(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    Mannered(manners): Mannered,
    Parsed(request, ignored): Parsed<SpeechRequest>,
) -> ApiResult<Response> {
    let mut manners = manners?;
    manners.ignore(ignored)?;
    let model = resolve_service(&app, Some(&request.model), ServiceKind::Tts, |_| true)?;
    if request.instructions.as_ref().is_some_and(|words| !words.is_empty()) {
        return Err(ApiError::unsupported_parameter(
            "instructions",
            "This model cannot be told how to say it.",
        ));
    }
    let format = request.response_format.unwrap_or_else(|| app.media.packer.usual());
    let speech = Speech {
        voice: voice(&model, request.voice.as_str())?,
        speed: speed(request.speed)?,
        format: packable(&app, format)?,
        live: live(format, request.stream_format),
        text: sayable(request.input, "input")?,
    };
    let wishes = wishes(&app, &request.model, request.provider.as_ref())?;
    let total = app.config.relay.speech_total();
    let ticket = manners.ticket(edge, "/audio/speech", &request.model, model, wishes, total);
    Box::pin(run_errand(app, caller, ticket, speech)).await.map(|response| manners.sign(response))
}

/// Says a text, with the names and defaults of the first seed; always a waveform.
pub async fn create_tts(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    Mannered(manners): Mannered,
    Parsed(request, ignored): Parsed<TtsRequest>,
) -> ApiResult<Response> {
    let mut manners = manners?;
    manners.ignore(ignored)?;
    let name = request.voice.as_deref().unwrap_or(SEED_VOICE);
    let knows = |entry: &ModelEntry| entry.voices.contains_key(name);
    let model = resolve_service(&app, request.model.as_deref(), ServiceKind::Tts, knows)?;
    let speech = Speech {
        voice: voice(&model, name)?,
        speed: speed(request.speed)?,
        format: AudioFormat::Wav,
        live: None,
        text: sayable(request.text, "text")?,
    };
    let asked = request.model.unwrap_or_else(|| model.id.clone());
    let wishes = wishes(&app, &asked, request.provider.as_ref())?;
    let total = app.config.relay.speech_total();
    let ticket = manners.ticket(edge, "/tts", &asked, model, wishes, total);
    Box::pin(run_errand(app, caller, ticket, speech)).await.map(|response| manners.sign(response))
}

/// The engine's name of a voice. A model without a list takes the name as it is.
fn voice(model: &ModelEntry, name: &str) -> ApiResult<String> {
    let plain = (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic());
    match model.voices.get(name) {
        Some(voice) => Ok(voice.clone()),
        None if model.voices.is_empty() && plain => Ok(name.to_owned()),
        None => {
            let known: Vec<&str> = model.voices.keys().map(String::as_str).collect();
            refuse("voice", format!("This model has no such voice; it has {}.", known.join(", ")))
        }
    }
}

fn speed(wanted: Option<f64>) -> ApiResult<f64> {
    match wanted.unwrap_or(1.0) {
        speed if SPEEDS.contains(&speed) => Ok(speed),
        _ => refuse("speed", format!("speed must be {} to {}.", SPEEDS.start(), SPEEDS.end())),
    }
}

/// How speech is handed on. The header of a waveform says how long the sound is, so a wav waits for its end unless the client
/// asks for it earlier.
fn live(format: AudioFormat, wanted: Option<StreamFormat>) -> Option<StreamFormat> {
    match (format, wanted) {
        (AudioFormat::Wav, None) => None,
        (_, wanted) => Some(wanted.unwrap_or(StreamFormat::Audio)),
    }
}

fn packable(app: &App, format: AudioFormat) -> ApiResult<AudioFormat> {
    if app.media.packer.makes(format) {
        return Ok(format);
    }
    let message = format!("This gateway has no encoder for {}; ask for wav or pcm.", format.as_str());
    Err(ApiError::unsupported_parameter("response_format", message))
}

fn sayable(text: String, param: &str) -> ApiResult<String> {
    let length = text.chars().count();
    if text.trim().is_empty() {
        return refuse(param, format!("{param} must not be empty."));
    }
    if length > limits::SPEECH_CHARACTERS {
        return refuse(
            param,
            format!("{param} has {length} characters; at most {} are said.", limits::SPEECH_CHARACTERS),
        );
    }
    if text.contains('\0') {
        return refuse(param, format!("{param} must not hold the character 0."));
    }
    Ok(text)
}
