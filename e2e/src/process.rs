//! Real processes with their output in files: started from `CXMPUTE_BIN_DIR`, killed by pid, never left behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::ground::until;
use crate::settings;

/// A running program. Dropping it kills the program and its group: engines must not outlive a test.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    /// Standard error of the program.
    pub log: PathBuf,
    /// Standard output of the program.
    pub output: PathBuf,
}

impl Program {
    /// Starts `name` with its output in `folder/label.{out,log}`.
    ///
    /// # Errors
    /// The program is missing or cannot start.
    pub fn start(
        name: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        folder: &Path,
        label: &str,
    ) -> Result<Self> {
        let log = folder.join(format!("{label}.log"));
        let output = folder.join(format!("{label}.out"));
        let append = |path: &Path| File::options().create(true).append(true).open(path);
        let mut command = Command::new(settings::program(name)?);
        command.args(arguments).stdin(Stdio::null()).stdout(append(&output)?).stderr(append(&log)?);
        for (key, value) in environment {
            command.env(key, value);
        }
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name: name.to_owned(), child, log, output })
    }

    /// The process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// `SIGKILL`, at once, and reaps it.
    ///
    /// # Errors
    /// The process could not be reaped.
    pub fn kill_hard(&mut self) -> Result<()> {
        self.child.kill().with_context(|| format!("killing {}", self.name))?;
        self.child.wait().with_context(|| format!("reaping {}", self.name))?;
        Ok(())
    }

    /// `SIGTERM`, then waits for the end.
    ///
    /// # Errors
    /// It did not end in time.
    pub async fn stop(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let _ = kill(self.nix_pid()?, Signal::SIGTERM);
        until(&format!("the end of {}", self.name), deadline, async || Ok(self.child.try_wait()?)).await
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The log so far.
    #[must_use]
    pub fn logged(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    fn nix_pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id()).context("a pid beyond i32")?))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Ok(pid) = self.nix_pid() {
            let _ = nix::sys::signal::killpg(pid, Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// Runs a program to its end and gives its standard output.
///
/// # Errors
/// A status other than 0, with what the program said.
pub fn run(name: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<String> {
    let mut command = Command::new(settings::program(name)?);
    command.args(arguments).stdin(Stdio::null());
    for (key, value) in environment {
        command.env(key, value);
    }
    let done = command.output().with_context(|| format!("running {name}"))?;
    if !done.status.success() {
        bail!(
            "{name} {arguments:?} ended with {}: {}",
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(String::from_utf8(done.stdout)?)
}

/// The pids of the children of a process, from `/proc`.
#[must_use]
pub fn children(parent: u32) -> Vec<u32> {
    let listed =
        std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).unwrap_or_default();
    let mut found: Vec<u32> = listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    if let Ok(tasks) = std::fs::read_dir(format!("/proc/{parent}/task")) {
        for task in tasks.flatten() {
            let listed = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(listed.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// The argument vector of a process, as `ps` would show it.
#[must_use]
pub fn arguments(pid: u32) -> String {
    std::fs::read(format!("/proc/{pid}/cmdline"))
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .unwrap_or_default()
}
