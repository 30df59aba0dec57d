//! `cxmpute dev`: a gateway and one real node on this machine, for trying things out.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::lifecycle;
use cxmpute_store::{Db, KeyKind};
use cxmpute_wire::MicroCredits;
use serde::Serialize;
use tokio::process::{Child, Command};

use super::{Output, ServeArgs, admin, keys, serve};
use crate::app::{self, App, Listeners, open_store};
use crate::auth::Pepper;
use crate::config::Config;

const USER: &str = "user@cxmpute.local";
const PROVIDER: &str = "provider@cxmpute.local";
/// Ten credits to play with.
const CREDITS: MicroCredits = MicroCredits(10 * MicroCredits::PER_CREDIT);

/// Flags of `dev`.
#[derive(Args)]
pub struct DevArgs {
    #[command(flatten)]
    pub(super) serve: ServeArgs,
    /// The node's program; by default `cxmpute-provider` beside this one.
    #[arg(long, value_name = "FILE")]
    node_program: Option<PathBuf>,
}

/// What is said once both run.
#[derive(Serialize)]
struct Ready {
    base_url: String,
    api_key: String,
    user_email: &'static str,
    provider_email: &'static str,
    data_dir: PathBuf,
    gateway_pid: u32,
    node_pid: Option<u32>,
}

/// Runs both until a signal, or until one of them ends.
pub fn run(config: Config, args: DevArgs, output: &Output) -> anyhow::Result<()> {
    let program = find_program(args.node_program)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run_both(config, &program, output))
}

async fn run_both(config: Config, program: &Path, output: &Output) -> anyhow::Result<()> {
    let listeners = Listeners::bind(&config).await?;
    let (db, pepper) = open_store(&config).await?;
    let api_key = prepare(&db, &pepper).await?;
    let gateway = App::build(config.clone(), serve::parts()?).await?;
    lifecycle::signals(&gateway.tasks)?;
    let base_url = serve::base_url(&gateway, &listeners)?;
    let origin = base_url.trim_end_matches("/api/v1").to_owned();
    gateway.tasks.spawn_critical("api", app::serve(gateway.clone(), listeners));
    let mut node = start_node(&gateway, &db, &pepper, program, &origin, &config).await?;
    let ready = Ready {
        base_url,
        api_key,
        user_email: USER,
        provider_email: PROVIDER,
        data_dir: config.store.data_dir.clone(),
        gateway_pid: std::process::id(),
        node_pid: node.id(),
    };
    output.show(
        &ready,
        format_args!("base URL  {}\nAPI key   {}\nCtrl-C stops both.", ready.base_url, ready.api_key),
    )?;
    let soft = gateway.tasks.soft();
    let ended = tokio::select! {
        () = soft.cancelled() => None,
        status = node.wait() => Some(status?),
    };
    stop_node(&mut node).await;
    gateway.stop().await;
    match ended {
        Some(status) => bail!("The node ended ({status}); its log above says why."),
        None => Ok(()),
    }
}

/// Accounts with credits and a fresh key. Running it again adds only the key.
async fn prepare(db: &Db, pepper: &Pepper) -> anyhow::Result<String> {
    let user = admin::create_user(db, USER).await?;
    admin::create_user(db, PROVIDER).await?;
    admin::grant(db, &user.id, CREDITS, "cxmpute dev", Some("cxmpute-dev".to_owned())).await?;
    Ok(keys::create(db, pepper, &user.id, KeyKind::Api, "dev", None).await?.key)
}

/// Enrols the node (which it may be already) and starts it.
async fn start_node(
    gateway: &Arc<App>,
    db: &Db,
    pepper: &Pepper,
    program: &Path,
    origin: &str,
    config: &Config,
) -> anyhow::Result<Child> {
    let directory = config.store.data_dir.join("node");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("The node's directory {} cannot be made.", directory.display()))?;
    let provider = admin::create_user(db, PROVIDER).await?;
    let grant = admin::create_grant(db, pepper, &provider.id).await?;
    let grant_file = directory.join("grant");
    write_private(&grant_file, &grant)?;
    let settings = directory.join("provider.toml");
    write_private(&settings, &settings_of(&directory, origin, config)?)?;
    let enrolled = node_command(program, &settings)
        .arg("enrol")
        .arg("--grant-file")
        .arg(&grant_file)
        .status()
        .await
        .with_context(|| format!("{} cannot be started.", program.display()))?;
    // Used up, or not needed: either way nobody needs to find it here.
    let _ = std::fs::remove_file(&grant_file);
    if !enrolled.success() {
        gateway.stop().await;
        bail!("The node could not enrol ({enrolled}); its message above says why.");
    }
    let mut start = node_command(program, &settings);
    // A group of its own: Ctrl-C reaches us, and we end the node in order.
    start.arg("start").process_group(0).kill_on_drop(true);
    start.spawn().with_context(|| format!("{} cannot be started.", program.display()))
}

fn node_command(program: &Path, settings: &Path) -> Command {
    let mut command = Command::new(program);
    // The node's words go to our standard error; standard output carries only our own result.
    command.arg("--config").arg(settings).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

fn settings_of(directory: &Path, origin: &str, config: &Config) -> anyhow::Result<String> {
    let text = |path: &Path| toml::Value::String(path.display().to_string());
    let mut settings = toml::Table::new();
    settings.insert("data_dir".to_owned(), text(&std::path::absolute(directory)?));
    settings.insert("name".to_owned(), "dev".into());
    settings.insert("api".to_owned(), toml::Table::from_iter([("url".to_owned(), origin.into())]).into());
    if let Some(models) = &config.catalogue.models_dir {
        let models = std::path::absolute(models)?;
        settings
            .insert("models".to_owned(), toml::Table::from_iter([("dir".to_owned(), text(&models))]).into());
    }
    Ok(toml::to_string(&settings)?)
}

/// Asks the node to drain, and ends it when it does not.
async fn stop_node(node: &mut Child) {
    /// The node's own drain takes at most 30 s; nobody waits for paid work in a trial.
    const PATIENCE: std::time::Duration = std::time::Duration::from_secs(8);
    let Some(pid) = node.id() else { return };
    let asked = Command::new("kill").arg("-TERM").arg(pid.to_string()).status().await;
    if asked.is_ok() && tokio::time::timeout(PATIENCE, node.wait()).await.is_ok() {
        return;
    }
    if let Err(error) = node.kill().await {
        tracing::warn!(%error, "the node did not end");
    }
}

fn write_private(file: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    options
        .open(file)
        .and_then(|mut handle| handle.write_all(text.as_bytes()))
        .with_context(|| format!("{} cannot be written.", file.display()))
}

fn find_program(given: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    let program = match given {
        Some(program) => program,
        None => std::env::current_exe()?.with_file_name("cxmpute-provider"),
    };
    if program.is_file() {
        return Ok(program);
    }
    Err(ExitError::new(
        exit::CONFIG,
        format!("The node's program {} is missing; build it with `cargo build --workspace` or name it with --node-program.", program.display()),
    )
    .into())
}
