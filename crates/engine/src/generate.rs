//! The loop that makes tokens: one request, answered in one slot.

use std::sync::Arc;
use std::time::Duration;

use cxmpute_runtime::{CancellationToken, Clock, random};
use cxmpute_tokens::TokenCounter;
use cxmpute_wire::Code;
use cxmpute_wire::openai::FinishReason;
use tokio::sync::mpsc;

use crate::constrain::Constraint;
use crate::logprobs::{Scored, score_token};
use crate::penalties::{Bias, History, Penalties};
use crate::run::Run;
use crate::sample::{Sampler, Sampling, derived_seed};
use crate::text::{Span, TextAssembly};

/// Prompt tokens per step: between two steps a generation notices that its caller has gone.
const PREFILL_STEP: usize = 128;

/// A prompt as the model reads it.
pub struct Prompt {
    /// Its tokens; fewer than the context.
    pub tokens: Vec<u32>,
    /// The text to send before each of its answers.
    pub echo: Option<String>,
}

/// One request: prompts that are answered one after the other in one slot.
pub struct Generation {
    /// What is answered.
    pub prompts: Vec<Prompt>,
    /// Answers to each prompt.
    pub choices: u64,
    /// Most tokens of each answer.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// What tokens lose for having occurred.
    pub penalties: Penalties,
    /// What tokens gain.
    pub bias: Bias,
    /// Where chance begins; absent: somewhere else each time.
    pub seed: Option<u64>,
    /// Texts before which an answer ends.
    pub stops: Vec<String>,
    /// Send the probability of each token, with this many of the likeliest ones.
    pub logprobs: Option<usize>,
    /// What each answer is held to.
    pub constraint: Option<Constraint>,
    /// Control tokens whose names are part of the text: the marks around calls of tools.
    pub shown: Vec<u32>,
    /// For whom it is: what is read for one is not reused for another.
    pub cache_salt: Arc<str>,
    /// Where the events go; when the other end is dropped, the generation ends.
    pub out: mpsc::Sender<Event>,
}

/// What happens in a generation, in order.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// A slot begins.
    Started,
    /// More text of one answer.
    Text {
        /// Which answer: those of the first prompt come first.
        index: u64,
        /// Never empty; with its tokens if probabilities are wanted.
        span: Span,
    },
    /// One answer is complete.
    Finished {
        /// Which answer.
        index: u64,
        /// Why it ended.
        reason: FinishReason,
    },
    /// All answers are complete.
    Done {
        /// Tokens of all answers, without those that end them.
        completion_tokens: u64,
        /// Tokens of the prompts that were known from earlier readings.
        cached_tokens: u64,
    },
    /// The generation failed; nothing follows.
    Failed {
        /// Machine code.
        code: Code,
        /// One sentence.
        message: String,
    },
}

impl Generation {
    /// Whether nobody listens any more.
    pub fn is_abandoned(&self) -> bool {
        self.out.is_closed()
    }

    fn send(&self, event: Event) -> Result<(), Broken> {
        self.out.blocking_send(event).map_err(|_| Broken::Abandoned)
    }

    fn send_text(&self, index: u64, span: Span) -> Result<(), Broken> {
        if span.text.is_empty() { Ok(()) } else { self.send(Event::Text { index, span }) }
    }
}

/// Why a generation ends before it is complete.
pub enum Broken {
    /// Nobody listens any more.
    Abandoned,
    /// The program stops.
    Stopping,
    /// The computation failed.
    Failed(candle_core::Error),
    /// The answer can be held to its shape no longer.
    Unfollowable(String),
}

impl From<candle_core::Error> for Broken {
    fn from(error: candle_core::Error) -> Self {
        Self::Failed(error)
    }
}

/// What one worker thread needs.
#[derive(Clone)]
pub struct Slot {
    /// A model that has read nothing.
    pub run: Run,
    /// Tokenizer.
    pub counter: TokenCounter,
    /// Most tokens of prompt and answer together.
    pub context: usize,
    /// Least time between two tokens.
    pub step: Option<Duration>,
    /// The time.
    pub clock: Clock,
    /// The program stops.
    pub stop: CancellationToken,
}

/// A model that has read a prompt.
#[derive(Clone)]
struct Read {
    run: Run,
    /// Scores of the first token of an answer.
    scores: Vec<f32>,
    /// The prompt as text, if it is to be sent.
    echo: Span,
    /// Tokens of the prompt that did not have to be read.
    cached: usize,
}

impl Slot {
    /// Answers a request.
    pub fn answer_request(&self, generation: &Generation) {
        let failure = match self.answer_all(generation) {
            Ok(()) | Err(Broken::Abandoned) => return,
            Err(Broken::Stopping) => {
                Event::Failed { code: Code::Draining, message: "the engine is stopping".into() }
            }
            Err(Broken::Unfollowable(reason)) => Event::Failed {
                code: Code::InvalidParameter,
                message: format!("The schema became too costly to follow: {reason}."),
            },
            Err(Broken::Failed(error)) => {
                tracing::error!(%error, "a generation failed");
                Event::Failed { code: Code::EngineFailed, message: "the computation failed".into() }
            }
        };
        let _ = generation.out.blocking_send(failure);
    }

    fn answer_all(&self, generation: &Generation) -> Result<(), Broken> {
        generation.send(Event::Started)?;
        let seed = generation.seed.unwrap_or_else(|| u64::from_le_bytes(random::bytes()));
        let mut pace = self.step.map(|step| Pace { step, due: self.clock.mono() });
        let (mut completion_tokens, mut cached_tokens) = (0, 0);
        let mut index = 0;
        for prompt in &generation.prompts {
            let read = self.read(generation, prompt)?;
            cached_tokens += read.cached as u64;
            for _ in 0..generation.choices {
                let sampler = Sampler::new(generation.sampling, derived_seed(seed, index));
                let history = History::new(generation.penalties, &prompt.tokens);
                let mut answer = Answer {
                    slot: self,
                    generation,
                    index,
                    sampler,
                    history,
                    constraint: generation.constraint.as_ref().map(Constraint::fresh),
                    limit: self.limit(generation, prompt),
                };
                let (tokens, reason) = answer.write(read.clone(), &mut pace)?;
                completion_tokens += tokens;
                generation.send(Event::Finished { index, reason })?;
                index += 1;
            }
        }
        generation.send(Event::Done { completion_tokens, cached_tokens })
    }

    fn limit(&self, generation: &Generation, prompt: &Prompt) -> usize {
        generation.max_tokens.min(self.context.saturating_sub(prompt.tokens.len()))
    }

    /// Reads a prompt once for all its answers.
    fn read(&self, generation: &Generation, prompt: &Prompt) -> Result<Read, Broken> {
        let mut scores = Vec::new();
        let (Some(count), Some(_)) = (generation.logprobs, &prompt.echo) else {
            let mut run = self.run.begin(&generation.cache_salt, &prompt.tokens);
            let cached = run.position();
            for step in prompt.tokens[cached..].chunks(PREFILL_STEP) {
                self.check(generation)?;
                scores = run.feed(step)?;
            }
            run.keep();
            return Ok(Read {
                run,
                scores,
                echo: Span::plain(prompt.echo.clone().unwrap_or_default()),
                cached,
            });
        };
        // The probability of each token of the prompt needs the scores at each place.
        let mut run = self.run.begin(&generation.cache_salt, &[]);
        let tokenizer = self.counter.tokenizer();
        let mut text = TextAssembly::new(Vec::new(), tokenizer.leading_space());
        let mut echo = Span::default();
        for token in &prompt.tokens {
            self.check(generation)?;
            let scored = if scores.is_empty() {
                Scored { bytes: Vec::new(), logprob: None, top: Vec::new() }
            } else {
                score_token(tokenizer, &scores, *token, count)
            };
            // The mark that begins every text is no part of it.
            let begins = scores.is_empty() && tokenizer.token_bytes(*token).is_empty();
            if !begins {
                echo.append(text.push(tokenizer.shown_bytes(*token), Some(scored)).span);
            }
            scores = run.feed(&[*token])?;
        }
        echo.append(text.finish().span);
        run.keep();
        Ok(Read { run, scores, echo, cached: 0 })
    }

    fn check(&self, generation: &Generation) -> Result<(), Broken> {
        if generation.out.is_closed() {
            Err(Broken::Abandoned)
        } else if self.stop.is_cancelled() {
            Err(Broken::Stopping)
        } else {
            Ok(())
        }
    }
}

/// One answer while it is written.
struct Answer<'a> {
    slot: &'a Slot,
    generation: &'a Generation,
    index: u64,
    sampler: Sampler,
    history: History,
    constraint: Option<Constraint>,
    /// Most tokens.
    limit: usize,
}

impl Answer<'_> {
    fn write(&mut self, read: Read, pace: &mut Option<Pace>) -> Result<(u64, FinishReason), Broken> {
        let (slot, generation, index) = (self.slot, self.generation, self.index);
        let tokenizer = slot.counter.tokenizer();
        let Read { mut run, mut scores, echo, .. } = read;
        let leading_space = tokenizer.leading_space() && echo.text.is_empty();
        let mut text = TextAssembly::new(generation.stops.clone(), leading_space);
        generation.send_text(index, echo)?;
        let mut produced = 0;
        let reason = loop {
            if produced == self.limit {
                break FinishReason::Length;
            }
            let Some(token) = self.choose(&scores)?.filter(|token| !tokenizer.is_end(*token)) else {
                break FinishReason::Stop;
            };
            produced += 1;
            self.history.push(token);
            let complete = self.accept(token)?;
            if let Some(pace) = pace {
                pace.wait(&slot.clock);
            }
            slot.check(generation)?;
            let scored = generation.logprobs.map(|count| score_token(tokenizer, &scores, token, count));
            let shown = generation.shown.contains(&token);
            let bytes = if shown { tokenizer.shown_bytes(token) } else { tokenizer.token_bytes(token) };
            let piece = text.push(bytes, scored);
            generation.send_text(index, piece.span)?;
            if piece.stopped {
                run.keep();
                return Ok((produced as u64, FinishReason::Stop));
            }
            if complete {
                break FinishReason::Stop;
            }
            if produced < self.limit {
                scores = run.feed(&[token])?;
            }
        };
        run.keep();
        let rest = text.finish();
        generation.send_text(index, rest.span)?;
        Ok((produced as u64, if rest.stopped { FinishReason::Stop } else { reason }))
    }

    /// The next token. The scores stay as the model gave them: probabilities are reported of those.
    fn choose(&mut self, scores: &[f32]) -> Result<Option<u32>, Broken> {
        let mut adjusted = scores.to_vec();
        self.history.adjust(&self.generation.bias, &mut adjusted);
        if let Some(constraint) = &mut self.constraint {
            constraint.restrict(scores, &mut adjusted).map_err(Broken::Unfollowable)?;
        }
        Ok(self.sampler.choose(&adjusted))
    }

    /// Notes the chosen token; `true` when the answer is complete with it.
    fn accept(&mut self, token: u32) -> Result<bool, Broken> {
        let Some(constraint) = &mut self.constraint else { return Ok(false) };
        constraint.accept(token).map_err(Broken::Unfollowable)
    }
}

/// Spreads tokens evenly over time.
struct Pace {
    step: Duration,
    due: Duration,
}

impl Pace {
    fn wait(&mut self, clock: &Clock) {
        let now = clock.mono();
        // After a wait for something else the pace goes on from now; it does not catch up in a burst.
        self.due = self.due.max(now.saturating_sub(self.step)) + self.step;
        std::thread::sleep(self.due.saturating_sub(now));
    }
}
