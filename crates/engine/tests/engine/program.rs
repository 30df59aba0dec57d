//! Starting and stopping the program.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;

use crate::client::{Address, Client};

/// Longest wait for anything that should take milliseconds.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The name under which the model of this repository is served.
pub const TINY: &str = "cxm-tiny";

/// The model of this repository.
pub fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/tiny-model/cxm-tiny-q8.gguf")
}

/// The tokens of an answer, without how many of them were known from an earlier one.
pub fn counts(answer: &serde_json::Value) -> [Option<u64>; 3] {
    ["prompt_tokens", "completion_tokens", "total_tokens"].map(|name| answer["usage"][name].as_u64())
}

/// A running engine; killed when dropped.
pub struct Program {
    child: Child,
    directory: TempDir,
    address: Address,
}

/// A command that is not started yet, with a socket in a directory of its own.
pub fn command(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cxmpute-engine"));
    command.arg("--listen").arg(format!("unix:{}", directory.join("engine.sock").display()));
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command
}

impl Program {
    /// Starts the engine with the model of this repository and waits until it is ready.
    pub async fn start(flags: &[&str]) -> Self {
        let model = format!("{TINY}={}", tiny_model().display());
        Self::start_with(&[&["--model", &model], flags].concat()).await
    }

    /// Starts the engine with flags and waits until it is ready.
    pub async fn start_with(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let child = command(directory.path()).args(flags).spawn().unwrap();
        let address = Address::Unix(directory.path().join("engine.sock"));
        let mut program = Self { child, directory, address };
        program.wait_until_ready().await;
        program
    }

    /// Starts the engine on a port with a secret, and reads the port from its log.
    pub async fn start_on_port(secret: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("secret");
        std::fs::write(&file, secret).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_cxmpute-engine"))
            .args(["--listen", "127.0.0.1:0", "--model", &format!("{TINY}={}", tiny_model().display())])
            .arg("--secret-file")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The reader goes after the address: an engine whose log nobody reads goes on.
        let log = BufReader::new(child.stderr.take().unwrap());
        let address = log.lines().map(Result::unwrap).find_map(|line| {
            line.split_once("address=").map(|(_, rest)| rest.split(' ').next().unwrap().parse().unwrap())
        });
        let mut program = Self { child, directory, address: Address::Tcp(address.unwrap()) };
        program.wait_until_ready().await;
        program
    }

    async fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the engine ended at its start: {status}");
            }
            if let Ok(client) = Client::connect(&self.address).await
                && client.get("/health").await.status == 200
            {
                return;
            }
            assert!(Instant::now() < deadline, "the engine is not ready");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A fresh connection.
    pub async fn connect(&self) -> Client {
        Client::connect(&self.address).await.unwrap()
    }

    /// The directory with the socket.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Sends SIGTERM.
    pub fn terminate(&self) {
        let done = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(done.success());
    }

    /// Closes the engine's standard input.
    pub fn close_stdin(&mut self) {
        drop(self.child.stdin.take());
    }

    /// Waits for the end of the process.
    pub async fn ended(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the engine does not end");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until `/slots` shows this many busy slots and waiting requests.
    pub async fn wait_for_load(&self, busy: u64, queued: u64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let load = self.connect().await.get("/slots").await.json();
            if load["busy"] == busy && load["queued"] == queued {
                return;
            }
            assert!(Instant::now() < deadline, "load is {load}, expected {busy} busy and {queued} queued");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
