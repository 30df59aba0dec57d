//! `POST /audio/transcriptions`: the one route whose body is a form with a file.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::Response;
use bytes::Bytes;
use cxmpute_market::price::Units;
use cxmpute_wire::openai::{ProviderPreferences, TranscriptFormat};
use cxmpute_wire::{Code, Millis, ServiceKind};
use http::{HeaderMap, header};

use super::parse::{Manners, resolve_service, wishes};
use super::validate::refuse;
use crate::app::App;
use crate::auth::Caller;
use crate::body::RawBody;
use crate::edge::Edge;
use crate::error::{ApiError, ApiResult};
use crate::json::Ignored;
use crate::limits;
use crate::media::SoundError;
use crate::relay::{Transcript, afford, run_errand};

/// Fields of a form.
const FIELDS: usize = 32;
/// Bytes of a field that is no file.
const FIELD_BYTES: usize = 16 * 1024;

/// Writes down what is said in a recording.
pub async fn create_transcription(
    State(app): State<Arc<App>>,
    edge: Edge,
    caller: Caller,
    headers: HeaderMap,
    RawBody(body): RawBody,
) -> ApiResult<Response> {
    let mut manners = Manners::of(&headers)?;
    let form = read(&headers, body).await?;
    manners.ignore(form.ignored)?;
    let name = form.model.ok_or_else(|| missing("model"))?;
    let model = resolve_service(&app, Some(&name), ServiceKind::Stt, |_| true)?;
    let file = form.file.filter(|file| !file.is_empty()).ok_or_else(|| missing("file"))?;
    let verbose = form.format == TranscriptFormat::VerboseJson;
    let words = form.granularities.iter().any(|each| each == "word");
    if !form.granularities.is_empty() && !verbose {
        return refuse(
            "timestamp_granularities",
            "timestamp_granularities needs response_format verbose_json.",
        );
    }
    let wishes = wishes(&app, &name, form.provider.as_ref())?;
    // How long a recording is, only its samples say: nothing is decoded for who may not use the model, or could not pay for
    // a second of it.
    caller.permit_model(&model)?;
    afford(&app, &caller, &model, &Units::audio(Millis(1))).await?;
    let longest = Duration::from_secs(limits::SOUND_SECONDS);
    let sound = app.media.sound(file, longest).await.map_err(no_sound)?;
    let transcript = Transcript {
        sound,
        language: form.language,
        prompt: form.prompt,
        temperature: form.temperature,
        format: form.format,
        segments: form.granularities.is_empty() || form.granularities.iter().any(|each| each == "segment"),
        words: verbose && words,
    };
    let total = app.config.relay.transcription_total();
    let ticket = manners.ticket(edge, "/audio/transcriptions", &name, model, wishes, total);
    Box::pin(run_errand(app, caller, ticket, transcript)).await.map(|response| manners.sign(response))
}

fn missing(field: &str) -> ApiError {
    ApiError::invalid_parameter(field, format!("`{field}` is missing."))
}

fn no_sound(error: SoundError) -> ApiError {
    let message = match error {
        SoundError::TooLong(most) => {
            format!("The recording is longer than {} s; send it in pieces.", most.as_secs())
        }
        other => {
            let text = other.to_string();
            format!("{}{}.", text[..1].to_uppercase(), &text[1..])
        }
    };
    ApiError::invalid_parameter("file", message)
}

/// What a form says.
#[derive(Debug, Default)]
struct Form {
    model: Option<String>,
    file: Option<Bytes>,
    language: Option<String>,
    prompt: Option<String>,
    temperature: f64,
    format: TranscriptFormat,
    granularities: Vec<String>,
    provider: Option<ProviderPreferences>,
    ignored: Ignored,
}

/// Reads the form; what is not part of the schema is named, not kept.
async fn read(headers: &HeaderMap, body: Bytes) -> ApiResult<Form> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(|_| {
        let message = "Send the body as Content-Type: multipart/form-data with a boundary.";
        ApiError::new(Code::UnsupportedMediaType, message)
    })?;
    let stream = futures_util::stream::once(async move { Ok::<_, Infallible>(body) });
    let mut parts = multer::Multipart::new(stream, boundary);
    let mut form = Form::default();
    for _ in 0..FIELDS {
        let Some(part) = parts.next_field().await.map_err(broken)? else { return Ok(form) };
        let name = part.name().unwrap_or_default().to_owned();
        let bytes = part.bytes().await.map_err(broken)?;
        if name == "file" {
            if bytes.len() > limits::SOUND_BYTES {
                return refuse("file", format!("The file has more than {} bytes.", limits::SOUND_BYTES));
            }
            if form.file.replace(bytes).is_some() {
                return refuse("file", "There is more than one file.");
            }
            continue;
        }
        let text = std::str::from_utf8(&bytes).ok().filter(|text| text.len() <= FIELD_BYTES);
        let field = shown(&name);
        let text = text.ok_or_else(|| {
            ApiError::invalid_parameter(&field, format!("{field} is no text of at most {FIELD_BYTES} bytes."))
        })?;
        form.take(&name, text)?;
    }
    refuse("file", format!("The form has more than {FIELDS} fields."))
}

fn broken(_: multer::Error) -> ApiError {
    ApiError::new(Code::InvalidParameter, "The body is no complete form.").param("body")
}

/// A field's name as it may stand in a message.
fn shown(name: &str) -> String {
    name.chars().take(64).map(|c| if c.is_ascii_graphic() && c != ',' { c } else { '?' }).collect()
}

impl Form {
    fn take(&mut self, name: &str, text: &str) -> ApiResult<()> {
        let line = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        match name {
            "model" => self.model = line(text),
            "language" => {
                let plain = text.len() <= 16 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
                if !plain {
                    return refuse("language", "language must be a code such as en or pt-BR.");
                }
                self.language = line(text);
            }
            "prompt" => {
                if text.contains('\r') || text.contains('\0') {
                    return refuse("prompt", "prompt must not hold the characters 0 and 13.");
                }
                self.prompt = line(text);
            }
            "temperature" => {
                let wanted = text.parse::<f64>().ok().filter(|wanted| (0.0..=1.0).contains(wanted));
                let Some(wanted) = wanted else {
                    return refuse("temperature", "temperature must be 0 to 1.");
                };
                self.temperature = wanted;
            }
            "response_format" => {
                let known = serde_json::from_value(serde_json::Value::String(text.to_owned())).ok();
                let Some(known) = known else {
                    return refuse(
                        "response_format",
                        "response_format must be json, text, srt, vtt or verbose_json.",
                    );
                };
                self.format = known;
            }
            "timestamp_granularities[]" | "timestamp_granularities" => {
                if !["segment", "word"].contains(&text) {
                    return refuse(
                        "timestamp_granularities",
                        "timestamp_granularities holds segment or word.",
                    );
                }
                self.granularities.push(text.to_owned());
            }
            "provider" => {
                let wanted = serde_json::from_str(text).map_err(|_| {
                    ApiError::invalid_parameter("provider", "provider must be an object of wishes, as JSON.")
                })?;
                self.provider = Some(wanted);
            }
            "stream" if text == "true" => {
                return Err(ApiError::unsupported_parameter("stream", "Transcripts are not streamed."));
            }
            "stream" => {}
            other => self.ignored.add(&shown(other)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn of(parts: &[(&str, &[u8])]) -> ApiResult<Form> {
        let mut body = Vec::new();
        for (name, value) in parts {
            let file = if *name == "file" { "; filename=\"a.wav\"" } else { "" };
            body.extend_from_slice(
                format!("--B\r\nContent-Disposition: form-data; name=\"{name}\"{file}\r\n\r\n").as_bytes(),
            );
            body.extend_from_slice(value);
            body.extend_from_slice(b"\r\n");
        }
        body.extend_from_slice(b"--B--\r\n");
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, "multipart/form-data; boundary=B".parse().unwrap());
        read(&headers, body.into()).await
    }

    #[tokio::test]
    async fn a_form_is_read_field_by_field() {
        let form = of(&[
            ("file", b"RIFF\r\n--C"),
            ("model", b"whisper-1"),
            ("response_format", b"verbose_json"),
            ("timestamp_granularities[]", b"word"),
            ("temperature", b"0.2"),
            ("chunking_strategy", b"auto"),
        ])
        .await
        .unwrap();
        assert_eq!(form.file.as_deref(), Some(&b"RIFF\r\n--C"[..]));
        assert_eq!((form.model.as_deref(), form.format), (Some("whisper-1"), TranscriptFormat::VerboseJson));
        assert_eq!(form.granularities, ["word"]);
        assert_eq!(form.ignored.names, ["chunking_strategy"]);
    }

    #[tokio::test]
    async fn the_field_at_fault_is_named() {
        for (name, value, param) in [
            ("response_format", &b"xml"[..], "response_format"),
            ("temperature", b"hot", "temperature"),
            ("temperature", b"1.5", "temperature"),
            ("language", b"../etc", "language"),
            ("timestamp_granularities[]", b"letter", "timestamp_granularities"),
            ("stream", b"true", "stream"),
            ("prompt", b"a\r\n--x", "prompt"),
            ("prompt", b"\xff", "prompt"),
            ("provider", b"fast", "provider"),
        ] {
            let error = of(&[(name, value)]).await.unwrap_err();
            assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some(param)), "{name}");
        }
        let twice = of(&[("file", b"a"), ("file", b"b")]).await.unwrap_err();
        assert_eq!(twice.param.as_deref(), Some("file"));
        let mut headers = HeaderMap::new();
        assert_eq!(read(&headers, Bytes::new()).await.unwrap_err().status, 415);
        headers.insert(header::CONTENT_TYPE, "multipart/form-data; boundary=B".parse().unwrap());
        assert_eq!(read(&headers, Bytes::from_static(b"--B\r\nContent-")).await.unwrap_err().status, 400);
    }
}
