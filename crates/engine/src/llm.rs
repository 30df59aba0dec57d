//! Chat models of the llama family: loading, and the loop that makes tokens.
//!
//! All slots share the weights (a clone of candle's model shares its tensors); each generation has a cache of keys
//! and values of its own, which goes with it.

use std::fs::File;
use std::io::BufReader;
use std::time::Duration;

use anyhow::Context as _;
use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::{MAX_SEQ_LEN, ModelWeights};
use cxmpute_runtime::{CancellationToken, Clock, random};
use cxmpute_tokens::TokenCounter;
use cxmpute_tokens::gguf::Header;
use cxmpute_wire::Code;
use cxmpute_wire::openai::FinishReason;
use tokio::sync::mpsc;

use crate::cli::{Cli, NamedPath};
use crate::digest;
use crate::sample::{Sampler, Sampling};
use crate::slots::Pool;
use crate::text::TextAssembly;

/// Prompt tokens per step: between two steps a generation notices that its caller has gone.
const PREFILL_STEP: usize = 128;

/// A loaded chat model with its slots.
pub struct Llm {
    /// The name that requests ask for.
    pub name: String,
    /// SHA-256 of the model file.
    pub digest: String,
    /// Most tokens of prompt and answer together.
    pub context: usize,
    /// Tokenizer and chat template.
    pub counter: TokenCounter,
    /// Where generations run.
    pub pool: Pool<Generation>,
}

/// One request: prompts that are answered one after the other in one slot.
pub struct Generation {
    /// The prompts in tokens, each shorter than the context.
    pub prompts: Vec<Vec<u32>>,
    /// Most tokens of each answer.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Where chance begins; absent: somewhere else each time.
    pub seed: Option<u64>,
    /// Texts before which an answer ends.
    pub stops: Vec<String>,
    /// Where the events go; when the other end is dropped, the generation ends.
    pub out: mpsc::Sender<Event>,
}

/// What happens in a generation, in order.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// A slot begins.
    Started,
    /// More text of one answer.
    Text {
        /// Which prompt's answer.
        index: u64,
        /// Never empty.
        text: String,
    },
    /// One answer is complete.
    Finished {
        /// Which prompt's answer.
        index: u64,
        /// Why it ended.
        reason: FinishReason,
    },
    /// All answers are complete.
    Done {
        /// Tokens of all answers, without those that end them.
        completion_tokens: u64,
    },
    /// The generation failed; nothing follows.
    Failed {
        /// Machine code.
        code: Code,
        /// One sentence.
        message: String,
    },
}

impl Llm {
    /// Loads a model and starts its slots.
    ///
    /// # Errors
    /// When the file is no model of the llama family or does not fit the machine.
    pub fn load(
        model: &NamedPath,
        cli: &Cli,
        threads: usize,
        clock: &Clock,
        stop: &CancellationToken,
    ) -> anyhow::Result<Self> {
        let path = &model.path;
        let shown = path.display();
        let header = Header::read(path).with_context(|| format!("{shown} is not a usable model file"))?;
        check_dimensions(&header).with_context(|| format!("{shown} cannot be served"))?;
        let counter =
            TokenCounter::from_header(&header).with_context(|| format!("{shown} cannot be served"))?;
        let digest = digest::of_file(path).with_context(|| format!("reading {shown}"))?;
        let made_for = header.context_length().and_then(|tokens| usize::try_from(tokens).ok());
        let wanted = cli.context.and_then(|tokens| usize::try_from(tokens).ok());
        let context = MAX_SEQ_LEN.min(made_for.unwrap_or(MAX_SEQ_LEN)).min(wanted.unwrap_or(MAX_SEQ_LEN));

        let mut file = BufReader::new(File::open(path).with_context(|| format!("opening {shown}"))?);
        let content = gguf_file::Content::read(&mut file).with_context(|| format!("reading {shown}"))?;
        let weights = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)
            .with_context(|| format!("loading the weights of {shown}"))?;
        let slot = Slot {
            weights,
            counter: counter.clone(),
            context,
            step: cli.pace.map(|pace| Duration::from_secs_f64(1.0 / pace)),
            clock: clock.clone(),
            stop: stop.clone(),
        };
        let pool =
            Pool::start("slot", cli.slots.into(), cli.queue.into(), Generation::is_abandoned, move || {
                let slot = slot.clone();
                let threads = computing_threads(threads);
                move |generation: Generation| {
                    let _keep = &threads;
                    slot.run(&generation);
                }
            })?;
        Ok(Self { name: model.name.clone(), digest, context, counter, pool })
    }
}

impl Generation {
    fn is_abandoned(&self) -> bool {
        self.out.is_closed()
    }
}

/// Makes the calling thread one of a pool of its own for candle's parallel loops, so that a slot neither waits for
/// another one nor hands small work around.
pub fn computing_threads(count: usize) -> Option<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new().num_threads(count).use_current_thread().build().ok()
}

/// Refuses what candle would not refuse politely.
fn check_dimensions(header: &Header) -> anyhow::Result<()> {
    let architecture = header.architecture();
    anyhow::ensure!(
        architecture == "llama",
        "architecture `{architecture}` is not supported; supported: llama"
    );
    let dimension = |name: &str| {
        let value = header.dimension(name).with_context(|| format!("`llama.{name}` is missing"))?;
        anyhow::ensure!((1..=1 << 20).contains(&value), "`llama.{name}` is {value}");
        Ok(value)
    };
    let heads = dimension("attention.head_count")?;
    let kv_heads = dimension("attention.head_count_kv")?;
    let width = dimension("embedding_length")?;
    dimension("block_count")?;
    let rotated = dimension("rope.dimension_count")?;
    let consistent =
        width % heads == 0 && heads % kv_heads == 0 && rotated == width / heads && rotated % 2 == 0;
    anyhow::ensure!(
        consistent,
        "{heads} heads, {kv_heads} key heads, width {width} and {rotated} rotated dimensions do not fit together"
    );
    Ok(())
}

/// What one worker thread needs.
#[derive(Clone)]
struct Slot {
    weights: ModelWeights,
    counter: TokenCounter,
    context: usize,
    /// Least time between two tokens.
    step: Option<Duration>,
    clock: Clock,
    stop: CancellationToken,
}

/// Why a generation ends before it is complete.
enum Broken {
    /// Nobody listens any more.
    Abandoned,
    /// The program stops.
    Stopping,
    /// The computation failed.
    Failed(candle_core::Error),
}

impl From<candle_core::Error> for Broken {
    fn from(error: candle_core::Error) -> Self {
        Self::Failed(error)
    }
}

impl Slot {
    fn run(&self, generation: &Generation) {
        let failure = match self.answer_all(generation) {
            Ok(()) | Err(Broken::Abandoned) => return,
            Err(Broken::Stopping) => {
                Event::Failed { code: Code::Draining, message: "the engine is stopping".into() }
            }
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
        let mut sampler = Sampler::new(generation.sampling, seed);
        let mut pace = self.step.map(|step| Pace { step, due: self.clock.mono() });
        let mut completion_tokens = 0;
        for (index, prompt) in (0..).zip(&generation.prompts) {
            let (tokens, reason) = self.answer(generation, index, prompt, &mut sampler, &mut pace)?;
            completion_tokens += tokens;
            generation.send(Event::Finished { index, reason })?;
        }
        generation.send(Event::Done { completion_tokens })
    }

    fn answer(
        &self,
        generation: &Generation,
        index: u64,
        prompt: &[u32],
        sampler: &mut Sampler,
        pace: &mut Option<Pace>,
    ) -> Result<(u64, FinishReason), Broken> {
        let tokenizer = self.counter.tokenizer();
        let mut text = TextAssembly::new(generation.stops.clone(), tokenizer.leading_space());
        let room = self.context.saturating_sub(prompt.len());
        let limit = generation.max_tokens.min(room);
        let mut run = Run { weights: self.weights.clone(), position: 0 };
        let mut scores = Vec::new();
        for step in prompt.chunks(PREFILL_STEP) {
            self.check(generation)?;
            scores = run.feed(step)?;
        }
        let mut produced = 0;
        let reason = loop {
            if produced == limit {
                break FinishReason::Length;
            }
            let Some(token) = sampler.choose(&scores).filter(|token| !tokenizer.is_end(*token)) else {
                break FinishReason::Stop;
            };
            produced += 1;
            if let Some(pace) = pace {
                pace.wait(&self.clock);
            }
            self.check(generation)?;
            let piece = text.push(tokenizer.token_bytes(token));
            generation.send_text(index, piece.text)?;
            if piece.stopped {
                return Ok((produced as u64, FinishReason::Stop));
            }
            if produced < limit {
                scores = run.feed(&[token])?;
            }
        };
        let rest = text.finish();
        generation.send_text(index, rest.text)?;
        Ok((produced as u64, if rest.stopped { FinishReason::Stop } else { reason }))
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

impl Generation {
    fn send(&self, event: Event) -> Result<(), Broken> {
        self.out.blocking_send(event).map_err(|_| Broken::Abandoned)
    }

    fn send_text(&self, index: u64, text: String) -> Result<(), Broken> {
        if text.is_empty() { Ok(()) } else { self.send(Event::Text { index, text }) }
    }
}

/// The model and how far it has read.
struct Run {
    weights: ModelWeights,
    position: usize,
}

impl Run {
    /// Reads tokens and gives the scores of the next one.
    fn feed(&mut self, tokens: &[u32]) -> candle_core::Result<Vec<f32>> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let scores = self.weights.forward(&input, self.position)?;
        self.position += tokens.len();
        scores.flatten_all()?.to_vec1()
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
