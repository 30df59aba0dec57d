//! One list of promises for every engine (node.md section 7): each row of [`rows`], [`tools`] and [`found`] goes through all of it. A row says what
//! the engine needs and how it is asked; what it must do stands here, once.

pub mod owner;
pub mod programs;

mod found;
mod rows;
mod tools;
mod walls;

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_node::NodeConfig;
use cxmpute_node::diagnose::gpu::Cards;
use cxmpute_tunnel::{WorkError, WorkPath, WorkStream};
use cxmpute_wire::Code;
use cxmpute_wire::control::{DesiredService, GpuInfo, ObservedService, ServiceState};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::gateway::{Gateway, Running, Tunnel, soon};
pub use walls::Walls;

/// Longest between the stop and the end of an engine: the grace of the contract, and the time to notice.
const STOP_WITHIN: Duration = Duration::from_secs(15);

/// Changes a node's configuration.
pub type Configure = Box<dyn Fn(&mut NodeConfig)>;

/// The same, with a program in a folder of its own.
pub type StandIn = Box<dyn Fn(&mut NodeConfig, &Path)>;

/// One engine of the suite.
pub struct Row {
    /// Its name in reports.
    pub engine: String,
    /// What the plan says.
    pub service: DesiredService,
    /// Sets the node up for it.
    pub configure: Configure,
    /// Accelerators of the node.
    pub cards: Vec<GpuInfo>,
    /// Work it does.
    pub path: WorkPath,
    /// A short piece of work, and the test of its answer.
    pub work: Bytes,
    pub is_good: fn(&[u8]) -> bool,
    /// Work that goes on until somebody hangs up, or at least for long.
    pub long: Bytes,
    /// Work of another kind.
    pub other: WorkPath,
    /// Requests that are taken at a time; one more is refused.
    pub capacity: u32,
    /// How its work is held up, so that the capacity can be seen.
    pub hold: Hold,
    /// How it lives.
    pub life: Life,
}

/// How work is held up.
pub enum Hold {
    /// Its process is stopped for a while.
    Stop,
    /// The same, where the reports name none.
    Process(Box<dyn Fn() -> u32>),
    /// The long work lasts long enough.
    Long,
}

/// How an engine lives.
pub enum Life {
    /// The node keeps it running; its process stands in the reports.
    Server {
        /// Sets the node up with one that fails to start, saying [`REASON`], and with one that starts only once the
        /// file `go` is in the folder. Absent for this program itself, which no other can stand in for.
        stand_ins: Option<(StandIn, StandIn)>,
        /// What it may not see and do.
        walls: Walls,
    },
    /// A program that runs once for a request; its file's name.
    Tool(&'static str),
    /// Its owner runs it; the node has no process of it. What makes it go away, and come back, and what must be true of
    /// it in the end.
    Owner { leave: Box<dyn Fn()>, come: Box<dyn Fn()>, unharmed: Box<dyn Fn() -> bool> },
}

/// What a failing start says.
pub const REASON: &str = "no such device";

/// A node with one engine, and the gateway's end of its tunnel.
struct Stage<'a> {
    row: &'a Row,
    node: Running,
    tunnel: Tunnel,
    _gateway: Gateway,
}

impl<'a> Stage<'a> {
    async fn open(row: &'a Row, change: impl FnOnce(&mut NodeConfig)) -> Self {
        let mut gateway = Gateway::start().await;
        let dir = tempfile::tempdir().unwrap();
        let mut config = crate::gateway::config(&gateway, dir.path().to_owned());
        (row.configure)(&mut config);
        change(&mut config);
        let mut deps = Running::deps();
        if !row.cards.is_empty() {
            deps.cards = Cards::Given(row.cards.clone());
        }
        let node = Running::with(config, deps).keeping(dir);
        let mut tunnel = gateway.tunnel().await;
        tunnel.publish(vec![row.service.clone()]).await;
        Self { row, node, tunnel, _gateway: gateway }
    }

    fn id(&self) -> String {
        self.row.service.service_id.to_string()
    }

    async fn until(&mut self, state: ServiceState) -> ObservedService {
        let id = self.id();
        self.tunnel.until(&id, state).await
    }

    fn ask(&self, body: &Bytes) -> WorkStream {
        let mut head = self.tunnel.head(&self.id(), self.row.path);
        head.max_bytes = 8 << 20;
        self.tunnel.link.open(&head, body.clone()).unwrap()
    }

    /// The short piece of work is done well.
    async fn works(&self) {
        let mut stream = self.ask(&self.row.work);
        soon(stream.accepted()).await.unwrap();
        let (answer, chunks) = drain(&mut stream).await;
        let shown = String::from_utf8_lossy(&answer);
        assert!((self.row.is_good)(&answer), "{}: {shown}", self.row.engine);
        if self.row.path.is_stream() {
            assert!(shown.ends_with("data: [DONE]\n\n") && chunks > 1, "{}: {shown}", self.row.engine);
        }
    }

    /// Work that nobody wants any more is left.
    async fn cancels(&self) {
        let mut stream = self.ask(&self.row.long);
        match &self.row.life {
            Life::Tool(program) => {
                let running =
                    async { until(|| !children(program).is_empty(), "the program never ran").await };
                tokio::select! {
                    () = running => {}
                    _ = stream.accepted() => panic!("{}: the long work is too short", self.row.engine),
                }
            }
            Life::Server { .. } | Life::Owner { .. } => {
                soon(stream.accepted()).await.unwrap();
                if self.row.path.is_stream() {
                    soon(stream.chunk()).await.unwrap().unwrap();
                }
            }
        }
        drop(stream);
        self.is_idle().await;
        match &self.row.life {
            Life::Tool(program) => {
                let program = *program;
                until(|| children(program).is_empty(), "the program still runs").await;
            }
            // What is left makes room for the next, long before it would have ended.
            Life::Server { .. } | Life::Owner { .. } => self.works().await,
        }
    }

    async fn is_idle(&self) {
        until(|| self.node.view.services.in_flight() == 0, "work is left over").await;
    }

    /// One request more than it takes is refused, and the others are served.
    async fn refuses_what_it_has_no_room_for(&self, pid: Option<u32>) {
        let held = match &self.row.hold {
            Hold::Stop => pid,
            Hold::Process(pid) => Some(pid()),
            Hold::Long => None,
        };
        if let Some(pid) = held {
            signal(pid, Signal::SIGSTOP);
        }
        let body = if held.is_some() { &self.row.work } else { &self.row.long };
        let mut streams: Vec<WorkStream> = (0..self.row.capacity).map(|_| self.ask(body)).collect();
        until(|| self.node.view.services.in_flight() == self.row.capacity, "not all are taken").await;
        let refused = soon(self.ask(body).accepted()).await;
        if let Some(pid) = held {
            signal(pid, Signal::SIGCONT);
        }
        assert_eq!(code(refused.err()), Some(Code::CapacityFull), "{}", self.row.engine);
        if held.is_some() {
            for stream in &mut streams {
                soon(stream.accepted()).await.unwrap();
                let (answer, _) = drain(stream).await;
                assert!((self.row.is_good)(&answer), "{}", String::from_utf8_lossy(&answer));
            }
        }
        drop(streams);
        self.is_idle().await;
    }

    /// Paths of other work lead nowhere.
    async fn does_no_other_work(&self) {
        let head = self.tunnel.head(&self.id(), self.row.other);
        let mut stream = self.tunnel.link.open(&head, self.row.work.clone()).unwrap();
        let refused = soon(stream.accepted()).await;
        assert_eq!(code(refused.err()), Some(Code::InvalidParameter), "{}", self.row.engine);
    }

    /// It is gone in time, and nothing of it is left.
    async fn ends(self, pid: Option<u32>) {
        let begun = tokio::time::Instant::now();
        // Sockets, rooms and tasks are looked at there.
        self.node.stop().await;
        assert!(begun.elapsed() < STOP_WITHIN, "{}: {:?}", self.row.engine, begun.elapsed());
        if let Some(pid) = pid {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{}: {pid} still runs", self.row.engine);
        }
        if let Life::Tool(program) = self.row.life {
            assert_eq!(children(program), Vec::<u32>::new());
        }
    }
}

/// All promises, one after another.
pub async fn conforms(row: Row) {
    let mut stage = Stage::open(&row, |_| {}).await;
    let ready = stage.until(ServiceState::Ready).await;
    assert_eq!(ready.engine, row.engine);
    assert_eq!(ready.pid.is_some(), matches!(row.life, Life::Server { .. }), "{ready:?}");
    stage.works().await;
    stage.does_no_other_work().await;
    stage.cancels().await;
    stage.refuses_what_it_has_no_room_for(ready.pid).await;
    match &row.life {
        Life::Server { walls, .. } => {
            let pid = ready.pid.unwrap();
            walls.hold(pid, &stage.node.config.data_dir);
            signal(pid, Signal::SIGKILL);
            let again = comes_back(&mut stage, pid).await;
            stage.works().await;
            stage.ends(Some(again)).await;
        }
        Life::Tool(_) => stage.ends(None).await,
        Life::Owner { leave, come, unharmed } => {
            leave();
            // The next piece of work finds it out.
            until(|| stage.node.view.services.in_flight() == 0, "work is left over").await;
            let mut stream = stage.ask(&row.work);
            assert_eq!(code(soon(stream.accepted()).await.err()), Some(Code::NotReady));
            stage.until(ServiceState::Loading).await;
            come();
            stage.until(ServiceState::Ready).await;
            stage.works().await;
            stage.ends(None).await;
            assert!(unharmed(), "{}: something was done to the owner's server", row.engine);
        }
    }
    if let Life::Server { stand_ins: Some((failing, waiting)), .. } = &row.life {
        says_why_it_failed(&row, failing).await;
        loads_until_it_answers(&row, waiting).await;
    }
}

async fn comes_back(stage: &mut Stage<'_>, before: u32) -> u32 {
    soon(async {
        loop {
            let ready = stage.until(ServiceState::Ready).await;
            match ready.pid {
                Some(pid) if pid != before => return pid,
                _ => {}
            }
        }
    })
    .await
}

async fn says_why_it_failed(row: &Row, failing: &dyn Fn(&mut NodeConfig, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = Stage::open(row, |config| failing(config, dir.path())).await;
    let failed = stage.until(ServiceState::Failed).await;
    assert_eq!(failed.code, Some(Code::EngineFailed), "{failed:?}");
    let detail = failed.detail.unwrap();
    let (_, log) = detail.split_once("its log is ").unwrap();
    let says = || std::fs::read_to_string(log).unwrap_or_default().contains(REASON);
    until(says, "the log does not say why").await;
    stage.ends(None).await;
}

async fn loads_until_it_answers(row: &Row, waiting: &dyn Fn(&mut NodeConfig, &Path)) {
    let dir = tempfile::tempdir().unwrap();
    let mut stage = Stage::open(row, |config| waiting(config, dir.path())).await;
    let pid = soon(async {
        loop {
            if let Some(pid) = stage.until(ServiceState::Loading).await.pid {
                return pid;
            }
        }
    })
    .await;
    let refused = soon(stage.ask(&row.work).accepted()).await;
    assert_eq!(code(refused.err()), Some(Code::NotReady));
    // The next heartbeats still say so, whatever wakes the node.
    for _ in 0..3 {
        stage.tunnel.publish(vec![row.service.clone()]).await;
        let heartbeat = stage.tunnel.heartbeat().await;
        let seen = heartbeat.services.iter().find(|seen| seen.service_id == row.service.service_id).unwrap();
        assert_eq!(seen.state, ServiceState::Loading);
    }
    std::fs::write(dir.path().join("go"), "").unwrap();
    let ready = stage.until(ServiceState::Ready).await;
    assert_eq!(ready.pid, Some(pid));
    stage.works().await;
    stage.ends(Some(pid)).await;
}

/// Everything that a stream brings, and in how many parts.
async fn drain(stream: &mut WorkStream) -> (Vec<u8>, usize) {
    let (mut all, mut chunks) = (Vec::new(), 0);
    while let Some(chunk) = soon(stream.chunk()).await {
        all.extend_from_slice(&chunk.unwrap());
        chunks += 1;
    }
    (all, chunks)
}

fn code(error: Option<WorkError>) -> Option<Code> {
    match error {
        Some(WorkError::Refused { code, .. }) => code,
        other => panic!("not refused: {other:?}"),
    }
}

async fn until(mut holds: impl FnMut() -> bool, otherwise: &str) {
    let waited = tokio::time::timeout(crate::gateway::LONG, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("{otherwise}"));
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

/// Our own children that run this program.
fn children(program: &str) -> Vec<u32> {
    let own = std::process::id();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let Some((name, rest)) = stat.rsplit_once(") ") else { return false };
            let fields: Vec<&str> = rest.split(' ').collect();
            // The kernel keeps 15 bytes of a name; a zombie waits for us.
            name.ends_with(&program[..program.len().min(15)])
                && fields[1] == own.to_string()
                && fields[0] != "Z"
        })
        .collect()
}
