//! What a row stands on: a gateway with paying accounts, stand-in nodes, nginx, and the upstream behind nginx.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cxmpute_e2e::client::Client;
use cxmpute_e2e::ground::until;
use cxmpute_e2e::house::{CHAT_MODEL, House, free_address};
use cxmpute_e2e::settings::repository;
use cxmpute_runtime::Tasks;
use tempfile::TempDir;
use tokio::net::TcpListener;

use crate::books::{self, Books};
use crate::emissions::Emissions;
use crate::load::{Question, Script};
use crate::nginx::Nginx;
use crate::tls::{Certificate, Trust, plain_door};
use crate::{cost, node, upstream};

/// Stand-ins of the CPU figures: enough slots for 256 connections, and some to choose from.
const NODES: usize = 6;

/// Micro-credits of an account; nobody runs out of them.
const FORTUNE: i64 = 1_000_000_000_000;

/// What was asked for on the command line.
pub struct Plan {
    /// Time per figure.
    pub window: Duration,
    /// Streams held open for the memory figure.
    pub open_streams: usize,
    /// Slow streams at once, and the time between two events of one.
    pub slow_streams: usize,
    pub slow_pace_ms: u32,
    /// Core of the gateway and of nginx.
    pub proxy_core: usize,
    /// nginx, if there is one.
    pub nginx: Option<PathBuf>,
    /// Where `perf` records the gateway.
    pub profile: Option<PathBuf>,
}

/// How the gateway of a row differs from that of the others.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Stand-ins that are waited for.
    pub nodes: usize,
    /// Whether gateway and nginx speak TLS.
    pub tls: bool,
    /// Whether the gateway has the model's tokenizer; it prices per character without.
    pub counting: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self { nodes: NODES, tls: false, counting: true }
    }
}

/// Somebody between the load and the answer.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `nginx`, `cxmpute`, or `direct`: nobody.
    pub name: &'static str,
    /// Where it listens.
    pub address: SocketAddr,
    /// Whose CPU time and memory count.
    pub pid: u32,
    /// Another process whose CPU time is measured along with it.
    pub behind: Option<u32>,
    /// Whom to trust where it speaks TLS.
    pub trust: Option<Trust>,
}

impl Peer {
    /// The name of the gateway.
    pub const GATEWAY: &str = "cxmpute";
}

/// A gateway of one row and what is around it.
pub struct Stage {
    /// The gateway.
    pub house: House,
    /// Whole answers that the gateway gave to its first account.
    pub answers: u64,
    /// Streams that the load hung up on; they are asked for by another account.
    pub hung_up: usize,
    /// When numbered streams sent their events.
    pub emissions: Arc<Emissions>,
    key: String,
    user: String,
    nginx: Option<Nginx>,
    upstream: SocketAddr,
    entrance: Entrance,
    nodes: usize,
    tasks: Tasks,
    _folder: TempDir,
}

impl Stage {
    /// Brings everything up.
    ///
    /// # Errors
    /// Something does not come up.
    pub async fn build(plan: &Plan, setup: Setup) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let mut house = House::plan(folder.path(), None)?;
        let tasks = Tasks::new();
        let certificate = if setup.tls { Some(Certificate::make(folder.path())?) } else { None };
        let entrance = Entrance::open(&mut house, certificate.clone(), &tasks).await?;
        if !setup.counting {
            without_tokenizer(&mut house)?;
        }
        house.set("CXMPUTE_SERVER_WORKERS", "1");
        house.set("CXMPUTE_SERVER_CONNECTIONS_PER_ADDRESS", "60000");
        house.set("CXMPUTE_LOG_LEVEL", "warn");
        house.start_gateway().await?;
        cost::pin(house.gateway()?.pid(), plan.proxy_core)?;
        let emissions = Arc::new(Emissions::default());
        let upstream = upstream::start(emissions.clone(), &tasks).await?;
        let nginx = match &plan.nginx {
            Some(program) => Some(
                Nginx::start(program, folder.path(), upstream, certificate.as_ref(), plan.proxy_core).await?,
            ),
            None => None,
        };
        let user = house.create_user("bench@example.com")?;
        house.grant_credits(&user, FORTUNE)?;
        let key = house.create_key(&user)?;
        let mut stage = Self {
            house,
            answers: 0,
            hung_up: 0,
            emissions,
            key,
            user,
            nginx,
            upstream,
            entrance,
            nodes: 0,
            tasks,
            _folder: folder,
        };
        if setup.nodes > 0 {
            stage.staff(setup.nodes).await?;
            stage.ask_once().await?;
        }
        Ok(stage)
    }

    /// Starts stand-ins until there are so many, and waits until they get work.
    ///
    /// # Errors
    /// One is refused.
    pub async fn staff(&mut self, nodes: usize) -> Result<()> {
        while self.nodes < nodes {
            let owner = self.house.create_user(&format!("owner{}@example.com", self.nodes))?;
            let grant = self.house.enrol_grant(&owner)?;
            let name = format!("stand-in-{}", self.nodes);
            node::start(&self.entrance, &name, &grant, self.emissions.clone(), &self.tasks).await?;
            self.nodes += 1;
        }
        self.house.routable(CHAT_MODEL, self.nodes as u64).await
    }

    /// The gateway.
    ///
    /// # Errors
    /// It was not started.
    pub fn gateway(&mut self) -> Result<Peer> {
        let Entrance { address, trust, .. } = self.entrance.clone();
        Ok(Peer { name: Peer::GATEWAY, address, pid: self.house.gateway()?.pid(), behind: None, trust })
    }

    /// nginx, where there is one.
    pub fn nginx(&self) -> Option<Peer> {
        let nginx = self.nginx.as_ref()?;
        let trust = self.entrance.trust.clone();
        Some(Peer { name: "nginx", address: nginx.address, pid: nginx.worker, behind: None, trust })
    }

    /// The upstream without anybody in between.
    pub fn direct(&self) -> Peer {
        Peer { name: "direct", address: self.upstream, pid: std::process::id(), behind: None, trust: None }
    }

    /// A chat completion, asked by the account whose answers are counted.
    pub fn question(&self, peer: &Peer, script: Script, streamed: bool) -> Question {
        Question::chat(peer, &self.key, script, streamed)
    }

    /// A key of another account that can pay.
    ///
    /// # Errors
    /// A command failed.
    pub fn key_of_another(&self) -> Result<String> {
        let holder = self.house.create_user("holder@example.com")?;
        self.house.grant_credits(&holder, FORTUNE)?;
        self.house.create_key(&holder)
    }

    /// One answer outside of every figure.
    ///
    /// # Errors
    /// It is not given.
    pub async fn ask_once(&mut self) -> Result<()> {
        let client = Client::with_key(self.house.address, &self.key);
        let body = serde_json::json!({
            "model": CHAT_MODEL, "max_tokens": 3, "messages": [{"role": "user", "content": "bench 3 0"}],
        });
        let reply = client.call("POST", "/v1/chat/completions", Some(&body)).await?;
        ensure!(
            reply.status == 200,
            "the first answer: {} {}",
            reply.status,
            String::from_utf8_lossy(&reply.body)
        );
        self.answers += 1;
        Ok(())
    }

    /// Ends the gateway when every request is resolved, and reads its books.
    ///
    /// # Errors
    /// Holds stay open, or the gateway does not end.
    pub async fn close(&mut self) -> Result<Books> {
        books::settled(&self.house).await?;
        let commits = books::commits(&self.house).await;
        let ledger = self.house.check_ledger()?;
        self.house.gateway()?.stop(Duration::from_secs(30)).await?;
        books::read(&self.house, &self.user, self.answers, self.hung_up, ledger, commits).await
    }

    /// Starts the gateway again on its database, and waits for an answer; the stand-ins come back by themselves. Gives
    /// the time until it was ready and until it had answered.
    ///
    /// # Errors
    /// It does not come back.
    pub async fn restart(&mut self) -> Result<(Duration, Duration)> {
        let began = Instant::now();
        let ready = self.house.start_gateway().await?;
        until("an answer after the restart", Duration::from_secs(30), async || {
            Ok(self.ask_once().await.ok())
        })
        .await?;
        Ok((ready, began.elapsed()))
    }
}

/// Where the gateway is entered by load and nodes.
#[derive(Clone, Debug)]
pub struct Entrance {
    /// Where it listens.
    pub address: SocketAddr,
    /// Where the suite's own client reaches it, which speaks no TLS.
    pub plain: SocketAddr,
    /// The certificate, where it has one.
    pub certificate: Option<Certificate>,
    trust: Option<Trust>,
}

impl Entrance {
    async fn open(house: &mut House, certificate: Option<Certificate>, tasks: &Tasks) -> Result<Self> {
        let plain = house.address;
        let Some(certificate) = certificate else {
            return Ok(Self { address: plain, plain, certificate, trust: None });
        };
        let (address, trust) = (free_address()?, Trust::in_certificate(&certificate)?);
        house.set("CXMPUTE_SERVER_BIND", &address.to_string());
        house.set("CXMPUTE_SERVER_TLS", "files");
        house.set("CXMPUTE_SERVER_TLS_CERTIFICATE", &certificate.file.display().to_string());
        house.set("CXMPUTE_SERVER_TLS_KEY", &certificate.key.display().to_string());
        let listener = TcpListener::bind(plain).await?;
        tasks.spawn("plain-door", plain_door(listener, address, trust.clone()));
        Ok(Self { address, plain, certificate: Some(certificate), trust: Some(trust) })
    }
}

/// A gateway that finds no tokenizer prices per character, if the catalogue has such a price.
fn without_tokenizer(house: &mut House) -> Result<()> {
    let shipped = std::fs::read_to_string(repository().join("catalogue/models.toml"))?;
    let priced = shipped.replace("price = { version = 1, ", "price = { version = 1, character = 5_000_000, ");
    ensure!(priced != shipped, "the shipped catalogue has no price to add one to");
    let (file, folder) = (house.folder.join("models.toml"), house.folder.join("no-models"));
    std::fs::write(&file, priced)?;
    std::fs::create_dir(&folder)?;
    house.set("CXMPUTE_CATALOGUE_PATH", &file.display().to_string());
    house.set("CXMPUTE_CATALOGUE_MODELS_DIR", &folder.display().to_string());
    Ok(())
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.tasks.soft().cancel();
        self.tasks.hard().cancel();
    }
}
