//! Before any node hears of a request: does it fit the model, and can the account pay for it? The first answer uses
//! an upper bound that costs nothing; only where that does not fit is the prompt counted exactly (DESIGN D5).

use std::sync::Arc;

use cxmpute_market::price::{PriceRow, Units, cost};
use cxmpute_wire::{Code, MicroCredits, Tokens};

use super::job::Job;
use crate::app::App;
use crate::auth::Caller;
use crate::error::{ApiError, ApiResult};
use crate::meter::{Admission, AdmitError, Hold};

/// Output tokens per choice that are held at a time when the client gave no limit (MR14).
pub(super) const SLICE: u64 = 1024;

/// An admitted request.
#[derive(Debug)]
pub(super) struct Admitted {
    pub hold: Hold,
    /// Output tokens per choice that the hold covers.
    pub covered: u64,
    /// The prompt's exact count, where it was needed.
    pub prompt: Option<Tokens>,
}

/// Checks the bounds of the request, fixes its limit and takes the hold.
///
/// # Errors
/// The request does not fit the model, or the account cannot pay for it.
pub(super) async fn admit(app: &App, caller: &Caller, job: Job) -> ApiResult<(Arc<Job>, Admitted)> {
    let mut terms = Terms::of(job).await?;
    caller.reserve_tokens(terms.prompt.estimate(&terms.job))?;
    loop {
        let amount = terms.amount()?;
        match app.meter.admit(admission(caller, &terms.job, amount, app)).await {
            Ok(hold) => {
                let (job, covered, prompt) = terms.agreed();
                return Ok((job, Admitted { hold, covered, prompt }));
            }
            Err(refused) => terms = terms.counted_after(refused).await?,
        }
    }
}

/// Moves a hold over to the next model of a request before any node of it hears of the request: the new price is
/// pinned and what is bound covers it, durably. Gives the job, the output tokens per choice that the hold covers, and
/// the prompt's count where it was needed.
///
/// # Errors
/// The request does not fit this model, or the account cannot pay for it; the hold stays with the model before.
pub(super) async fn move_over(job: Job, hold: &mut Hold) -> ApiResult<(Arc<Job>, u64, Option<Tokens>)> {
    let mut terms = Terms::of(job).await?;
    loop {
        let (amount, model) = (terms.amount()?, terms.job.model.clone());
        match hold.move_to(&model.id, &model.service, &model.price, amount).await {
            Ok(()) => return Ok(terms.agreed()),
            Err(refused) => terms = terms.counted_after(refused).await?,
        }
    }
}

/// A request and what its hold must cover.
struct Terms {
    job: Arc<Job>,
    prompt: Prompt,
    /// Output tokens per choice.
    covered: u64,
}

struct Prompt {
    tokens: u64,
    exact: bool,
}

impl Terms {
    async fn of(mut job: Job) -> ApiResult<Self> {
        let mut prompt = Prompt { tokens: job.prompt_bound(), exact: false };
        let context = job.model.context_length.0;
        if context > 0 && prompt.tokens.saturating_add(job.limit) > context {
            let (back, exact) = count_exactly(job).await?;
            job = back;
            prompt = Prompt { tokens: exact.0, exact: true };
            fit_context(&mut job, exact.0, context)?;
        }
        let covered = if job.explicit_limit { job.limit } else { job.limit.min(SLICE) };
        Ok(Self { job: Arc::new(job), prompt, covered })
    }

    fn amount(&self) -> ApiResult<MicroCredits> {
        price_of(&self.job.model.price, &self.job.opening_units(self.prompt.tokens, self.covered))
    }

    /// After a refusal for lack of money over a bound: the same with the exact count, which may cost less.
    async fn counted_after(self, refused: AdmitError) -> ApiResult<Self> {
        if !matches!(refused, AdmitError::Insufficient { .. } | AdmitError::Budget { .. }) {
            return Err(refusal(refused));
        }
        if self.prompt.exact || self.job.counter.is_none() {
            return Err(payment_required(&self.job, self.prompt.tokens, refused));
        }
        let owned = Arc::try_unwrap(self.job)
            .map_err(|_| ApiError::internal(anyhow::anyhow!("the job is shared")))?;
        let (job, exact) = count_exactly(owned).await?;
        Ok(Self {
            job: Arc::new(job),
            prompt: Prompt { tokens: exact.0, exact: true },
            covered: self.covered,
        })
    }

    fn agreed(self) -> (Arc<Job>, u64, Option<Tokens>) {
        (self.job, self.covered, self.prompt.exact.then_some(Tokens(self.prompt.tokens)))
    }
}

impl Prompt {
    /// What limits of tokens reserve for the request, put right when it ends: a token has about four bytes, and an
    /// answer without a limit is expected to be as long as one slice.
    fn estimate(&self, job: &Job) -> u64 {
        const BYTES_PER_TOKEN: u64 = 4;
        let prompt = if self.exact { self.tokens } else { self.tokens / BYTES_PER_TOKEN };
        let output = if job.explicit_limit { job.limit } else { job.limit.min(SLICE) };
        prompt.saturating_add(output.saturating_mul(job.choices as u64))
    }
}

/// Extends the hold by `more` output tokens per choice; false when the account cannot pay for them.
pub(super) async fn extend(job: &Job, hold: &Hold, more: u64) -> bool {
    match price_of(&job.model.price, &job.units_of(0, more)) {
        Ok(amount) => hold.extend(amount).await.is_ok(),
        Err(_) => false,
    }
}

/// The exact count, off the async threads.
async fn count_exactly(job: Job) -> ApiResult<(Job, Tokens)> {
    let counted = tokio::task::spawn_blocking(move || {
        let count = job.count_prompt();
        (job, count)
    });
    let (job, count) = counted.await.map_err(ApiError::internal)?;
    match count {
        Ok(count) => Ok((job, count)),
        Err(error) if error.is_request_fault() => {
            let param = if matches!(job.ask, super::job::Ask::Chat(_)) { "messages" } else { "prompt" };
            Err(ApiError::invalid_parameter(
                param,
                "The model's chat template does not take this conversation.",
            ))
        }
        Err(error) => Err(ApiError::internal(error)),
    }
}

/// Prompt and output share the context. A limit that was asked for must fit; one of ours shrinks.
fn fit_context(job: &mut Job, prompt: u64, context: u64) -> ApiResult<()> {
    let room = context.saturating_sub(prompt);
    let wanted = if job.explicit_limit { job.limit } else { 1 };
    if room < wanted {
        return Err(ApiError::new(
            Code::ContextLengthExceeded,
            format!(
                "The prompt has {prompt} tokens and the answer may have {wanted}, but the model's context is {context}."
            ),
        )
        .param(if matches!(job.ask, super::job::Ask::Chat(_)) { "messages" } else { "prompt" }));
    }
    job.limit = job.limit.min(room);
    Ok(())
}

/// A price as money. Only absurd counts do not fit.
pub(super) fn price_of(price: &PriceRow, units: &Units) -> ApiResult<MicroCredits> {
    cost(price, units).map_err(ApiError::internal)
}

fn admission(caller: &Caller, job: &Job, amount: MicroCredits, app: &App) -> Admission {
    Admission {
        request_id: job.request_id.clone(),
        user_id: caller.user_id.clone(),
        key_id: caller.key_id.clone(),
        route: job.route().to_owned(),
        model: job.model.id.clone(),
        service: job.model.service.clone(),
        price: job.model.price.clone(),
        amount,
        streamed: job.streamed(),
        title: job.title.clone(),
        referer: job.referer.clone(),
        created_at: app.clock.now(),
    }
}

/// 402 after an exact count: what it needs, what there is, and how long an answer that would buy.
fn payment_required(job: &Job, prompt: u64, refused: AdmitError) -> ApiError {
    let available = match &refused {
        AdmitError::Insufficient { available, .. } | AdmitError::Budget { available, .. } => *available,
        _ => MicroCredits::ZERO,
    };
    let affordable = affordable_tokens(job, prompt, available);
    refusal(refused).with("affordable_max_tokens", affordable)
}

/// The longest output per choice that `available` pays for, by bisection over the true price.
fn affordable_tokens(job: &Job, prompt: u64, available: MicroCredits) -> u64 {
    let fits = |output: u64| {
        cost(&job.model.price, &job.opening_units(prompt, output)).is_ok_and(|price| price <= available)
    };
    if !fits(1) {
        return 0;
    }
    let (mut good, mut bad) = (1, job.limit.saturating_add(1));
    while good + 1 < bad {
        let middle = good + (bad - good) / 2;
        if fits(middle) { good = middle } else { bad = middle }
    }
    good
}

/// What other refusals of the meter mean.
pub(super) fn refusal(error: AdmitError) -> ApiError {
    match error {
        AdmitError::Insufficient { required, available } => {
            ApiError::insufficient_credits(required, available)
        }
        AdmitError::Budget { required, available, cap } => {
            ApiError::budget_exceeded(required, available, cap)
        }
        AdmitError::Suspended => ApiError::account_suspended(),
        AdmitError::KeyRevoked => ApiError::invalid_api_key(),
        AdmitError::StoreUnavailable(cause) => ApiError::store_unavailable(cause),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;
    use std::time::Duration;

    use cxmpute_market::catalogue::Catalogue;
    use cxmpute_tokens::TokenCounter;
    use cxmpute_wire::RequestId;

    use super::*;
    use crate::relay::job::{Ask, Pictures};

    pub(in crate::relay) fn job(limit: u64, explicit_limit: bool, text: &str) -> Job {
        let catalogue =
            Catalogue::parse(include_str!("../../../../catalogue/models.toml"), "models.toml").unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/tiny-model/cxm-tiny-q8.gguf");
        let body = serde_json::json!({"model": "tiny", "messages": [{"role": "user", "content": text}]});
        Job {
            request_id: RequestId::from_tail("1"),
            watch: Default::default(),
            arrived: Duration::ZERO,
            created: 0,
            ask: Ask::Chat(Box::new(serde_json::from_value(body).unwrap())),
            model: catalogue.resolve("cxm-tiny").unwrap().clone(),
            model_name: "tiny".to_owned(),
            pictures: Pictures::default(),
            form: crate::relay::Form::OpenAi,
            rules: crate::relay::Rules::default(),
            force_usage: false,
            timeout: None,
            #[cfg(feature = "sabotage")]
            extra: Vec::new(),
            choices: 1,
            limit,
            explicit_limit,
            wishes: Arc::default(),
            alternatives: Vec::new(),
            counter: Some(TokenCounter::from_gguf(&model).unwrap()),
            title: None,
            referer: None,
        }
    }

    #[test]
    fn the_bound_is_never_below_the_exact_count() {
        for text in
            ["", "Hello!", "a b c d e f g", "\u{1f600}\u{4e16}\u{754c}", "\\\"\n\t", &"x ".repeat(2000)]
        {
            let job = job(16, true, text);
            assert!(job.prompt_bound() >= job.count_prompt().unwrap().0, "{text}");
        }
    }

    #[test]
    fn what_is_affordable_is_affordable_and_one_more_is_not() {
        let job = job(512, true, "Hello!");
        let price = |output| cost(&job.model.price, &job.units_of(40, output)).unwrap();
        for available in [0, 1, 100, 219, 220, 221, 240, 1_000, 10_439, 10_440, 1_000_000] {
            let affordable = affordable_tokens(&job, 40, MicroCredits(available));
            assert!(affordable <= job.limit);
            if affordable > 0 {
                assert!(price(affordable).0 <= available, "{available}: {affordable}");
            }
            if affordable < job.limit {
                assert!(price(affordable + 1).0 > available, "{available}: {affordable}");
            }
        }
    }

    #[test]
    fn an_asked_for_limit_must_fit_and_ours_shrinks() {
        let mut ours = job(512, false, "x");
        fit_context(&mut ours, 1000, 1024).unwrap();
        assert_eq!(ours.limit, 24);
        let error = fit_context(&mut ours, 1024, 1024).unwrap_err();
        assert_eq!((error.code, error.param.as_deref()), (Code::ContextLengthExceeded, Some("messages")));
        let mut asked = job(100, true, "x");
        assert!(fit_context(&mut asked, 925, 1024).is_err());
        fit_context(&mut asked, 924, 1024).unwrap();
        assert_eq!(asked.limit, 100);
    }
}
