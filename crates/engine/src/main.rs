//! `cxmpute-engine`: the built-in engine.
//!
//! [`cli`] → [`listen`] → [`server`] (routes) → [`chat`], [`completion`], [`embedding`] (one file per endpoint) →
//! [`slots`] (threads and queue) → [`generate`] (the loop of tokens) → [`mod@run`] (what was read before) → [`model`]
//! (the computation), or [`embed`]. Nothing here logs prompts or answers.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod chat;
mod cli;
mod completion;
mod constrain;
mod digest;
mod embed;
mod embedding;
mod generate;
mod grammar;
mod listen;
mod llm;
mod logprobs;
mod model;
mod params;
mod penalties;
mod plan;
mod refusal;
mod run;
mod sample;
mod server;
mod slots;
mod text;
mod tools;

use std::io::{Read as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser as _;
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::telemetry::{self, LogConfig};
use cxmpute_runtime::{Clock, Secret, Tasks, config, lifecycle};

use crate::cli::{Cli, Listen};
use crate::embed::Embedder;
use crate::listen::Listener;
use crate::llm::Llm;
use crate::server::{Engine, Models};

/// candle reads its thread count from here, once, when it first computes.
const CANDLE_THREADS: &str = "CANDLE_NUM_THREADS";
/// The same for the libraries below candle.
const RAYON_THREADS: &str = "RAYON_NUM_THREADS";
/// Time that running answers get to end with an error after the first signal.
const STOP_GRACE: Duration = Duration::from_millis(400);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { exit::USAGE } else { exit::OK });
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "cxmpute-engine: {error:#}");
            ExitCode::from(exit::code_of(error.as_ref()))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    check_files(&cli)?;
    let secret = read_secret(&cli)?;
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let threads = cli.thread_count(cores);
    if config::env_var(CANDLE_THREADS).is_none() {
        return Err(restart_with_threads(threads));
    }
    telemetry::init(&LogConfig::default())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(cli, secret, threads));
    // A computation that cannot be interrupted must not hold the exit up.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended
}

/// candle's own threads are shared by all slots and wait for work spinning; how many there are can only be said by
/// the environment, which a running program cannot change safely. So the program starts itself over, same process.
fn restart_with_threads(threads: usize) -> anyhow::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return anyhow::Error::new(error).context("finding the path of this program"),
    };
    let mut command = std::process::Command::new(program);
    command.args(std::env::args_os().skip(1)).env(CANDLE_THREADS, threads.to_string());
    if config::env_var(RAYON_THREADS).is_none() {
        command.env(RAYON_THREADS, threads.to_string());
    }
    anyhow::Error::new(command.exec()).context("starting over with a fixed number of threads")
}

async fn serve(cli: Cli, secret: Option<Secret<String>>, threads: usize) -> anyhow::Result<()> {
    let tasks = Tasks::new();
    lifecycle::signals(&tasks)?;
    if cli.while_stdin_open {
        stop_with_stdin(&tasks)?;
    }
    let clock = Clock::system();
    let listener = Listener::bind(&cli.listen).await?;
    tracing::info!(address = listener.describe(), pid = std::process::id(), "listening");
    let engine = Arc::new(Engine { clock: clock.clone(), secret, models: OnceLock::new() });
    tasks.spawn_critical("listener", listener.serve(server::router(engine.clone()), tasks.clone()));

    let soft = tasks.soft();
    let stop = soft.clone();
    let (done, loaded) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("loader".into()).spawn(move || {
        let loaded = load(&cli, threads, &clock, &stop).map(|models| {
            let _ = engine.models.set(models);
        });
        let _ = done.send(loaded);
    })?;
    let result = tokio::select! {
        () = soft.cancelled() => Ok(()),
        loaded = loaded => loaded.context("loading the model panicked").and_then(|loaded| loaded),
    };
    if result.is_ok() {
        soft.cancelled().await;
    }
    tasks.stop(STOP_GRACE).await;
    result
}

fn load(
    cli: &Cli,
    threads: usize,
    clock: &Clock,
    stop: &cxmpute_runtime::CancellationToken,
) -> anyhow::Result<Models> {
    let begun = clock.mono();
    let llm = cli.model.as_ref().map(|model| Llm::load(model, cli, threads, clock, stop)).transpose()?;
    let embedder =
        cli.embeddings.as_ref().map(|model| Embedder::load(model, cli, threads, stop)).transpose()?;
    let loading_ms = clock.mono().saturating_sub(begun).as_millis();
    if let Some(llm) = &llm {
        let (model, sha256) = (&llm.name, &llm.digest);
        tracing::info!(%model, %sha256, context = llm.context, slots = cli.slots, threads, loading_ms, "ready");
    }
    if let Some(embedder) = &embedder {
        let (model, sha256) = (&embedder.name, &embedder.digest);
        tracing::info!(%model, %sha256, dimensions = embedder.dimensions, threads, loading_ms, "ready");
    }
    Ok(Models { llm, embedder })
}

/// Missing model files are said before anything else happens.
fn check_files(cli: &Cli) -> Result<(), ExitError> {
    let missing = |path: &Path, flag: &str| {
        let message =
            format!("the model file {} does not exist; name an existing one with {flag}", path.display());
        ExitError::new(exit::MODEL_MISSING, message)
    };
    if let Some(model) = &cli.model
        && !model.path.is_file()
    {
        return Err(missing(&model.path, "--model NAME=FILE.gguf"));
    }
    if let Some(model) = &cli.embeddings {
        let absent = embed::FILES.iter().map(|file| model.path.join(file)).find(|path| !path.is_file());
        if let Some(absent) = absent {
            return Err(missing(&absent, "--embeddings NAME=DIRECTORY"));
        }
    }
    Ok(())
}

fn read_secret(cli: &Cli) -> Result<Option<Secret<String>>, ExitError> {
    let Some(path) = &cli.secret_file else {
        return match cli.listen {
            // Every program of this machine can reach a loopback port.
            Listen::Tcp(_) => {
                let message =
                    "listening on a port needs a secret: add --secret-file FILE, or use --listen unix:PATH";
                Err(ExitError::new(exit::CONFIG, message))
            }
            Listen::Unix(_) => Ok(None),
        };
    };
    let unusable = |why: &str| {
        let message = format!("--secret-file {}: {why}; it must hold at least 16 characters", path.display());
        ExitError::new(exit::CONFIG, message)
    };
    let secret = std::fs::read_to_string(path).map_err(|error| unusable(&error.to_string()))?;
    match secret.trim() {
        secret if secret.len() >= 16 => Ok(Some(Secret::new(secret.to_owned()))),
        _ => Err(unusable("too short")),
    }
}

/// Begins the stop when standard input ends. The thread is never joined; it dies with the process.
fn stop_with_stdin(tasks: &Tasks) -> std::io::Result<()> {
    let soft = tasks.soft();
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let mut block = [0; 256];
        let mut input = std::io::stdin().lock();
        loop {
            match input.read(&mut block) {
                Ok(size) if size > 0 => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        tracing::info!("standard input was closed; stopping");
        soft.cancel();
    })?;
    Ok(())
}
