//! The command line of `cxmpute-provider`.

mod engine;
mod models;
mod show;

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::lifecycle::OwnedTask;
use cxmpute_runtime::{Clock, Secret, Tasks, telemetry};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::{self, Deps, Node, NodeView};
use crate::config::NodeConfig;
use crate::hold::{Hold, Taken};
use crate::local::{self, Question};
use crate::output::{self, Output};
use crate::owner::{self, Pause};
use crate::{enrol, identity};

/// How long `stop` waits for the node's end: the drain and what follows it.
const STOP_WITHIN: Duration = Duration::from_secs(60);

/// Turns this machine into a part of a Cxmpute network and earns a share of every request it serves.
#[derive(Debug, Parser)]
#[command(name = "cxmpute-provider", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 wrong configuration, 5 data directory not \
writable, 10 a new grant is needed, 14 revoked or suspended, 15 another copy of this node is active, 17 this program is \
too old.\nSignals of a running node: the first SIGTERM or SIGINT drains it (30 s at most), the second shortens that to 10 s, the \
third stops at once.\nEvery key of the configuration can be set as CXMPUTE_SECTION_KEY too.";

#[derive(Debug, Args)]
struct Global {
    /// Configuration file (TOML) [env: CXMPUTE_CONFIG_PATH].
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where key, state and engine logs live [env: CXMPUTE_DATA_DIR].
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The control plane [env: CXMPUTE_API_URL].
    #[arg(long, global = true, value_name = "URL")]
    api_url: Option<String>,
    /// Print JSON, one object per line.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register this machine with a single-use grant of its owner. Repeating it changes nothing.
    Enrol {
        #[command(flatten)]
        grant: GrantSource,
        /// The UUID of a provision made by the older provider routes that this machine takes over.
        #[arg(long, value_name = "UUID")]
        alias: Option<String>,
    },
    /// Run the node until it is stopped: dial the gateway, start engines, serve.
    Start {
        #[command(flatten)]
        grant: GrantSource,
    },
    /// Take no new work until `resume`; what runs goes on. It is remembered over restarts.
    Pause {
        /// Stop the engines, too, once their work is done, so that their memory is free.
        #[arg(long)]
        free_memory: bool,
    },
    /// Take work again.
    Resume,
    /// The model files of this machine, and the servers of models that were found on it.
    Models,
    /// Let the running node finish its work and end.
    Stop,
    /// What the running node does, and why it does not earn if it does not.
    Status,
    /// The services of the running node.
    Services,
    /// The engines that this program itself is. The node starts them.
    #[command(hide = true)]
    Engine {
        #[command(subcommand)]
        engine: engine::Engine,
    },
}

#[derive(Debug, Args)]
struct GrantSource {
    /// File with the grant; `CXMPUTE_GRANT` is read too. Never an argument: others could see it.
    #[arg(long, value_name = "FILE", conflicts_with = "grant_stdin")]
    grant_file: Option<PathBuf>,
    /// Read the grant from standard input.
    #[arg(long)]
    grant_stdin: bool,
}

impl GrantSource {
    fn read(&self) -> Result<Option<Secret<String>>> {
        let mut text = String::new();
        if let Some(path) = &self.grant_file {
            text = std::fs::read_to_string(path)
                .with_context(|| format!("reading the grant from {}", path.display()))?;
        } else if self.grant_stdin {
            std::io::stdin()
                .take(4096)
                .read_to_string(&mut text)
                .context("reading the grant from standard input")?;
        } else {
            return Ok(agent::grant_from_environment());
        }
        Ok(Some(Secret::new(text.trim().to_owned())))
    }
}

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures.
            let code = if error.use_stderr() { exit::USAGE } else { exit::OK };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            output::failure(&error);
            ExitCode::from(exit::code_of(error.as_ref()))
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    if let Command::Engine { engine } = cli.command {
        return engine::run(engine);
    }
    let output = if cli.global.json { Output::Json } else { Output::Human };
    let config = NodeConfig::read(cli.global.config.clone(), flags(&cli.global))?;
    telemetry::init(&config.log).map_err(|error| ExitError::new(exit::CONFIG, error.to_string()))?;
    if matches!(cli.command, Command::Start { .. })
        && let Err(error) = owner::leave_processors(&config.owner.caps)
    {
        tracing::warn!(%error, "the owner's processors are used, too: the system does not let them be left");
    }
    // One thread relays for less than several would; engines have processes of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        match cli.command {
            Command::Enrol { grant, alias } => enrol_node(&config, &grant, alias, output).await,
            Command::Start { grant } => start(config, &grant, output).await,
            Command::Stop => stop(&config, output).await,
            Command::Pause { free_memory } => {
                let pause = if free_memory { Pause::Memory } else { Pause::Work };
                rest(&config, Some(pause), output).await
            }
            Command::Resume => rest(&config, None, output).await,
            Command::Models => models::list(&config, output).await,
            // Ran above, without the owner's configuration.
            Command::Engine { .. } => Ok(()),
            Command::Status => status(&config, output).await,
            Command::Services => {
                let answer = local::ask(&config.data_dir, Question::Status).await?;
                for service in &answer.services {
                    output.result(service, &show::service_line(service));
                }
                if answer.services.is_empty() && output == Output::Human {
                    output.result(&(), "No services yet: the gateway has not planned any for this machine.");
                }
                Ok(())
            }
        }
    })
}

fn flags(global: &Global) -> toml::Table {
    let mut flags = toml::Table::new();
    if let Some(dir) = &global.data_dir {
        flags.insert("data_dir".into(), toml::Value::String(dir.display().to_string()));
    }
    if let Some(url) = &global.api_url {
        let api = toml::Table::from_iter([("url".to_owned(), toml::Value::String(url.clone()))]);
        flags.insert("api".into(), toml::Value::Table(api));
    }
    flags
}

async fn enrol_node(
    config: &NodeConfig,
    grant: &GrantSource,
    alias: Option<String>,
    output: Output,
) -> Result<()> {
    let identity = identity::load_or_create(&config.data_dir)?;
    let grant = grant.read()?;
    let done = Box::pin(enrol::enrol(config, &identity, grant.as_ref(), alias, &Clock::system())).await?;
    let value = json!({
        "provision_id": done.answer.provision_id, "owner": done.answer.owner, "state": done.answer.state,
        "created": done.created, "control_plane": config.api.url,
    });
    let how = if done.created { "Enrolled" } else { "Already enrolled" };
    let text = format!(
        "{how} with {}\n  provision  {}\n  owner      {}\n  state      {}\nNext: cxmpute-provider start",
        config.api.url, done.answer.provision_id, done.answer.owner, done.answer.state
    );
    output.result(&value, &text);
    Ok(())
}

async fn start(config: NodeConfig, grant: &GrantSource, output: Output) -> Result<()> {
    let (clock, tasks) = (Clock::system(), Tasks::new());
    let identity = identity::load_or_create(&config.data_dir)?;
    // Before anything of an earlier run is tidied up: it may be that of a node which runs.
    let _hold = Hold::take_or_say(&config.data_dir)?;
    let grant = grant.read()?;
    agent::ensure_enrolled(&config, &identity, grant.as_ref(), &clock).await?;
    let data_dir = config.data_dir.clone();
    let api = config.api.url.clone();
    let mut deps = Deps::new(clock, tasks.clone());
    deps.grant = grant;
    let node = Node::build(config, deps)?;
    let socket = local::open(&data_dir, node.view(), &tasks).await?;
    let signals = listen_to_signals(&tasks, node.view())?;
    let value = json!({"event": "started", "pid": std::process::id(), "provision_id": identity.provision_id});
    let text = format!(
        "Node {} is starting and dials {api}. Ctrl-C drains and stops it; see it with: cxmpute-provider status",
        identity.provision_id
    );
    output.result(&value, &text);
    let follower = tasks.spawn_owned("follow", show::follow(node.view(), output));
    let result = Box::pin(node.run()).await;
    drop((follower, socket, signals));
    tasks.stop(Duration::from_secs(2)).await;
    output.result(&json!({"event": "stopped"}), "Node stopped.");
    result
}

/// First signal: drain. Second: drain for ten seconds at most. Third: stop at once (NR26).
fn listen_to_signals(tasks: &Tasks, view: NodeView) -> Result<OwnedTask> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let own = tasks.clone();
    let task = tasks.spawn_owned("signals", async move {
        let hard = own.hard();
        for count in 1u8.. {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
                () = hard.cancelled() => return,
            }
            match count {
                1 => {
                    tracing::info!("draining; a second signal shortens that to 10 s");
                    own.soft().cancel();
                }
                2 => {
                    tracing::warn!("stopping within 10 s; a third signal stops at once");
                    view.hurry.cancel();
                }
                _ => {
                    tracing::warn!("stopping at once");
                    own.hard().cancel();
                    return;
                }
            }
        }
    });
    Ok(task)
}

/// The running node's word; without one, what is known of it here and at its server.
async fn status(config: &NodeConfig, output: Output) -> Result<()> {
    if let Ok(answer) = local::ask(&config.data_dir, Question::Status).await {
        output.result(&answer, &show::describe(&answer));
        return Ok(());
    }
    let identity = identity::load(&config.data_dir)?;
    let state = identity::read_state(&config.data_dir)?;
    let enrolled = identity.filter(|_| state.api_url.is_some());
    let Some(identity) = enrolled else {
        let message =
            "Not enrolled. Get a grant from the operator and run: cxmpute-provider enrol --grant-file FILE";
        let value = json!({"running": false, "reason": {"code": "not_enrolled", "message": message}});
        output.result(&value, "Node       not enrolled");
        return Err(ExitError::new(exit::OTHER, message).into());
    };
    let server = enrol::ask_server(config, &identity, &Clock::system()).await;
    let word = match &server {
        Ok(known) => known["state"].as_str().unwrap_or("unknown").to_owned(),
        Err(error) => output::chain(error),
    };
    let message =
        format!("No node runs in {}; start it with: cxmpute-provider start", config.data_dir.display());
    let value = json!({
        "running": false, "provision_id": identity.provision_id, "owner": state.owner, "server": server.ok(),
        "reason": {"code": "not_running", "message": message},
    });
    let text = format!("Node       {} (not running)\nServer     {word}", identity.provision_id);
    output.result(&value, &text);
    // The result is complete; the exit code tells scripts that nothing runs.
    Err(ExitError::new(exit::OTHER, message).into())
}

/// Begins or ends the owner's pause: in the node that runs, else for the next start.
async fn rest(config: &NodeConfig, pause: Option<Pause>, output: Output) -> Result<()> {
    let question = pause.map_or(Question::Resume, Question::Pause);
    let now = match local::ask(&config.data_dir, question).await {
        Ok(answer) => format!("{} requests are still being worked on", answer.in_flight),
        Err(error) => match Hold::take(&config.data_dir)? {
            Taken::Ours(_hold) => {
                let mut state = identity::read_state(&config.data_dir)?;
                state.pause = pause;
                identity::write_state(&config.data_dir, &state)?;
                "no node runs now".to_owned()
            }
            Taken::Theirs(_) => {
                return Err(error.context("The node that runs did not take it; nothing changed"));
            }
        },
    };
    let said = match pause {
        Some(Pause::Work) => "Paused: no new work is taken, engines stay loaded",
        Some(Pause::Memory) => "Paused: no new work is taken, engines stop when their work is done",
        None => "Resumed: work is taken again",
    };
    output.result(&json!({"pause": pause}), &format!("{said} ({now})."));
    Ok(())
}

async fn stop(config: &NodeConfig, output: Output) -> Result<()> {
    let answer = local::ask(&config.data_dir, Question::Stop).await?;
    let ended = async {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        while lives(answer.pid) {
            looks.tick().await;
        }
    };
    tokio::time::timeout(STOP_WITHIN, ended).await.with_context(|| {
        format!("The node (pid {}) did not end within {} s", answer.pid, STOP_WITHIN.as_secs())
    })?;
    output.result(
        &json!({"event": "stopped", "pid": answer.pid}),
        &format!("Node (pid {}) stopped.", answer.pid),
    );
    Ok(())
}

/// Whether a process still runs; one that has ended and only waits for its parent to notice does not.
fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in brackets may hold anything; the state follows the last bracket.
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        assert!(Cli::try_parse_from(["p", "enrol", "--grant-file", "a", "--grant-stdin"]).is_err());
    }
}
