//! The commands of `cxmpute`. They read the same configuration as the server and may run beside it.

mod account;
mod admin;
mod catalogue;
mod dev;
mod keys;
mod limits;
mod output;
mod plan;
mod serve;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use cxmpute_runtime::confine;
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::telemetry;
use toml::{Table, Value};

use crate::config::{Config, LogConfig};
pub use output::{Output, complain};

/// One AI cloud out of many machines: the gateway and its administration.
#[derive(Parser)]
#[command(name = "cxmpute", version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    shared: Shared,
    #[command(subcommand)]
    command: Command,
}

/// Flags that every command takes.
#[derive(Args)]
struct Shared {
    /// Configuration file (TOML); keys can also be set as CXMPUTE_SECTION_KEY.
    #[arg(long, global = true, value_name = "FILE", env = "CXMPUTE_CONFIG")]
    config: Option<PathBuf>,
    /// Directory of the database and the pepper (key store.data_dir).
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Database: sqlite:PATH or postgres://USER@HOST/NAME (key store.url).
    #[arg(long, global = true, value_name = "URL")]
    database: Option<String>,
    /// Print one JSON object (or one per line) instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway.
    Serve(ServeArgs),
    /// Run a gateway and one node on this machine, for trying things out.
    Dev(dev::DevArgs),
    /// Accounts, credits, ledger, enrolment.
    #[command(subcommand)]
    Admin(admin::AdminCommand),
    /// API keys and provider keys.
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Models, services and prices.
    #[command(subcommand)]
    Catalogue(catalogue::CatalogueCommand),
    /// Takes away what a program of others does not need, and becomes it.
    #[command(hide = true)]
    Confined {
        /// What is taken away and what is left, as JSON.
        #[arg(long, value_name = "JSON", required_unless_present = "check")]
        terms: Option<String>,
        /// Only say what this system cannot take away.
        #[arg(long)]
        check: bool,
        /// The program and its arguments.
        #[arg(last = true)]
        command: Vec<String>,
    },
}

/// Flags of `serve`.
#[derive(Args, Clone, Default)]
pub struct ServeArgs {
    /// Address of the API (key server.bind).
    #[arg(long, value_name = "ADDRESS")]
    bind: Option<SocketAddr>,
    /// Address of metrics and probes, or `off` (key metrics.bind).
    #[arg(long, value_name = "ADDRESS|off")]
    metrics_bind: Option<String>,
    /// Models and prices (key catalogue.path).
    #[arg(long, value_name = "FILE")]
    catalogue: Option<PathBuf>,
    /// Directory with model files, for counting tokens (key catalogue.models_dir).
    #[arg(long, value_name = "DIR")]
    models_dir: Option<PathBuf>,
    /// What is logged: error, warn, info, debug, trace, off or directives (key log.level).
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<String>,
}

impl Cli {
    /// Carries out the command.
    pub fn run(self) -> anyhow::Result<()> {
        let output = Output::new(self.shared.json);
        let mut flags = Table::new();
        set(
            &mut flags,
            "store",
            "data_dir",
            self.shared.data_dir.as_ref().map(|path| path.display().to_string()),
        );
        set(&mut flags, "store", "url", self.shared.database.clone());
        match self.command {
            Command::Confined { check: true, .. } => {
                let (without, reasons) = confine::check();
                for reason in reasons {
                    complain(&anyhow::Error::msg(reason));
                }
                Output::new(true).show(&without, "")
            }
            Command::Confined { terms, command, .. } => {
                let terms = serde_json::from_str(terms.as_deref().unwrap_or_default())?;
                confine::become_program(&terms, &command).map(|never| match never {})
            }
            Command::Serve(args) => {
                args.flags(&mut flags);
                let config = Config::load(self.shared.config, flags)?;
                start_logs(&config.log)?;
                serve::run(config, &output)
            }
            Command::Dev(args) => {
                args.serve.flags(&mut flags);
                let config = Config::load(self.shared.config, flags)?;
                start_logs(&config.log)?;
                dev::run(config, args, &output)
            }
            Command::Admin(command) => {
                let config = quiet(self.shared.config, flags)?;
                in_one_thread(admin::run(&config, command, &output))
            }
            Command::Keys(command) => {
                let config = quiet(self.shared.config, flags)?;
                in_one_thread(keys::run(&config, command, &output))
            }
            Command::Catalogue(command) => {
                let config = quiet(self.shared.config, flags)?;
                catalogue::run(&config.catalogue, command, &output)
            }
        }
    }
}

impl ServeArgs {
    fn flags(&self, flags: &mut Table) {
        set(flags, "server", "bind", self.bind.map(|address| address.to_string()));
        set(flags, "metrics", "bind", self.metrics_bind.clone());
        set(flags, "catalogue", "path", self.catalogue.as_ref().map(|path| path.display().to_string()));
        set(
            flags,
            "catalogue",
            "models_dir",
            self.models_dir.as_ref().map(|path| path.display().to_string()),
        );
        set(flags, "log", "level", self.log_level.clone());
    }
}

fn set(flags: &mut Table, section: &str, key: &str, value: Option<String>) {
    let Some(value) = value else { return };
    let section = flags.entry(section).or_insert_with(|| Value::Table(Table::new()));
    if let Value::Table(section) = section {
        section.insert(key.to_owned(), Value::String(value));
    }
}

/// Configuration for commands beside the server: their standard error is for their own words.
fn quiet(file: Option<PathBuf>, flags: Table) -> anyhow::Result<Config> {
    let config = Config::load(file, flags)?;
    let log = LogConfig { level: "warn".to_owned(), ..config.log.clone() };
    start_logs(&log)?;
    Ok(config)
}

fn start_logs(log: &LogConfig) -> Result<(), ExitError> {
    telemetry::init(&log.telemetry()).map_err(|error| ExitError::new(exit::CONFIG, error.to_string()))
}

fn in_one_thread(future: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
