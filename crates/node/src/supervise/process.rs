//! One engine process: own process group, no shell, a small environment, output into a capped log. It holds the read
//! end of a pipe as standard input and ends when we do, so a killed node leaves no orphan.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_runtime::Tasks;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// Time between the polite signal and the hard one.
const GRACE: Duration = Duration::from_secs(10);
/// Size of one log; the previous start's log is kept beside it.
const LOG_LIMIT_BYTES: usize = 4 * 1024 * 1024;
/// Variables an engine may see.
const ENVIRONMENT: [&str; 7] =
    ["PATH", "HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "RAYON_NUM_THREADS"];

/// A running engine. Dropping it kills its whole process group.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pid: u32,
    /// Closing it tells the engine that we are gone.
    _stdin: Option<ChildStdin>,
}

impl Process {
    /// Starts a program.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(program: &Path, arguments: &[String], log: PathBuf, tasks: &Tasks) -> Result<Self> {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().process_group(0).kill_on_drop(true);
        for name in ENVIRONMENT {
            if let Some(value) = cxmpute_runtime::config::env_var(name) {
                command.env(name, value);
            }
        }
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        let pid = child.id().context("the engine ended at once")?;
        if let Some(stderr) = child.stderr.take() {
            tasks.spawn("engine-log", write_log(stderr, log));
        }
        let stdin = child.stdin.take();
        Ok(Self { child, pid, _stdin: stdin })
    }

    /// Its process id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end; gives how it ended.
    pub async fn ended(&mut self) -> String {
        self.child.wait().await.map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    /// Asks it to end, waits, then ends it with its whole group.
    pub async fn stop(mut self) {
        self.signal(Signal::SIGTERM);
        if tokio::time::timeout(GRACE, self.child.wait()).await.is_err() {
            tracing::warn!(pid = self.pid, "the engine did not end in time and is killed");
        }
    }

    fn signal(&self, signal: Signal) {
        if let Ok(pid) = i32::try_from(self.pid) {
            // An error means that the group is gone already.
            let _ = killpg(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// The log file of a service; a start moves the log of the start before to `.previous`.
async fn write_log(stderr: impl AsyncRead + Unpin, path: PathBuf) {
    let _ = tokio::fs::rename(&path, path.with_extension("previous.log")).await;
    let Ok(mut file) = tokio::fs::File::create(&path).await else { return };
    let mut lines = BufReader::new(stderr).split(b'\n');
    let mut written = 0usize;
    while let Ok(Some(mut line)) = lines.next_segment().await {
        // Past the limit the engine's output is still read, so that it never blocks.
        if written < LOG_LIMIT_BYTES {
            line.truncate(4096);
            line.push(b'\n');
            written += line.len();
            if written >= LOG_LIMIT_BYTES {
                line.extend_from_slice(b"(the log is full)\n");
            }
            let _ = file.write_all(&line).await;
            let _ = file.flush().await;
        }
    }
}
