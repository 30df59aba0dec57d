//! The parameters of generation that chat and legacy completions share, checked.

use cxmpute_wire::Code;
use cxmpute_wire::openai::{ChatRequest, CompletionRequest, Content, ResponseFormat, Stop};
use tokio::sync::mpsc;

use crate::llm::{Generation, Llm};
use crate::refusal::Refusal;
use crate::sample::Sampling;
use crate::server::in_background;

/// Most stop texts of one request. `OpenAI` allows 4, most engines more.
const MAX_STOPS: usize = 16;
/// Longest stop text; text is held back while it may be the beginning of one.
const MAX_STOP_BYTES: usize = 512;
/// Most prompts of one legacy completion.
const MAX_PROMPTS: usize = 64;
/// Events that may wait for a slow reader before the slot waits for it.
const EVENTS: usize = 64;

/// Parameters as they stand in a request.
pub struct Params {
    max_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    seed: Option<i64>,
    stops: Vec<String>,
    n: Option<u64>,
}

impl Params {
    /// The parameters of a chat request.
    ///
    /// # Errors
    /// When it asks for what this engine does not do.
    pub fn of_chat(request: &ChatRequest) -> Result<Self, Refusal> {
        if request.messages.is_empty() {
            return Err(Refusal::parameter("messages", "There must be at least one message."));
        }
        if request.messages.iter().any(|message| message.content.as_ref().is_some_and(Content::has_image)) {
            return Err(
                Refusal::new(Code::UnsupportedParameter, "This model reads no images.").at("messages")
            );
        }
        if !matches!(request.response_format, None | Some(ResponseFormat::Text)) {
            let message = "This engine cannot force the shape of its output.";
            return Err(Refusal::new(Code::UnsupportedParameter, message).at("response_format"));
        }
        Ok(Self {
            max_tokens: request.output_limit(),
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            seed: request.seed,
            stops: stop_texts(request.stop.as_ref()),
            n: request.n,
        })
    }

    /// The parameters of a legacy completion.
    pub fn of_completion(request: &CompletionRequest) -> Self {
        Self {
            max_tokens: Some(request.max_tokens.unwrap_or(CompletionRequest::DEFAULT_MAX_TOKENS)),
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            seed: request.seed,
            stops: stop_texts(request.stop.as_ref()),
            n: request.n,
        }
    }

    fn check(&self) -> Result<Sampling, Refusal> {
        let temperature = self.temperature.unwrap_or(1.0);
        if !(0.0..=2.0).contains(&temperature) {
            return Err(Refusal::parameter("temperature", "temperature must be from 0 to 2."));
        }
        let top_p = self.top_p.unwrap_or(1.0);
        if !(0.0..=1.0).contains(&top_p) {
            return Err(Refusal::parameter("top_p", "top_p must be from 0 to 1."));
        }
        if self.n.is_some_and(|n| n != 1) {
            return Err(Refusal::new(Code::UnsupportedParameter, "Only n = 1 is supported.").at("n"));
        }
        if self.max_tokens == Some(0) {
            return Err(Refusal::parameter("max_tokens", "max_tokens must be at least 1."));
        }
        let usable = |stop: &String| (1..=MAX_STOP_BYTES).contains(&stop.len());
        if self.stops.len() > MAX_STOPS || !self.stops.iter().all(usable) {
            let message = format!("stop takes up to {MAX_STOPS} texts of 1 to {MAX_STOP_BYTES} bytes.");
            return Err(Refusal::parameter("stop", message));
        }
        // 0 means "no such bound" in the engines that have the parameter.
        let top_k = self.top_k.filter(|k| *k > 0).map(|k| usize::try_from(k).unwrap_or(usize::MAX));
        Ok(Sampling { temperature, top_p, top_k })
    }
}

fn stop_texts(stop: Option<&Stop>) -> Vec<String> {
    stop.map(|stop| stop.texts().to_vec()).unwrap_or_default()
}

/// A generation that a slot has taken or will take.
pub struct Admitted {
    /// What happens in it.
    pub events: mpsc::Receiver<crate::llm::Event>,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
}

/// Checks everything, makes the prompts and hands the generation to the slots.
///
/// # Errors
/// When a parameter is wrong, the prompt does not fit or all slots and places in the queue are taken.
pub async fn admit<F>(llm: &Llm, params: Params, encode: F) -> Result<Admitted, Refusal>
where
    F: FnOnce() -> Result<Vec<Vec<u32>>, Refusal> + Send + 'static,
{
    let sampling = params.check()?;
    let prompts = in_background(encode).await??;
    if prompts.is_empty() || prompts.len() > MAX_PROMPTS || prompts.iter().any(Vec::is_empty) {
        return Err(Refusal::parameter(
            "prompt",
            format!("There must be 1 to {MAX_PROMPTS} prompts, none of them empty."),
        ));
    }
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let wanted = params.max_tokens.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX));
    if longest.saturating_add(wanted.unwrap_or(1)) > llm.context {
        return Err(Refusal::context(llm.context, longest, params.max_tokens));
    }
    let prompt_tokens = prompts.iter().map(|prompt| prompt.len() as u64).sum();
    let (out, events) = mpsc::channel(EVENTS);
    llm.pool.submit(Generation {
        prompts,
        max_tokens: wanted.unwrap_or(usize::MAX),
        sampling,
        seed: params.seed.map(i64::cast_unsigned),
        stops: params.stops,
        out,
    })?;
    Ok(Admitted { events, prompt_tokens })
}
