//! The bounds of requests (GR section 9), as far as they do not depend on the model; each refusal names its field.

use std::borrow::Cow;
use std::collections::BTreeMap;

use cxmpute_market::catalogue::ModelEntry;
use cxmpute_wire::openai::{
    ChatRequest, CompletionRequest, EmbeddingRequest, LogitBias, ResponseFormat, Stop, Tool, ToolChoice,
};

use super::conversation::check_messages;
use crate::error::{ApiError, ApiResult};
use crate::limits;
use crate::schema::{Schema, Use};

pub fn refuse<T>(param: &str, message: impl Into<Cow<'static, str>>) -> ApiResult<T> {
    Err(ApiError::invalid_parameter(param, message))
}

/// A conversation.
pub fn check_chat(request: &ChatRequest) -> ApiResult<()> {
    check_messages(&request.messages)?;
    if let (Some(new), Some(old)) = (request.max_completion_tokens, request.max_tokens)
        && new != old
    {
        return refuse(
            "max_tokens",
            "max_tokens and max_completion_tokens differ; give one, or the same twice.",
        );
    }
    if let Some(ResponseFormat::JsonSchema { json_schema }) = &request.response_format {
        check_name(&json_schema.name, "response_format.json_schema.name")?;
        check_description(json_schema.description.as_deref(), "response_format.json_schema.description")?;
    }
    check_top_logprobs(request)?;
    check_sampling(&Sampling {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        frequency_penalty: request.frequency_penalty,
        presence_penalty: request.presence_penalty,
        repetition_penalty: request.repetition_penalty,
    })?;
    check_bias(request.logit_bias.as_ref())?;
    check_stop(request.stop.as_ref())?;
    check_metadata(request.metadata.as_ref())?;
    check_effort(request.reasoning_effort.as_deref())?;
    check_choices(request.n)?;
    if request.stream_options.is_some() && !request.streamed() {
        return refuse("stream_options", "stream_options may only be given with stream: true.");
    }
    Ok(())
}

/// A text to continue.
pub fn check_completion(request: &CompletionRequest) -> ApiResult<()> {
    let prompts = request.prompt.texts();
    if prompts.is_empty() || prompts.iter().any(String::is_empty) {
        return refuse("prompt", "prompt must not be empty.");
    }
    check_sampling(&Sampling {
        temperature: request.temperature,
        top_p: request.top_p,
        top_k: request.top_k,
        min_p: request.min_p,
        frequency_penalty: request.frequency_penalty,
        presence_penalty: request.presence_penalty,
        repetition_penalty: request.repetition_penalty,
    })?;
    check_bias(request.logit_bias.as_ref())?;
    check_stop(request.stop.as_ref())?;
    check_choices(request.n)?;
    let n = request.n.unwrap_or(1);
    if request.best_of.is_some_and(|best_of| best_of != n) {
        return refuse("best_of", "best_of must be equal to n.");
    }
    if request.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()) {
        return Err(ApiError::unsupported_parameter(
            "suffix",
            "No model here fills in the middle of a text.",
        ));
    }
    if request.logprobs.is_some_and(|logprobs| logprobs > limits::LOGPROBS) {
        return refuse("logprobs", format!("logprobs must be 0 to {}.", limits::LOGPROBS));
    }
    if request.echo == Some(true) && request.logprobs.is_some() {
        return Err(ApiError::unsupported_parameter(
            "echo",
            "The probabilities of a repeated prompt are not known; leave echo or logprobs out.",
        ));
    }
    let choices = (prompts.len() as u64).saturating_mul(n);
    if choices > limits::CHOICES as u64 {
        return refuse("prompt", format!("Prompts times n must be at most {}.", limits::CHOICES));
    }
    if request.stream_options.is_some() && !request.streamed() {
        return refuse("stream_options", "stream_options may only be given with stream: true.");
    }
    Ok(())
}

/// Texts to embed.
pub fn check_embedding(request: &EmbeddingRequest, model: &ModelEntry) -> ApiResult<()> {
    let texts = request.input.texts();
    if texts.is_empty() || texts.len() > limits::INPUTS {
        return refuse("input", format!("input must be a text or a list of 1 to {} texts.", limits::INPUTS));
    }
    if let Some(at) = texts.iter().position(String::is_empty) {
        return refuse(&format!("input[{at}]"), "input must not hold an empty text.");
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

/// Declared tools and the choice among them.
pub fn check_tools(request: &ChatRequest) -> ApiResult<()> {
    let tools = request.tools.as_deref().unwrap_or_default();
    if tools.len() > limits::TOOLS {
        return refuse("tools", format!("At most {} tools may be declared.", limits::TOOLS));
    }
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (at, tool) in tools.iter().enumerate() {
        check_tool(tool, at)?;
        if let Some(first) = names.insert(&tool.function.name, at) {
            return refuse(
                &format!("tools[{at}].function.name"),
                format!("tools[{first}] has this name already; names must differ."),
            );
        }
    }
    let Some(choice) = &request.tool_choice else { return Ok(()) };
    if tools.is_empty() && !choice.forbids() {
        return refuse("tool_choice", "tool_choice may only be given with tools.");
    }
    match choice {
        ToolChoice::Named(named) if named.kind != "function" => {
            refuse("tool_choice.type", "The type of a tool is `function`.")
        }
        ToolChoice::Named(named) if !names.contains_key(named.function.name.as_str()) => {
            refuse("tool_choice", "tool_choice names a function that tools does not declare.")
        }
        ToolChoice::Named(_) | ToolChoice::Mode(_) => Ok(()),
    }
}

fn check_tool(tool: &Tool, at: usize) -> ApiResult<()> {
    if tool.kind != "function" {
        return refuse(&format!("tools[{at}].type"), "The type of a tool is `function`.");
    }
    check_name(&tool.function.name, &format!("tools[{at}].function.name"))?;
    check_description(tool.function.description.as_deref(), &format!("tools[{at}].function.description"))?;
    match &tool.function.parameters {
        Some(parameters) => Schema::check(parameters, Use::Hint).map_err(|fault| {
            let what = format!("function '{}'", tool.function.name);
            fault.refuse(&what, &format!("tools[{at}].function.parameters"))
        }),
        None => Ok(()),
    }
}

fn check_name(name: &str, param: &str) -> ApiResult<()> {
    let fine = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if name.is_empty() || name.len() > limits::NAME || !name.bytes().all(fine) {
        return refuse(param, format!("A name is 1 to {} of a-z, A-Z, 0-9, _ and -.", limits::NAME));
    }
    Ok(())
}

fn check_description(text: Option<&str>, param: &str) -> ApiResult<()> {
    if text.is_some_and(|text| text.len() > limits::DESCRIPTION) {
        return refuse(param, format!("A description has at most {} bytes.", limits::DESCRIPTION));
    }
    Ok(())
}

fn check_top_logprobs(request: &ChatRequest) -> ApiResult<()> {
    let Some(top) = request.top_logprobs else { return Ok(()) };
    if top > limits::TOP_LOGPROBS {
        return refuse("top_logprobs", format!("top_logprobs must be 0 to {}.", limits::TOP_LOGPROBS));
    }
    if request.logprobs != Some(true) {
        return refuse("top_logprobs", "top_logprobs needs logprobs: true.");
    }
    Ok(())
}

/// How tokens are drawn; the same fields on both routes.
struct Sampling {
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    min_p: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
}

fn check_sampling(asked: &Sampling) -> ApiResult<()> {
    let closed = [
        ("temperature", asked.temperature, 0.0, 2.0),
        ("min_p", asked.min_p, 0.0, 1.0),
        ("frequency_penalty", asked.frequency_penalty, -2.0, 2.0),
        ("presence_penalty", asked.presence_penalty, -2.0, 2.0),
    ];
    for (field, value, least, most) in closed {
        if value.is_some_and(|value| !(least..=most).contains(&value)) {
            return refuse(field, format!("{field} must be {least} to {most}."));
        }
    }
    // Zero would divide by zero, or leave no token.
    let open = [("top_p", asked.top_p, 1.0), ("repetition_penalty", asked.repetition_penalty, 2.0)];
    for (field, value, most) in open {
        if value.is_some_and(|value| !(value > 0.0 && value <= most)) {
            return refuse(field, format!("{field} must be over 0 and at most {most}."));
        }
    }
    if asked.top_k.is_some_and(|value| value > limits::TOP_K) {
        return refuse("top_k", format!("top_k must be at most {}.", limits::TOP_K));
    }
    Ok(())
}

fn check_bias(bias: Option<&LogitBias>) -> ApiResult<()> {
    let Some(bias) = bias else { return Ok(()) };
    if bias.len() > limits::BIASES {
        return refuse("logit_bias", format!("logit_bias may have {} entries.", limits::BIASES));
    }
    let is_id = |text: &String| text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<i64>().is_ok();
    if !bias.keys().all(is_id) {
        return refuse("logit_bias", "The keys of logit_bias are token ids, written as whole numbers.");
    }
    if !bias.values().all(|value| (-100.0..=100.0).contains(value)) {
        return refuse("logit_bias", "The values of logit_bias must be -100 to 100.");
    }
    Ok(())
}

fn check_stop(stop: Option<&Stop>) -> ApiResult<()> {
    let Some(stop) = stop else { return Ok(()) };
    let texts = stop.texts();
    let (most, bytes) = (limits::STOPS, limits::STOP_BYTES);
    if texts.len() > most || texts.iter().any(|text| text.is_empty() || text.len() > bytes) {
        return refuse("stop", format!("stop may hold {most} texts of 1 to {bytes} bytes."));
    }
    Ok(())
}

fn check_metadata(metadata: Option<&BTreeMap<String, String>>) -> ApiResult<()> {
    let Some(metadata) = metadata else { return Ok(()) };
    let (most, key, value) = (limits::METADATA, limits::METADATA_KEY, limits::METADATA_VALUE);
    if metadata.len() > most || metadata.iter().any(|(k, v)| k.len() > key || v.len() > value) {
        return refuse(
            "metadata",
            format!("metadata may have {most} entries with keys of {key} and values of {value} bytes."),
        );
    }
    Ok(())
}

fn check_effort(effort: Option<&str>) -> ApiResult<()> {
    const EFFORTS: [&str; 6] = ["none", "minimal", "low", "medium", "high", "xhigh"];
    match effort {
        Some(effort) if !EFFORTS.contains(&effort) => {
            refuse("reasoning_effort", format!("reasoning_effort is one of {}.", EFFORTS.join(", ")))
        }
        _ => Ok(()),
    }
}

fn check_choices(n: Option<u64>) -> ApiResult<()> {
    if n.is_some_and(|n| !(1..=limits::N).contains(&n)) {
        return refuse("n", format!("n must be 1 to {}.", limits::N));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
