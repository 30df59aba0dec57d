//! Loading a chat model: its tokenizer, its weights and the slots that answer with it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::{CancellationToken, Clock};
use cxmpute_tokens::TokenCounter;
use cxmpute_tokens::gguf::Header;

use crate::cli::{Cli, NamedPath};
use crate::constrain::Grammars;
use crate::digest;
use crate::generate::{Generation, Slot};
use crate::model::Decoder;
use crate::model::shape::Shape;
use crate::run::Run;
use crate::slots::Pool;

/// Bytes that the keys and values of one answer may take when no context is asked for.
const DEFAULT_CACHE_BYTES: usize = 1 << 30;
/// A context that is never lowered for them.
const LEAST_DEFAULT_CONTEXT: usize = 2048;

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
    /// Makes constraints for answers.
    pub grammars: Arc<Grammars>,
    /// Where generations run.
    pub pool: Pool<Generation>,
}

impl Llm {
    /// Loads a model and starts its slots.
    ///
    /// # Errors
    /// When the file is no model of a supported architecture or does not fit the machine.
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
        let unusable = |error: anyhow::Error| {
            let message = format!("{shown} cannot be served: {error:#}");
            ExitError::caused(exit::CONFIG, message, error)
        };
        let shape = Shape::read(&header).map_err(unusable)?;
        let counter = TokenCounter::from_header(&header).map_err(|error| unusable(error.into()))?;
        let context = context_of(&shape, cli);
        let decoder = Decoder::load(path, &header, shape, context).map_err(unusable)?;
        let digest = digest::of_file(path).with_context(|| format!("reading {shown}"))?;
        let kept = usize::try_from(cli.prefix_cache).unwrap_or(usize::MAX).saturating_mul(1 << 20);
        let slot = Slot {
            run: Run::new(decoder, kept),
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
                    slot.answer_request(&generation);
                }
            })?;
        let grammars = Arc::new(Grammars::new(counter.clone()));
        Ok(Self { name: model.name.clone(), digest, context, counter, grammars, pool })
    }
}

/// Makes the calling thread one of a pool of its own for candle's parallel loops, so that a slot neither waits for
/// another one nor hands small work around.
pub fn computing_threads(count: usize) -> Option<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new().num_threads(count).use_current_thread().build().ok()
}

/// Tokens of prompt and answer together: what was asked for or what fits a reasonable memory, never more than the
/// model was made for.
fn context_of(shape: &Shape, cli: &Cli) -> usize {
    let wanted = cli.context.and_then(|tokens| usize::try_from(tokens).ok());
    let fitting = DEFAULT_CACHE_BYTES / shape.layout().token_bytes().max(1);
    shape.context.min(wanted.unwrap_or(fitting.max(LEAST_DEFAULT_CONTEXT)))
}
