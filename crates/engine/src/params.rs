//! The parameters of generation that chat and legacy completions share, checked.

use cxmpute_wire::Code;
use cxmpute_wire::openai::{ChatRequest, CompletionRequest, Content, LogitBias, Stop};
use tokio::sync::mpsc;

use crate::constrain::Constraint;
use crate::generate::{Event, Generation, Prompt};
use crate::llm::Llm;
use crate::penalties::{Bias, Penalties};
use crate::refusal::{CacheSalt, Refusal};
use crate::sample::Sampling;
use crate::server::in_background;

/// Most stop texts of one request. `OpenAI` allows 4, most engines more.
const MAX_STOPS: usize = 16;
/// Longest stop text; text is held back while it may be the beginning of one.
const MAX_STOP_BYTES: usize = 512;
/// Most prompts of one legacy completion.
const MAX_PROMPTS: usize = 64;
/// Most answers to one prompt.
const MAX_CHOICES: u64 = 8;
/// Most likeliest tokens beside each token of a chat answer.
const MAX_TOP_LOGPROBS: u64 = 20;
/// Most likeliest tokens beside each token of a legacy completion.
const MAX_COMPLETION_LOGPROBS: u64 = 5;
/// Most biased tokens.
const MAX_BIASES: usize = 1024;
/// Events that may wait for a slow reader before the slot waits for it.
const EVENTS: usize = 64;

/// Parameters as they stand in a request.
#[derive(Default)]
pub struct Params {
    max_tokens: Option<u64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<u64>,
    min_p: Option<f64>,
    frequency_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    repetition_penalty: Option<f64>,
    logit_bias: Option<LogitBias>,
    seed: Option<i64>,
    stops: Vec<String>,
    n: Option<u64>,
    /// Probabilities are wanted, with this many of the likeliest tokens.
    logprobs: Option<u64>,
    /// For whom the request is.
    cache_salt: String,
}

impl Params {
    /// The same, for whom `salt` says.
    #[must_use]
    pub fn salted(mut self, salt: CacheSalt) -> Self {
        self.cache_salt = salt.cache_salt;
        self
    }

    /// The parameters of a chat request.
    ///
    /// # Errors
    /// When it asks for what this engine does not do.
    pub fn of_chat(request: &ChatRequest) -> Result<Self, Refusal> {
        if request.messages.is_empty() {
            return Err(Refusal::parameter("messages", "There must be at least one message."));
        }
        let has = |find: fn(&Content) -> bool| {
            request.messages.iter().any(|message| message.content.as_ref().is_some_and(find))
        };
        if has(Content::has_image) || has(Content::has_audio) {
            let message = "This model reads text only: no images and no sounds.";
            return Err(Refusal::new(Code::UnsupportedParameter, message).at("messages"));
        }
        let wanted = request.logprobs.unwrap_or(false);
        let top = request.top_logprobs;
        if top.is_some_and(|top| top > MAX_TOP_LOGPROBS) {
            let message = format!("top_logprobs must be from 0 to {MAX_TOP_LOGPROBS}.");
            return Err(Refusal::parameter("top_logprobs", message));
        }
        if top.is_some_and(|top| top > 0) && !wanted {
            return Err(Refusal::parameter("top_logprobs", "top_logprobs needs logprobs: true."));
        }
        Ok(Self {
            max_tokens: request.output_limit(),
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            min_p: request.min_p,
            frequency_penalty: request.frequency_penalty,
            presence_penalty: request.presence_penalty,
            repetition_penalty: request.repetition_penalty,
            logit_bias: request.logit_bias.clone(),
            seed: request.seed,
            stops: stop_texts(request.stop.as_ref()),
            n: request.n,
            logprobs: wanted.then_some(top.unwrap_or(0)),
            cache_salt: String::new(),
        })
    }

    /// The parameters of a legacy completion.
    ///
    /// # Errors
    /// When it asks for more likeliest tokens than there are.
    pub fn of_completion(request: &CompletionRequest) -> Result<Self, Refusal> {
        if request.logprobs.is_some_and(|count| count > MAX_COMPLETION_LOGPROBS) {
            let message = format!("logprobs must be from 0 to {MAX_COMPLETION_LOGPROBS}.");
            return Err(Refusal::parameter("logprobs", message));
        }
        Ok(Self {
            max_tokens: Some(request.max_tokens.unwrap_or(CompletionRequest::DEFAULT_MAX_TOKENS)),
            temperature: request.temperature,
            top_p: request.top_p,
            top_k: request.top_k,
            min_p: request.min_p,
            frequency_penalty: request.frequency_penalty,
            presence_penalty: request.presence_penalty,
            repetition_penalty: request.repetition_penalty,
            logit_bias: request.logit_bias.clone(),
            seed: request.seed,
            stops: stop_texts(request.stop.as_ref()),
            n: request.n,
            logprobs: request.logprobs,
            cache_salt: String::new(),
        })
    }

    /// Answers to each prompt.
    pub fn choices(&self) -> u64 {
        self.n.unwrap_or(1)
    }

    fn check(&self) -> Result<(Sampling, Penalties), Refusal> {
        let within = |name: &'static str, value: Option<f64>, default: f64, least: f64, most: f64| {
            let value = value.unwrap_or(default);
            let message = || format!("{name} must be from {least} to {most}.");
            if (least..=most).contains(&value) { Ok(value) } else { Err(Refusal::parameter(name, message())) }
        };
        let temperature = within("temperature", self.temperature, 1.0, 0.0, 2.0)?;
        let top_p = within("top_p", self.top_p, 1.0, 0.0, 1.0)?;
        let min_p = within("min_p", self.min_p, 0.0, 0.0, 1.0)?;
        let frequency = within("frequency_penalty", self.frequency_penalty, 0.0, -2.0, 2.0)?;
        let presence = within("presence_penalty", self.presence_penalty, 0.0, -2.0, 2.0)?;
        let repetition = within("repetition_penalty", self.repetition_penalty, 1.0, 0.0, 2.0)?;
        if repetition <= 0.0 {
            return Err(Refusal::parameter("repetition_penalty", "repetition_penalty must be over 0."));
        }
        if !(1..=MAX_CHOICES).contains(&self.choices()) {
            return Err(Refusal::parameter("n", format!("n must be from 1 to {MAX_CHOICES}.")));
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
        Ok((Sampling { temperature, top_p, top_k, min_p }, Penalties { frequency, presence, repetition }))
    }

    fn bias(&self, vocabulary: usize) -> Result<Bias, Refusal> {
        let Some(bias) = &self.logit_bias else { return Ok(Bias::default()) };
        if bias.len() > MAX_BIASES {
            let message = format!("logit_bias takes up to {MAX_BIASES} tokens.");
            return Err(Refusal::parameter("logit_bias", message));
        }
        Bias::read(bias, vocabulary).map_err(|message| Refusal::parameter("logit_bias", message))
    }
}

fn stop_texts(stop: Option<&Stop>) -> Vec<String> {
    stop.map(|stop| stop.texts().to_vec()).unwrap_or_default()
}

/// What a request asks the model.
pub struct Task {
    /// The prompts.
    pub prompts: Vec<Prompt>,
    /// What each answer is held to.
    pub constraint: Option<Constraint>,
    /// Names of control tokens that are part of the text.
    pub marks: Vec<&'static str>,
}

/// A generation that a slot has taken or will take.
pub struct Admitted {
    /// What happens in it.
    pub events: mpsc::Receiver<Event>,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
}

/// Checks everything, makes the prompts and hands the generation to the slots. `field` is where a request has its
/// prompt.
///
/// # Errors
/// When a parameter is wrong, the prompt does not fit or all slots and places in the queue are taken.
pub async fn admit<F>(llm: &Llm, params: Params, field: &'static str, prepare: F) -> Result<Admitted, Refusal>
where
    F: FnOnce() -> Result<Task, Refusal> + Send + 'static,
{
    let (sampling, penalties) = params.check()?;
    let bias = params.bias(llm.counter.tokenizer().vocabulary_size())?;
    let Task { prompts, constraint, marks } = in_background(prepare).await??;
    if prompts.is_empty()
        || prompts.len() > MAX_PROMPTS
        || prompts.iter().any(|prompt| prompt.tokens.is_empty())
    {
        return Err(Refusal::parameter(
            field,
            format!("There must be 1 to {MAX_PROMPTS} prompts, none of them empty."),
        ));
    }
    let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
    let wanted = params.max_tokens.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX));
    if longest.saturating_add(wanted.unwrap_or(1)) > llm.context {
        return Err(Refusal::context(field, llm.context, longest, params.max_tokens));
    }
    let prompt_tokens = prompts.iter().map(|prompt| prompt.tokens.len() as u64).sum();
    let control = llm.counter.tokenizer().control_tokens();
    let shown = control.filter(|(_, name)| marks.contains(name)).map(|(id, _)| id).collect();
    let (out, events) = mpsc::channel(EVENTS);
    llm.pool.submit(Generation {
        prompts,
        choices: params.choices(),
        max_tokens: wanted.unwrap_or(usize::MAX),
        sampling,
        penalties,
        bias,
        seed: params.seed.map(i64::cast_unsigned),
        logprobs: params.logprobs.map(|count| usize::try_from(count).unwrap_or(usize::MAX)),
        stops: params.stops,
        constraint,
        shown,
        cache_salt: params.cache_salt.into(),
        out,
    })?;
    Ok(Admitted { events, prompt_tokens })
}
