//! The socket that `status`, `services`, `pause`, `resume` and `stop` talk to: one JSON line asks, one JSON line answers. It lies in a
//! private directory; no other user can reach it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use cxmpute_runtime::Tasks;
use cxmpute_runtime::lifecycle::OwnedTask;
use cxmpute_wire::control::{NodeStatus, ObservedService};
use cxmpute_wire::{Epoch, Generation, ProvisionId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::agent::NodeView;
use crate::owner::Pause;
use crate::place;
use crate::standing::{Facts, Reason, why_idle};

/// Longest question that is read.
const QUESTION_LIMIT_BYTES: u64 = 4096;
/// Time for one exchange.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What can be asked of a running node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    /// Everything about it.
    Status,
    /// Finish the work and end.
    Stop,
    /// Take no new work.
    Pause(Pause),
    /// Take work again.
    Resume,
}

/// A running node's answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StatusAnswer {
    /// True; a node that does not run answers nothing.
    pub running: bool,
    /// Process id of the node.
    pub pid: u32,
    /// The provision.
    pub provision_id: ProvisionId,
    /// Whether a tunnel is up.
    pub connected: bool,
    /// Epoch of the last tunnel.
    pub epoch: Epoch,
    /// Generation of the last plan.
    pub generation: Generation,
    /// The server's word on this node.
    pub server: Option<NodeStatus>,
    /// What runs.
    pub services: Vec<ObservedService>,
    /// Requests being worked on.
    pub in_flight: u32,
    /// Whether it is leaving.
    pub draining: bool,
    /// The one reason for not earning now; absent while work can come.
    pub reason: Option<Reason>,
}

/// What the node would say of itself now.
#[must_use]
pub fn answer(view: &NodeView) -> StatusAnswer {
    let seen = view.seen.borrow().clone();
    let (generation, services) = view.services.observed();
    let draining = view.services.is_draining();
    let facts = Facts {
        draining,
        resting: view.services.resting().map(|rest| rest.cause),
        yielding: view.services.is_yielding(),
        connected: seen.connected,
        trouble: seen.trouble.as_deref(),
        server: seen.status.as_ref(),
        services: &services,
    };
    StatusAnswer {
        running: true,
        pid: std::process::id(),
        provision_id: view.provision_id.clone(),
        connected: seen.connected,
        epoch: seen.epoch,
        generation,
        reason: why_idle(facts),
        in_flight: services.iter().map(|service| service.in_flight).sum(),
        server: seen.status,
        services,
        draining,
    }
}

/// An open socket; dropping it closes it and removes its file.
#[derive(Debug)]
pub struct LocalSocket {
    path: PathBuf,
    _task: OwnedTask,
}

impl Drop for LocalSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Opens the socket. A second node in the same directory is refused.
///
/// # Errors
/// Another node runs in this directory, or the socket cannot be made.
pub async fn open(data_dir: &Path, view: NodeView, tasks: &Tasks) -> Result<LocalSocket> {
    let path = place::node_socket(data_dir);
    if let Some(dir) = path.parent() {
        place::make_private(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    if let Ok(other) = ask(data_dir, Question::Status).await {
        bail!(
            "A node already runs in {} (pid {}); see it with: cxmpute-provider status",
            data_dir.display(),
            other.pid
        );
    }
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("opening {}", path.display()))?;
    let own = tasks.clone();
    let task = tasks.spawn_owned("local-socket", async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let (view, tasks) = (view.clone(), own.clone());
                    own.spawn("local-question", async move {
                        let _ = tokio::time::timeout(TIMEOUT, reply(stream, &view, &tasks)).await;
                    });
                }
                // No free file descriptors: less of a pause would burn a core.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    Ok(LocalSocket { path, _task: task })
}

async fn reply(stream: UnixStream, view: &NodeView, tasks: &Tasks) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(QUESTION_LIMIT_BYTES).read_line(&mut line).await?;
    let question: Question = serde_json::from_str(&line)?;
    match question {
        Question::Pause(pause) => view.pause(Some(pause))?,
        Question::Resume => view.pause(None)?,
        Question::Status | Question::Stop => {}
    }
    let mut text = serde_json::to_string(&answer(view))?;
    text.push('\n');
    stream.get_mut().write_all(text.as_bytes()).await?;
    if question == Question::Stop {
        tracing::info!("asked to stop by `cxmpute-provider stop`");
        tasks.soft().cancel();
    }
    Ok(())
}

/// Asks the node that runs in a directory.
///
/// # Errors
/// None runs there.
pub async fn ask(data_dir: &Path, question: Question) -> Result<StatusAnswer> {
    let exchange = async {
        let mut stream = BufReader::new(UnixStream::connect(place::node_socket(data_dir)).await?);
        let mut line = serde_json::to_string(&question)?;
        line.push('\n');
        stream.get_mut().write_all(line.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_line(&mut answer).await?;
        Ok::<_, anyhow::Error>(serde_json::from_str(&answer)?)
    };
    let answered = tokio::time::timeout(TIMEOUT, exchange).await;
    answered.context("no answer within 5 s").and_then(|answer| answer).with_context(|| {
        format!("No node runs in {}; start it with: cxmpute-provider start", data_dir.display())
    })
}
