//! `cxmpute-provider engine …`: this program as an engine of the node, in a process of its own.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use cxmpute_egress::judge::Nearby;
use cxmpute_runtime::confine::{self, Terms};
use cxmpute_runtime::exit::ExitError;
use cxmpute_runtime::telemetry::LogConfig;
use cxmpute_runtime::{Clock, Tasks, lifecycle, telemetry};

use crate::config::NodeConfig;
use crate::output::{self, Output};
use crate::scrape::browser::Browser;
use crate::scrape::cage::{self, Inmate};
use crate::scrape::convert::{self, Converter};
use crate::scrape::quota::Quota;
use crate::scrape::server::{Engine as ScrapeEngine, Listener};
use crate::scrape::settings::ScrapeSection;
use crate::scrape::work::Scraper;

/// Time that running requests get at the end.
const GRACE: Duration = Duration::from_secs(20);

/// An engine that this program is.
#[derive(Debug, Subcommand)]
pub enum Engine {
    /// Fetches pages.
    Scrape {
        /// Where it listens.
        #[arg(long, value_name = "PATH")]
        socket: PathBuf,
        /// The section `[scrape]` of the node, as JSON.
        #[arg(long, value_name = "JSON")]
        settings: String,
        /// The file of the daily count.
        #[arg(long, value_name = "FILE")]
        count: PathBuf,
        /// The name of the service's model.
        #[arg(long, default_value = "scrape")]
        model: String,
        /// End when standard input does.
        #[arg(long)]
        while_stdin_open: bool,
    },
    /// Converts one page from standard input.
    Convert,
    /// Becomes a program that ends with its cage.
    Inmate {
        /// Whom it runs as when we are root.
        #[arg(long)]
        user: String,
        /// The program and its arguments.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Takes away what an engine server does not need, and becomes it.
    Confined {
        /// What is taken away and what is left, as JSON.
        #[arg(long, value_name = "JSON", required_unless_present = "check")]
        terms: Option<String>,
        /// Only say whether it can be done.
        #[arg(long)]
        check: bool,
        /// The program and its arguments.
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Runs a program in a network namespace with one door.
    Cage {
        /// The socket behind the door.
        #[arg(long, value_name = "PATH", required_unless_present = "check")]
        socket: Option<PathBuf>,
        /// Whom it runs as when we are root.
        #[arg(long, default_value = "nobody")]
        user: String,
        /// Only say whether it can be done.
        #[arg(long)]
        check: bool,
        /// The program and its arguments.
        #[arg(last = true)]
        command: Vec<String>,
    },
}

/// Runs the engine to its end.
pub(super) fn run(engine: Engine) -> Result<()> {
    telemetry::init(&LogConfig::default())?;
    // A namespace is made by a process of one thread, so before any runtime.
    if let Engine::Convert = &engine {
        return convert::serve();
    }
    if let Engine::Inmate { user, command } = &engine {
        return cage::become_inmate(user, command).map(|never| match never {});
    }
    if let Engine::Confined { terms, check, command } = &engine {
        if *check {
            let (without, reasons) = confine::check();
            reasons.iter().for_each(|reason| output::complain(reason));
            Output::Json.result(&without, "");
            return Ok(());
        }
        let terms: Terms =
            serde_json::from_str(terms.as_deref().unwrap_or_default()).context("--terms are none")?;
        return confine::become_program(&terms, command).map(|never| match never {});
    }
    if let Engine::Cage { .. } = &engine {
        cage::enter().map_err(|error| ExitError::new(cage::NO_CAGE, format!("{error:#}")))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let tasks = Tasks::new();
        match engine {
            Engine::Convert
            | Engine::Inmate { .. }
            | Engine::Confined { .. }
            | Engine::Cage { check: true, .. } => Ok(()),
            Engine::Cage { socket, user, command, .. } => {
                let socket = socket.context("--socket is missing")?;
                let code = cage::hold(Inmate { socket, user, command }, &tasks).await?;
                match code {
                    0 => Ok(()),
                    code => Err(ExitError::new(code, "the program in the cage failed").into()),
                }
            }
            Engine::Scrape { socket, settings, count, model, while_stdin_open } => {
                let settings: ScrapeSection =
                    serde_json::from_str(&settings).context("--settings is no section [scrape]")?;
                ensure!(settings.enabled, "the owner has not set scrape.enabled, so no page is fetched");
                lifecycle::signals(&tasks)?;
                if while_stdin_open {
                    stop_with_stdin(&tasks)?;
                }
                let clock = Clock::system();
                let program = NodeConfig::own_program();
                let browser = Browser::find(&settings, program.clone(), &tasks).await;
                let nearby = Nearby::default();
                let fetcher = settings.fetcher(clock.clone(), &nearby);
                let watch = tasks.spawn_owned("nearby", crate::scrape::settings::watch(nearby));
                let quota = Quota::open(count, settings.daily_urls, clock);
                let scraper = Arc::new(Scraper::new(fetcher, quota, Converter::new(program), browser));
                tracing::info!(render = scraper.renders(), socket = %socket.display(), "the scrape engine listens");
                Listener::bind(&socket)?.serve(ScrapeEngine { model, scraper }, &tasks).await;
                drop(watch);
                tasks.stop(GRACE).await;
                Ok(())
            }
        }
    })
}

/// Begins the stop when standard input ends. The thread is never joined; it dies with the process.
fn stop_with_stdin(tasks: &Tasks) -> std::io::Result<()> {
    let soft = tasks.soft();
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        let (mut block, mut input) = ([0; 256], std::io::stdin().lock());
        loop {
            match input.read(&mut block) {
                Ok(size) if size > 0 => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                _ => break,
            }
        }
        soft.cancel();
    })?;
    Ok(())
}
