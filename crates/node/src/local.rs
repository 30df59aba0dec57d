//! The socket that `status`, `services` and `stop` talk to: one JSON line asks, one JSON line answers. It lies in the
//! private data directory; no other user can reach it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_runtime::Tasks;
use cxmpute_wire::control::{NodeStatus, ObservedService};
use cxmpute_wire::{Epoch, Generation, ProvisionId};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use crate::agent::Running;
use crate::engines::builtin::socket_path;

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
}

/// A running node's answer.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct StatusAnswer {
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
    /// Whether it is leaving.
    pub draining: bool,
    /// The one reason for not earning now; absent while work can come.
    pub reason: Option<String>,
}

/// Path of the socket of a data directory.
#[must_use]
pub fn path(data_dir: &Path) -> PathBuf {
    socket_path(data_dir, "node")
}

/// What the node would say of itself now.
#[must_use]
pub fn answer(running: &Running, provision_id: &ProvisionId) -> StatusAnswer {
    let seen = running.seen();
    let services = running.observed();
    let draining = running.is_draining();
    let reason = if draining {
        Some("draining: the node is leaving".to_owned())
    } else if !seen.connected {
        Some(format!("tunnel_down: {}", seen.trouble.as_deref().unwrap_or("dialling")))
    } else if let Some(reason) = seen.status.as_ref().and_then(|status| status.reason.clone()) {
        Some(reason)
    } else if seen.status.is_none() {
        Some("starting: waiting for the gateway's first word".to_owned())
    } else {
        None
    };
    StatusAnswer {
        pid: std::process::id(),
        provision_id: provision_id.clone(),
        connected: seen.connected,
        epoch: seen.epoch,
        generation: seen.generation,
        server: seen.status,
        services,
        draining,
        reason,
    }
}

/// Opens the socket and answers until the process stops. A second node in the same directory is refused.
///
/// # Errors
/// Another node runs in this directory, or the socket cannot be made.
pub async fn open(
    data_dir: &Path,
    running: Arc<Running>,
    provision_id: ProvisionId,
    tasks: &Tasks,
) -> Result<()> {
    let path = path(data_dir);
    if let Some(dir) = path.parent() {
        crate::identity::prepare(dir)?;
    }
    if ask(data_dir, Question::Status).await.is_ok() {
        anyhow::bail!("A node already runs in {}; see it with: cxmpute-provider status", data_dir.display());
    }
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).with_context(|| format!("opening {}", path.display()))?;
    let own = tasks.clone();
    tasks.spawn("local-socket", async move {
        let hard = own.hard();
        let soft = own.soft();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = hard.cancelled() => break,
                // During the drain the socket stays silent: asking again tells that the node is on its way out.
                () = soft.cancelled() => break,
            };
            let Ok((stream, _)) = accepted else { continue };
            let (running, provision_id, tasks) = (running.clone(), provision_id.clone(), own.clone());
            own.spawn("local-question", async move {
                let _ = tokio::time::timeout(TIMEOUT, reply(stream, &running, &provision_id, &tasks)).await;
            });
        }
        let _ = std::fs::remove_file(&path);
    });
    Ok(())
}

async fn reply(
    stream: UnixStream,
    running: &Running,
    provision_id: &ProvisionId,
    tasks: &Tasks,
) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    (&mut stream).take(QUESTION_LIMIT_BYTES).read_line(&mut line).await?;
    let question: Question = serde_json::from_str(&line)?;
    let mut text = serde_json::to_string(&answer(running, provision_id))?;
    text.push('\n');
    stream.get_mut().write_all(text.as_bytes()).await?;
    if question == Question::Stop {
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
        let mut stream = BufReader::new(UnixStream::connect(path(data_dir)).await?);
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
