//! The run: what is started, in which order, and which figures are taken.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use cxmpute_e2e::client::Client;
use cxmpute_e2e::house::{CHAT_MODEL, House};
use cxmpute_runtime::Tasks;

use crate::books::{self, Books};
use crate::cost;
use crate::load::{Load, Question, Script, hold};
use crate::nginx::Nginx;
use crate::node;
use crate::report::{Figure, Memory, Report};
use crate::upstream;

/// Time for connections and caches to settle before a figure is taken.
const WARM_UP: Duration = Duration::from_secs(1);
/// Connections of the whole-answer figures; the budgets of DESIGN section 8 name both.
const CONNECTIONS: [usize; 2] = [64, 256];
/// Stand-ins of the CPU figures: enough slots for every connection, and some to choose from.
const NODES: usize = 6;
/// Streams at once, in the stream figures.
const STREAMS: usize = 64;
/// Content events of a whole answer, and of a stream.
const SHORT: u32 = 8;
const LONG: u32 = 200;
/// Content events of a stream at an engine's pace, and that pace (50 tokens per second).
const PACED: u32 = 20;
const PACE_MS: u32 = 20;

/// What to measure, and where.
pub struct Plan {
    /// Time per figure.
    pub window: Duration,
    /// Streams held open for the memory figure.
    pub open_streams: usize,
    /// Core of the gateway and of nginx.
    pub proxy_core: usize,
    /// nginx, if there is one.
    pub nginx: Option<PathBuf>,
}

/// Somebody between the load and the answer.
struct Peer {
    name: &'static str,
    address: SocketAddr,
    pid: u32,
}

/// The gateway, and what its questions need.
struct Stage {
    house: House,
    key: String,
    user: String,
    holder: String,
    nodes: usize,
    tasks: Tasks,
}

/// Runs everything.
///
/// # Errors
/// Something did not come up, or a peer gave anything but whole answers.
pub async fn run(plan: &Plan) -> Result<Report> {
    let folder = tempfile::tempdir()?;
    let tasks = Tasks::new();
    let mut stage = Stage::build(plan, folder.path(), &tasks).await?;
    let gateway = Peer { name: "cxmpute", address: stage.house.address, pid: stage.house.gateway()?.pid() };
    let plain = upstream::start().await?;
    let nginx = match &plan.nginx {
        Some(program) => Some(Nginx::start(program, folder.path(), plain, plan.proxy_core).await?),
        None => None,
    };
    let yardstick =
        nginx.as_ref().map(|nginx| Peer { name: "nginx", address: nginx.address, pid: nginx.worker });
    let peers: Vec<&Peer> = yardstick.iter().chain([&gateway]).collect();

    let mut report = Report { nginx: nginx.as_ref().map(|nginx| nginx.version.clone()), ..Report::default() };
    let mut answers = 1;
    let idle = cost::resident_bytes(gateway.pid)?;
    for connections in CONNECTIONS {
        for peer in &peers {
            let script = Script { events: SHORT, pace_ms: 0, hold: false };
            let question = Question::chat(peer.address, &stage.key, script, false);
            let (figure, count) = figure(plan, peer, &question, connections, Duration::ZERO).await?;
            report.whole.push(figure);
            answers += if peer.name == gateway.name { count } else { 0 };
        }
    }
    for peer in &peers {
        let script = Script { events: LONG, pace_ms: 0, hold: false };
        let question = Question::chat(peer.address, &stage.key, script, true);
        let (figure, count) = figure(plan, peer, &question, STREAMS, Duration::ZERO).await?;
        report.streamed.push(figure);
        answers += if peer.name == gateway.name { count } else { 0 };
    }
    // Streams at the pace of an engine: here the time to the first token is not that of a queue.
    let direct = Peer { name: "direct", address: plain, pid: std::process::id() };
    for peer in std::iter::once(&direct).chain(peers) {
        let script = Script { events: PACED, pace_ms: PACE_MS, hold: false };
        let question = Question::chat(peer.address, &stage.key, script, true);
        let (figure, count) =
            figure(plan, peer, &question, STREAMS, Duration::from_millis((PACED * PACE_MS).into())).await?;
        report.paced.push(figure);
        answers += if peer.name == gateway.name { count } else { 0 };
    }
    report.memory = Some(stage.memory(plan, &gateway, idle).await?);
    report.books = Some(stage.close(plan, answers).await?);
    report.start_to_first_answer = Some(stage.restart().await?);
    tasks.stop(Duration::from_millis(500)).await;
    Ok(report)
}

/// Takes one figure: the load runs on while the window is measured, so that its beginning and end do not count.
async fn figure(
    plan: &Plan,
    peer: &Peer,
    question: &Question,
    connections: usize,
    spread: Duration,
) -> Result<(Figure, u64)> {
    let load = Load::start(question, connections, spread);
    tokio::time::sleep(WARM_UP + spread).await;
    let (began, cpu) = (Instant::now(), cost::cpu(peer.pid)?);
    let (answers, events) =
        (load.tally.answers.load(Ordering::Relaxed), load.tally.events.load(Ordering::Relaxed));
    load.tally.first_us.lock().clear();
    tokio::time::sleep(plan.window).await;
    let (wall, cpu) = (began.elapsed(), cost::cpu(peer.pid)? - cpu);
    let figure = Figure {
        peer: peer.name,
        connections,
        wall,
        cpu,
        answers: load.tally.answers.load(Ordering::Relaxed) - answers,
        events: load.tally.events.load(Ordering::Relaxed) - events,
        first_us: std::mem::take(&mut *load.tally.first_us.lock()),
    };
    let count =
        load.finish().await.with_context(|| format!("{} with {connections} connections", peer.name))?;
    ensure!(figure.answers > 0, "{} gave no answer within the window", peer.name);
    Ok((figure, count))
}

impl Stage {
    /// The gateway with an account that can pay, and as many stand-ins as the open streams need.
    async fn build(plan: &Plan, folder: &std::path::Path, tasks: &Tasks) -> Result<Self> {
        let mut house = House::plan(folder, None)?;
        house.set("CXMPUTE_SERVER_WORKERS", "1");
        house.set("CXMPUTE_SERVER_CONNECTIONS_PER_ADDRESS", "60000");
        house.set("CXMPUTE_LOG_LEVEL", "warn");
        house.start_gateway().await?;
        cost::pin(house.gateway()?.pid(), plan.proxy_core)?;
        let user = house.create_user("bench@example.com")?;
        let holder = house.create_user("holder@example.com")?;
        for account in [&user, &holder] {
            house.grant_credits(account, 1_000_000_000_000)?;
        }
        let key = house.create_key(&user)?;
        let mut stage = Self { key, user, holder, house, nodes: 0, tasks: tasks.clone() };
        stage.staff(NODES).await?;
        stage.ask_once().await?;
        Ok(stage)
    }

    /// Starts stand-ins until there are so many, and waits until they get work.
    async fn staff(&mut self, nodes: usize) -> Result<()> {
        while self.nodes < nodes {
            let owner = self.house.create_user(&format!("owner{}@example.com", self.nodes))?;
            let grant = self.house.enrol_grant(&owner)?;
            node::start(self.house.address, &format!("stand-in-{}", self.nodes), &grant, &self.tasks).await?;
            self.nodes += 1;
        }
        self.house.routable(CHAT_MODEL, self.nodes as u64).await
    }

    async fn ask_once(&self) -> Result<()> {
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
        Ok(())
    }

    async fn memory(&mut self, plan: &Plan, gateway: &Peer, idle: u64) -> Result<Memory> {
        let key = self.house.create_key(&self.holder)?;
        self.staff(plan.open_streams.div_ceil(node::SLOTS as usize) + 1).await?;
        let before = cost::resident_bytes(gateway.pid)?;
        let script = Script { events: 1, pace_ms: 0, hold: true };
        let held = hold(&Question::chat(gateway.address, &key, script, true), plan.open_streams).await?;
        let with_streams = cost::resident_bytes(gateway.pid)?;
        let streams = held.len();
        drop(held);
        Ok(Memory { idle, before, with_streams, streams })
    }

    /// Ends the gateway when every request is resolved, and reads its books.
    async fn close(&mut self, plan: &Plan, answers: u64) -> Result<Books> {
        books::settled(&self.house).await?;
        let commits = books::commits(&self.house).await;
        let ledger = self.house.check_ledger()?;
        self.house.gateway()?.stop(Duration::from_secs(30)).await?;
        books::read(&self.house, &self.user, answers, plan.open_streams, ledger, commits).await
    }

    /// Starts the gateway again on the full database; the stand-ins come back by themselves.
    async fn restart(&mut self) -> Result<(Duration, Duration)> {
        let began = Instant::now();
        let ready = self.house.start_gateway().await?;
        cxmpute_e2e::ground::until("an answer after the restart", Duration::from_secs(30), async || {
            Ok(self.ask_once().await.ok())
        })
        .await?;
        Ok((ready, began.elapsed()))
    }
}
