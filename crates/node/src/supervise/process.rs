//! One engine process: own process group, no shell, a small environment, output into a capped log. It holds the read
//! end of a pipe as standard input and ends when we do, so a killed node leaves no orphan.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use cxmpute_runtime::Tasks;
use cxmpute_wire::Code;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{self, ChildStdin};

use super::running::Ending;
use super::{log, oom};
use crate::engines::Child;
use crate::place;

/// Variables of ours that every engine may see; a profile names the others.
const ENVIRONMENT: [&str; 6] = ["PATH", "HOME", "LANG", "TMPDIR", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH"];

/// A running engine. Dropping it kills its whole process group and removes its socket and its room.
#[derive(Debug)]
pub struct Process {
    child: process::Child,
    pid: u32,
    /// Closing it tells the engine that we are gone.
    _stdin: Option<ChildStdin>,
    /// What it leaves in the file system.
    socket: Option<PathBuf>,
    room: Option<PathBuf>,
    /// How often the system had killed for lack of memory when it started.
    kills: Option<u64>,
    killed: AtomicBool,
}

impl Process {
    /// Starts an engine behind its sandbox.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(engine: &Child, log: PathBuf, tasks: &Tasks) -> Result<Self> {
        if let Some(room) = &engine.room {
            place::make_private(room).with_context(|| room.display().to_string())?;
        }
        let mut command = engine.sandbox.command(&engine.program);
        command.args(&engine.arguments).env_clear().process_group(0).kill_on_drop(true);
        for name in ENVIRONMENT.iter().chain(engine.server.profile.environment) {
            if let Some(value) = cxmpute_runtime::config::env_var(name) {
                command.env(name, value);
            }
        }
        command.envs(engine.environment.iter().map(|(name, value)| (name, value.expose())));
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("{} cannot be started", engine.program.display()))?;
        let pid = child.id().context("the engine ended at once")?;
        if let Some(stderr) = child.stderr.take() {
            tasks.spawn("engine-log", log::write(stderr, log));
        }
        let stdin = child.stdin.take();
        Ok(Self {
            child,
            pid,
            _stdin: stdin,
            socket: engine.socket.clone(),
            room: engine.room.clone(),
            kills: oom::kills(),
            killed: AtomicBool::new(false),
        })
    }

    /// Its process id.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end; gives how it ended. May be dropped while it waits and asked again.
    pub async fn ended(&mut self) -> Ending {
        match self.child.wait().await {
            Ok(status) => oom::ending(status, self.killed.load(Ordering::Relaxed), self.kills, oom::kills()),
            Err(error) => Ending { code: Code::EngineFailed, text: error.to_string() },
        }
    }

    /// Asks it to end.
    pub fn terminate(&self, politely: Signal) {
        self.signal(politely);
    }

    /// Ends it with its whole group.
    pub fn kill(&self) {
        self.killed.store(true, Ordering::Relaxed);
        self.signal(Signal::SIGKILL);
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
        self.kill();
        if let Some(socket) = &self.socket {
            let _ = std::fs::remove_file(socket);
        }
        if let Some(room) = &self.room {
            let _ = std::fs::remove_dir_all(room);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use cxmpute_runtime::Secret;
    use cxmpute_runtime::once::Sandbox;

    use super::*;
    use crate::engines::{Endpoint, Profile, Ready, Server, Stop};

    fn shell(script: &str, dir: &Path, tasks: &Tasks) -> Process {
        let profile = Profile {
            name: "shell",
            ready: Ready { path: "/health", status: 200, body: None },
            work: &[],
            stop: Stop::POLITE,
            environment: &["CARGO_MANIFEST_DIR"],
            tells_digest: false,
        };
        let server = Server {
            profile,
            endpoint: Endpoint::Unusable("a shell".to_owned()),
            model: String::new(),
            slots: 1,
            queue: 0,
            weight_bytes: 0,
            model_file: None,
        };
        let engine = Child {
            server,
            program: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            environment: vec![("ENGINE_KEY", Secret::new("sesame".to_owned()))],
            socket: None,
            room: None,
            sandbox: Sandbox::default(),
        };
        Process::start(&engine, dir.join("engine.log"), tasks).unwrap()
    }

    async fn gone(pid: i32) {
        tokio::time::timeout(Duration::from_secs(20), async {
            // A zombie that waits for its parent still has a pid; its state tells it from a living one.
            let alive = || {
                let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
                !stat.is_empty() && !stat.contains(") Z ")
            };
            while alive() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap_or_else(|_| panic!("process {pid} still runs"));
    }

    #[tokio::test]
    async fn dropping_a_process_ends_its_children_too() {
        let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
        let file = dir.path().join("child");
        let process = shell(&format!("sleep 1000 & echo $! > {}; wait", file.display()), dir.path(), &tasks);
        let child = tokio::time::timeout(Duration::from_secs(20), async {
            loop {
                match std::fs::read_to_string(&file).unwrap_or_default().trim().parse::<i32>() {
                    Ok(pid) => return pid,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        })
        .await
        .unwrap();
        drop(process);
        gone(child).await;
        assert!(tasks.stop(Duration::from_secs(20)).await.is_empty());
    }

    #[tokio::test]
    async fn an_engine_sees_no_secrets_and_the_end_of_its_owner() {
        let (dir, tasks) = (tempfile::tempdir().unwrap(), Tasks::new());
        let mut process = shell("env >&2; cat >/dev/null; echo input ended >&2", dir.path(), &tasks);
        process._stdin = None;
        assert!(process.ended().await.text.contains('0'));
        drop(process);
        assert!(tasks.stop(Duration::from_secs(20)).await.is_empty());
        let log = std::fs::read_to_string(dir.path().join("engine.log")).unwrap();
        assert!(log.contains("input ended") && log.contains("PATH="), "{log}");
        assert!(log.contains("CARGO_MANIFEST_DIR=") && log.contains("ENGINE_KEY=sesame"), "{log}");
        assert!(!log.contains("CARGO_PKG"), "{log}");
    }
}
