//! What a request asks of its model: a capability that the model lacks is a 400 that names it, never silent (GR7).
//! A value without an effect, such as `n: 1`, asks for nothing.

use cxmpute_market::catalogue::{Capability, ModelEntry, Parameter};
use cxmpute_wire::openai::{ChatRequest, CompletionRequest, ResponseFormat};

use super::pictures::has_pictures;
use crate::error::{ApiError, ApiResult};

/// A parameter, whether it is asked for, and the field that asks.
type Asked = (Parameter, bool, &'static str);

/// Whether the model can do what a conversation asks for.
///
/// # Errors
/// The first field that it lacks.
pub fn supports_chat(model: &ModelEntry, request: &ChatRequest) -> ApiResult<()> {
    let tools = if request.functions.is_some() { "functions" } else { "tools" };
    let format = request.response_format.as_ref();
    if has_pictures(request) && !model.can(Capability::Vision) {
        return Err(ApiError::unsupported_parameter("messages", "This model does not take images."));
    }
    all(
        model,
        &[
            (Parameter::Stream, request.streamed(), "stream"),
            (Parameter::Temperature, request.temperature.is_some(), "temperature"),
            (Parameter::TopP, request.top_p.is_some_and(|value| value < 1.0), "top_p"),
            (Parameter::TopK, request.top_k.is_some_and(|value| value > 0), "top_k"),
            (Parameter::MinP, has(request.min_p, 0.0), "min_p"),
            (Parameter::FrequencyPenalty, has(request.frequency_penalty, 0.0), "frequency_penalty"),
            (Parameter::PresencePenalty, has(request.presence_penalty, 0.0), "presence_penalty"),
            (Parameter::RepetitionPenalty, has(request.repetition_penalty, 1.0), "repetition_penalty"),
            (
                Parameter::LogitBias,
                request.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty()),
                "logit_bias",
            ),
            (Parameter::Logprobs, request.logprobs == Some(true), "logprobs"),
            (Parameter::TopLogprobs, request.top_logprobs.is_some_and(|top| top > 0), "top_logprobs"),
            (Parameter::Seed, request.seed.is_some(), "seed"),
            (Parameter::Stop, request.stop.is_some(), "stop"),
            (Parameter::N, request.n.is_some_and(|n| n > 1), "n"),
            (Parameter::Tools, request.tools.is_some() || request.functions.is_some(), tools),
            (
                Parameter::ToolChoice,
                request.tool_choice.as_ref().is_some_and(|choice| choice.forces()),
                "tool_choice",
            ),
            (
                Parameter::ResponseFormat,
                matches!(format, Some(ResponseFormat::JsonObject)),
                "response_format",
            ),
            (
                Parameter::StructuredOutputs,
                matches!(format, Some(ResponseFormat::JsonSchema { .. })),
                "response_format",
            ),
            (Parameter::ReasoningEffort, request.reasoning_effort.is_some(), "reasoning_effort"),
        ],
    )
}

/// Whether the model can do what a legacy completion asks for.
///
/// # Errors
/// The first field that it lacks.
pub fn supports_completion(model: &ModelEntry, request: &CompletionRequest) -> ApiResult<()> {
    all(
        model,
        &[
            (Parameter::Stream, request.streamed(), "stream"),
            (Parameter::Temperature, request.temperature.is_some(), "temperature"),
            (Parameter::TopP, request.top_p.is_some_and(|value| value < 1.0), "top_p"),
            (Parameter::TopK, request.top_k.is_some_and(|value| value > 0), "top_k"),
            (Parameter::MinP, has(request.min_p, 0.0), "min_p"),
            (Parameter::FrequencyPenalty, has(request.frequency_penalty, 0.0), "frequency_penalty"),
            (Parameter::PresencePenalty, has(request.presence_penalty, 0.0), "presence_penalty"),
            (Parameter::RepetitionPenalty, has(request.repetition_penalty, 1.0), "repetition_penalty"),
            (
                Parameter::LogitBias,
                request.logit_bias.as_ref().is_some_and(|bias| !bias.is_empty()),
                "logit_bias",
            ),
            (Parameter::Logprobs, request.logprobs.is_some(), "logprobs"),
            (Parameter::Seed, request.seed.is_some(), "seed"),
            (Parameter::Stop, request.stop.is_some(), "stop"),
            (Parameter::N, request.n.is_some_and(|n| n > 1), "n"),
        ],
    )
}

/// Whether a value has an effect; `none` is the one without.
fn has(value: Option<f64>, none: f64) -> bool {
    value.is_some_and(|value| value != none)
}

fn all(model: &ModelEntry, asked: &[Asked]) -> ApiResult<()> {
    let lacks = asked.iter().find(|(parameter, asked, _)| *asked && !model.supports(*parameter));
    match lacks {
        None => Ok(()),
        Some((_, _, field)) => Err(ApiError::unsupported_parameter(
            field,
            format!("The model `{}` does not support {field}; GET /v1/models lists what it does.", model.id),
        )),
    }
}

#[cfg(test)]
mod tests {
    use cxmpute_market::catalogue::Catalogue;
    use serde_json::{Value, json};

    use super::*;

    fn refused(supported: &str, more: Value) -> Option<String> {
        let text = format!(
            "[[model]]\nid = \"m\"\nkind = \"llm\"\ncontext_length = 9\nmax_completion_tokens = 9\n{supported}\n\
             price = {{ version = 1, prompt = 1, completion = 1 }}"
        );
        let catalogue = Catalogue::parse(&text, "models.toml").unwrap();
        let mut body = json!({"model": "m", "messages": []});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let request = serde_json::from_value(body).unwrap();
        let error = supports_chat(catalogue.resolve("m").unwrap(), &request).err()?;
        assert_eq!(error.code, cxmpute_wire::Code::UnsupportedParameter);
        error.param.clone()
    }

    #[test]
    fn what_a_model_lacks_is_named_and_what_has_no_effect_is_not() {
        let schema = json!({"type": "json_schema", "json_schema": {"name": "n"}});
        let bare = "supported_parameters = [\"max_tokens\", \"tools\"]";
        for (more, field) in [
            (json!({}), None),
            (
                json!({"max_tokens": 5, "n": 1, "logprobs": false, "min_p": 0, "frequency_penalty": 0, "repetition_penalty": 1,
                "logit_bias": {}, "top_p": 1, "response_format": {"type": "text"}, "tools": []}),
                None,
            ),
            (json!({"stream": true}), Some("stream")),
            (json!({"temperature": 0}), Some("temperature")),
            (json!({"n": 2}), Some("n")),
            (json!({"logprobs": true}), Some("logprobs")),
            (json!({"tool_choice": "required"}), Some("tool_choice")),
            (json!({"response_format": {"type": "json_object"}}), Some("response_format")),
            (json!({"response_format": schema}), Some("response_format")),
            (json!({"reasoning_effort": "low"}), Some("reasoning_effort")),
        ] {
            assert_eq!(refused(bare, more.clone()).as_deref(), field, "{more}");
        }
        assert_eq!(
            refused("supported_parameters = []", json!({"functions": [{"name": "f"}]})).as_deref(),
            Some("functions")
        );
        assert_eq!(
            refused("", json!({"n": 2, "response_format": schema, "tools": [], "logprobs": true})),
            None
        );
        assert_eq!(refused("", json!({"reasoning_effort": "low"})).as_deref(), Some("reasoning_effort"));
    }
}
