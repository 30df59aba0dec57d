//! The bounds of requests (GR section 9); each refusal names its field.

use cxmpute_market::catalogue::ModelEntry;
use cxmpute_wire::openai::{ChatRequest, CompletionRequest, Content, EmbeddingRequest, ResponseFormat, Stop};

use crate::error::{ApiError, ApiResult};
use crate::relay::MAX_CHOICES;

const MESSAGES: usize = 2_048;
const PARTS: usize = 64;
const TOOLS: usize = 128;
const STOPS: usize = 4;
const STOP_BYTES: usize = 256;
const CHOICES: u64 = 8;
const INPUTS: usize = 2_048;

fn refuse<T>(param: &str, message: impl Into<std::borrow::Cow<'static, str>>) -> ApiResult<T> {
    Err(ApiError::invalid_parameter(param, message))
}

/// A conversation.
pub fn check_chat(request: &ChatRequest) -> ApiResult<()> {
    if request.messages.is_empty() || request.messages.len() > MESSAGES {
        return refuse("messages", format!("messages must hold 1 to {MESSAGES} messages."));
    }
    for message in &request.messages {
        match &message.content {
            Some(content) if content.has_image() => {
                return Err(ApiError::unsupported_parameter("messages", "This model does not take images."));
            }
            Some(Content::Parts(parts)) if parts.len() > PARTS => {
                return refuse("messages", format!("A message may have at most {PARTS} parts."));
            }
            Some(_) => {}
            None if message.tool_calls.is_none() => return refuse("messages", "A message has no content."),
            None => {}
        }
    }
    if request.tools.as_ref().is_some_and(|tools| tools.len() > TOOLS) {
        return refuse("tools", format!("At most {TOOLS} tools may be declared."));
    }
    if let (Some(new), Some(old)) = (request.max_completion_tokens, request.max_tokens)
        && new != old
    {
        return refuse(
            "max_tokens",
            "max_tokens and max_completion_tokens differ; give one, or the same twice.",
        );
    }
    match &request.response_format {
        None | Some(ResponseFormat::Text) => {}
        Some(ResponseFormat::JsonObject | ResponseFormat::JsonSchema { .. }) => {
            return Err(ApiError::unsupported_parameter(
                "response_format",
                "This model answers in plain text only.",
            ));
        }
    }
    check_sampling(request.temperature, request.top_p, request.top_k)?;
    check_stop(request.stop.as_ref())?;
    check_choices(request.n)
}

/// A text to continue.
pub fn check_completion(request: &CompletionRequest) -> ApiResult<()> {
    let prompts = request.prompt.texts();
    if prompts.is_empty() || prompts.iter().any(String::is_empty) {
        return refuse("prompt", "prompt must not be empty.");
    }
    check_sampling(request.temperature, request.top_p, request.top_k)?;
    check_stop(request.stop.as_ref())?;
    check_choices(request.n)?;
    let choices = (prompts.len() as u64).saturating_mul(request.n.unwrap_or(1));
    if choices > MAX_CHOICES as u64 {
        return refuse("prompt", format!("Prompts times n must be at most {MAX_CHOICES}."));
    }
    Ok(())
}

/// Texts to embed.
pub fn check_embedding(request: &EmbeddingRequest, model: &ModelEntry) -> ApiResult<()> {
    let texts = request.input.texts();
    if texts.is_empty() || texts.len() > INPUTS {
        return refuse("input", format!("input must be a text or a list of 1 to {INPUTS} texts."));
    }
    if texts.iter().any(String::is_empty) {
        return refuse("input", "input must not hold an empty text.");
    }
    if request.dimensions.is_some_and(|wanted| Some(wanted) != model.dimensions) {
        return Err(ApiError::unsupported_parameter(
            "dimensions",
            "This model's vectors have a fixed length.",
        ));
    }
    Ok(())
}

/// The bound on output tokens and whether it was asked for: between 1 and the model's own bound (GR section 9).
pub fn output_limit(asked: Option<u64>, model: &ModelEntry, param: &str) -> ApiResult<(u64, bool)> {
    let most = match (model.max_completion_tokens.0, model.context_length.0) {
        (0, 0) => 4_096,
        (0, context) => context,
        (most, _) => most,
    };
    match asked {
        None => Ok((most, false)),
        Some(asked) if (1..=most).contains(&asked) => Ok((asked, true)),
        Some(_) => refuse(param, format!("{param} must be 1 to {most} for this model.")),
    }
}

fn check_sampling(temperature: Option<f64>, top_p: Option<f64>, top_k: Option<u64>) -> ApiResult<()> {
    if temperature.is_some_and(|value| !(0.0..=2.0).contains(&value)) {
        return refuse("temperature", "temperature must be 0 to 2.");
    }
    if top_p.is_some_and(|value| !(value > 0.0 && value <= 1.0)) {
        return refuse("top_p", "top_p must be over 0 and at most 1.");
    }
    if top_k.is_some_and(|value| value > 1_000_000) {
        return refuse("top_k", "top_k must be at most 1000000.");
    }
    Ok(())
}

fn check_stop(stop: Option<&Stop>) -> ApiResult<()> {
    let Some(stop) = stop else { return Ok(()) };
    let texts = stop.texts();
    if texts.len() > STOPS || texts.iter().any(|text| text.is_empty() || text.len() > STOP_BYTES) {
        return refuse("stop", format!("stop may hold {STOPS} texts of 1 to {STOP_BYTES} bytes."));
    }
    Ok(())
}

fn check_choices(n: Option<u64>) -> ApiResult<()> {
    if n.is_some_and(|n| !(1..=CHOICES).contains(&n)) {
        return refuse("n", format!("n must be 1 to {CHOICES}."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(more: &str) -> Option<String> {
        let body = format!(r#"{{"model":"m","messages":[{{"role":"user","content":"x"}}]{more}}}"#);
        let request: ChatRequest = serde_json::from_str(&body).unwrap();
        check_chat(&request).err().and_then(|error| error.param.clone())
    }

    #[test]
    fn out_of_range_values_name_their_field() {
        let table = [
            ("", None),
            (r#","n":0"#, Some("n")),
            (r#","n":9"#, Some("n")),
            (r#","n":8"#, None),
            (r#","temperature":2.1"#, Some("temperature")),
            (r#","temperature":-0.1"#, Some("temperature")),
            (r#","top_p":0"#, Some("top_p")),
            (r#","stop":["a","b","c","d","e"]"#, Some("stop")),
            (r#","stop":"""#, Some("stop")),
            (r#","max_tokens":5,"max_completion_tokens":6"#, Some("max_tokens")),
            (r#","max_tokens":5,"max_completion_tokens":5"#, None),
            (r#","response_format":{"type":"json_object"}"#, Some("response_format")),
            (r#","response_format":{"type":"text"}"#, None),
        ];
        for (more, field) in table {
            assert_eq!(chat(more).as_deref(), field, "{more}");
        }
    }

    #[test]
    fn messages_need_content_and_images_are_refused() {
        let check = |messages: &str| {
            let body = format!(r#"{{"model":"m","messages":{messages}}}"#);
            check_chat(&serde_json::from_str(&body).unwrap()).is_ok()
        };
        assert!(!check("[]"));
        assert!(!check(r#"[{"role":"user"}]"#));
        assert!(check(r#"[{"role":"user","content":[{"type":"text","text":"x"}]}]"#));
        assert!(!check(r#"[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,"}}]}]"#));
    }
}
