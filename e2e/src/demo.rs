//! The logic behind `scripts/demo`: bring the house up, ask one question, show what it cost, stay up.

mod bill;
mod commands;
mod services;
mod show;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use crate::client::{Client, Event, content};
use crate::ground::until;
use crate::house::{CHAT_MODEL, EMBEDDINGS_MODEL, House, SCRAPE_MODEL, TOOLS, models_dir};
use crate::process::{self, Program};
use crate::site::Site;
use show::Show;

/// Credits of the demo's account: enough to play for days.
const CREDITS_MICRO: i64 = 100_000_000;

/// What the demo asks.
const QUESTION: &str = "Tell me a story.";

/// One streamed answer through gateway, tunnel, node and engine, and what it cost.
#[derive(Debug, Parser)]
pub struct Demo {
    /// Print exactly one JSON object on standard output once everything is ready.
    #[arg(long)]
    json: bool,
    /// Exit after the answer; 0 means that it worked.
    #[arg(long)]
    once: bool,
    /// Cap the engine at so many tokens per second, as an owner may.
    #[arg(long, value_name = "TOKENS_PER_SECOND")]
    pace: Option<f64>,
    /// Keep everything in this folder instead of a temporary one.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

/// What can be asked of a demo that runs.
#[derive(Debug, Subcommand)]
enum Command {
    /// A question about, or a change of, the demo whose folder is given.
    In {
        /// The `data_dir` of the demo.
        folder: PathBuf,
        /// What to do.
        #[command(subcommand)]
        what: commands::What,
    },
}

/// Runs the demo, or a command on one that runs.
///
/// # Errors
/// Something did not come up, or the answer or its bill is wrong.
pub async fn run(demo: Demo) -> Result<()> {
    if let Some(Command::In { folder, what }) = demo.command {
        return commands::run(&folder, what).await;
    }
    let temporary = tempfile::Builder::new().prefix("cxmpute-demo.").tempdir()?;
    let folder = match &demo.data_dir {
        Some(folder) => {
            std::fs::create_dir_all(folder)?;
            folder.canonicalize()?
        }
        None => temporary.path().to_owned(),
    };
    let show = Show::new(demo.json);
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! { _ = tokio::signal::ctrl_c() => {}, _ = terminate.recv() => {} }
    };
    tokio::pin!(stop);
    let mut standing = tokio::select! {
        standing = stand_up(&demo, &folder, &show) => standing?,
        () = &mut stop => return Ok(()),
    };
    if demo.json {
        show.result(&standing.description)?;
    }
    if !demo.once {
        show.line("");
        show.line("Everything stays up until Ctrl-C.");
        tokio::select! { () = &mut stop => {}, ended = standing.ended() => ended? }
        show.line("Stopping the node, then the gateway.");
    }
    standing.stop().await
}

/// Everything that runs.
struct Standing {
    house: House,
    node: Program,
    /// What the node may fetch, though it is not public.
    _site: Site,
    description: Value,
}

impl Standing {
    /// Fails when one of the two programs ends by itself.
    async fn ended(&mut self) -> Result<()> {
        let day = Duration::from_secs(366 * 86_400);
        until("the end of the demo", day, async || {
            anyhow::ensure!(self.node.alive(), "the node ended:\n{}", self.node.logged());
            let gateway = self.house.gateway()?;
            anyhow::ensure!(gateway.alive(), "the gateway ended:\n{}", gateway.logged());
            Ok(None)
        })
        .await
    }

    async fn stop(mut self) -> Result<()> {
        self.node.stop(Duration::from_secs(20)).await?;
        self.house.gateway()?.stop(Duration::from_secs(20)).await?;
        Ok(())
    }
}

async fn stand_up(demo: &Demo, folder: &Path, show: &Show) -> Result<Standing> {
    let mut house = House::plan(folder, None)?;
    show.line(&format!("data       {}", folder.display()));
    let took = house.start_gateway().await?;
    let base_url = format!("http://{}/api/v1", house.address);
    show.line(&format!(
        "gateway    pid {}, ready after {} ms at {base_url}",
        house.gateway()?.pid(),
        took.as_millis()
    ));
    let email = "user@example.org";
    // A folder that was used before has its account already; a fresh key is made each time.
    let user = house.create_user(email)?;
    house.grant_credits(&user, CREDITS_MICRO)?;
    let key = house.create_key(&user)?;
    let owner = house.create_user("provider@example.org")?;

    let pace = demo.pace.map(|pace| pace.to_string());
    let mut extra: Vec<(&str, &str)> =
        pace.iter().map(|pace| ("CXMPUTE_ENGINE_PACE", pace.as_str())).collect();
    // The one owner of the demo agrees to fetch pages, and one address that is not public: the demo's own site.
    let site = Site::open().await?;
    let allowed = site.address.to_string();
    extra.extend([("CXMPUTE_SCRAPE_ENABLED", "true"), ("CXMPUTE_SCRAPE_ALLOW_ADDRESSES", &allowed)]);
    let begin = Instant::now();
    let mut node = house.start_node("node", Some(&house.enrol_grant(&owner)?), house.address, &extra)?;
    let embeddings = models_dir().join("all-minilm/model.safetensors").exists();
    tokio::select! {
        ready = house.routable(CHAT_MODEL, 1) => ready,
        ended = until("the node to stay up", Duration::from_secs(3600), async || {
            anyhow::ensure!(node.alive(), "the node ended:\n{}", node.logged());
            Ok(None::<()>)
        }) => ended,
    }
    .with_context(|| node.logged())?;
    if embeddings {
        house.routable(EMBEDDINGS_MODEL, 1).await.with_context(|| node.logged())?;
    }
    let mut services: Vec<&str> = TOOLS
        .into_iter()
        .filter(|(program, _)| program.find().is_some())
        .flat_map(|(_, models)| models.iter().copied())
        .collect();
    services.push(SCRAPE_MODEL);
    for service in &services {
        house.routable(service, 1).await.with_context(|| node.logged())?;
    }
    show.line(&format!("node       pid {}, routable after {} ms", node.pid(), begin.elapsed().as_millis()));
    let engine = process::children(node.pid())
        .into_iter()
        .find(|pid| process::arguments(*pid).contains(&format!("--model {CHAT_MODEL}=")));
    let engine = engine.context("the node runs no cxmpute-engine")?;
    let file = models_dir().join("cxm-tiny-q8.gguf");
    show.line(&format!("engine     pid {engine}, cxmpute-engine, {}", file.display()));
    show.line(&format!("model      {CHAT_MODEL}, sha256 {}", show::hash(&file)?));

    show.line(&format!("services   {}", services.join(", ")));

    let client = Client::with_key(house.address, &key);
    let answer = ask(&client, show).await?;
    let bill = bill::check(&client, &house, &answer).await?;
    show.line(&bill.text());
    services::ask(&client, &services, &site, show).await?;
    let ledger = house.check_ledger()?;
    show.line(&format!("ledger     explained {}, open holds {}", ledger["explained"], ledger["open_holds"]));
    show.line("dashboard  not built yet (see README); figures: GET /api/v1/credits and /api/v1/generation");

    let present = |model: &str| services.iter().find(|service| **service == model);
    let description = json!({
        "base_url": base_url,
        "api_key": key,
        "dashboard_url": null,
        "admin_url": null,
        "user_email": email,
        "models": {
            "chat": CHAT_MODEL,
            "embeddings": embeddings.then_some(EMBEDDINGS_MODEL),
            "tts": present("espeak-ng"),
            "stt": present("pocketsphinx-digits"),
            "vision": present("tesseract"),
            "scrape": present(SCRAPE_MODEL),
        },
        "pages_url": format!("http://{}", site.address),
        "data_dir": folder,
        "pids": {"gateway": house.gateway()?.pid(), "node": node.pid(), "engine": engine},
        "commands": commands::lines(folder)?,
    });
    house.remember()?;
    if !demo.json {
        show.line(&format!("\ntry it     curl {base_url}/chat/completions -H 'authorization: Bearer {key}' -H 'content-type: application/json' \\\n             -d '{{\"model\":\"{CHAT_MODEL}\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"{QUESTION}\"}}]}}'"));
    }
    Ok(Standing { house, node, _site: site, description })
}

/// One streamed answer, as the client saw it.
pub(crate) struct Answer {
    pub(crate) request_id: String,
    pub(crate) text: String,
    pub(crate) usage: Value,
}

async fn ask(client: &Client, show: &Show) -> Result<Answer> {
    let messages = json!([{"role": "user", "content": QUESTION}]);
    let body = json!({"model": CHAT_MODEL, "stream": true, "stream_options": {"include_usage": true}, "temperature": 0, "messages": messages});
    show.line(&format!("\nquestion   {QUESTION}"));
    let begin = Instant::now();
    let mut conversation = client.open("POST", "/api/v1/chat/completions", Some(&body)).await?;
    if conversation.status != 200 {
        let body = conversation.rest().await?;
        anyhow::bail!(
            "the question was answered with {} {}",
            conversation.status,
            String::from_utf8_lossy(&body)
        );
    }
    let request_id = conversation.header("x-request-id").unwrap_or_default().to_owned();
    let (mut text, mut events, mut usage, mut ended) = (String::new(), 0, Value::Null, false);
    while let Some(event) = conversation.event().await? {
        match event {
            Event::Done => ended = true,
            Event::Data(value) => {
                anyhow::ensure!(value.get("error").is_none(), "the answer broke off: {value}");
                if let Some(piece) = content(&value) {
                    events += 1;
                    show.line(&format!("{:>7.1} ms  {piece:?}", begin.elapsed().as_secs_f64() * 1000.0));
                    text.push_str(piece);
                }
                if value["usage"].is_object() {
                    usage = value["usage"].clone();
                }
            }
        }
    }
    anyhow::ensure!(ended, "the answer had no end");
    anyhow::ensure!(events >= 20, "only {events} content events: this is no streamed story");
    show.line(&format!("answer     {text}"));
    show.line(&format!(
        "events     {events} with content, the last after {:.1} ms",
        begin.elapsed().as_secs_f64() * 1000.0
    ));
    Ok(Answer { request_id, text, usage })
}
