//! What a process costs, read from `/proc`.

use std::fs::read_to_string;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Clock ticks per second of `/proc/PID/stat`; fixed at 100 by the kernel's interface to user space.
const TICKS_PER_SECOND: u64 = 100;

/// CPU time of a process with all its threads, user and system.
///
/// # Errors
/// There is no such process.
pub fn cpu(pid: u32) -> Result<Duration> {
    let stat = read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    // The name in parentheses may hold anything; the fields begin after its last parenthesis.
    let (_, rest) = stat.rsplit_once(')').context("the form of /proc/PID/stat")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks =
        |at: usize| -> Result<u64> { Ok(fields.get(at).context("a field of /proc/PID/stat")?.parse()?) };
    // Fields 14 and 15 of the manual page: utime and stime.
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 1000 / TICKS_PER_SECOND))
}

/// Memory of a process that is in RAM, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All of it (RSS).
    pub resident: u64,
    /// Its share, where pages are shared with other processes (PSS).
    pub proportional: u64,
    /// What is backed by no file.
    pub anonymous: u64,
}

impl Memory {
    /// The larger of each part.
    pub fn or_more(self, other: Self) -> Self {
        Self {
            resident: self.resident.max(other.resident),
            proportional: self.proportional.max(other.proportional),
            anonymous: self.anonymous.max(other.anonymous),
        }
    }

    /// For programs.
    pub fn to_json(self) -> Value {
        let Self { resident, proportional, anonymous } = self;
        json!({"resident_bytes": resident, "proportional_bytes": proportional, "anonymous_bytes": anonymous})
    }
}

/// Memory of a process now.
///
/// # Errors
/// There is no such process.
pub fn memory(pid: u32) -> Result<Memory> {
    let rollup =
        read_to_string(format!("/proc/{pid}/smaps_rollup")).with_context(|| format!("process {pid}"))?;
    let field = |name: &str| -> Result<u64> {
        let line =
            rollup.lines().find_map(|line| line.strip_prefix(name)).with_context(|| name.to_owned())?;
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
        Ok(kib * 1024)
    };
    Ok(Memory { resident: field("Rss:")?, proportional: field("Pss:")?, anonymous: field("Anonymous:")? })
}

/// Keeps a process, with all its threads, on one core.
///
/// # Errors
/// `taskset` is missing or refuses.
pub fn pin(pid: u32, core: usize) -> Result<()> {
    let done = Command::new("taskset")
        .args(["--all-tasks", "--cpu-list", "--pid", &core.to_string(), &pid.to_string()])
        .output()
        .context("taskset (Debian package util-linux)")?;
    ensure!(done.status.success(), "taskset: {}", String::from_utf8_lossy(&done.stderr).trim());
    Ok(())
}

/// Samples per second that `perf` takes of the gateway: odd, so that it does not keep step with anything.
const SAMPLES_PER_SECOND: &str = "499";

/// A running `perf record`. Its own work is done on the core of the load.
pub struct Recording {
    perf: Child,
    file: PathBuf,
}

impl Recording {
    /// Records a process into a new file in `folder`.
    ///
    /// # Errors
    /// There is no `perf`.
    pub fn start(pid: u32, folder: &Path) -> Result<Self> {
        let file = (1..)
            .map(|number| folder.join(format!("gateway-{number}.perf.data")))
            .find(|file| !file.exists())
            .context("a free name for the recording")?;
        let perf = Command::new("perf")
            .args(["record", "--freq", SAMPLES_PER_SECOND, "--call-graph", "dwarf,16384"])
            .args(["--pid", &pid.to_string(), "--output"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(file.with_extension("log"))?)
            .spawn()
            .context("perf (Debian package linux-perf)")?;
        Ok(Self { perf, file })
    }

    /// Ends the recording and says where it is.
    ///
    /// # Errors
    /// `perf` wrote nothing.
    pub fn end(mut self) -> Result<()> {
        let perf = nix::unistd::Pid::from_raw(i32::try_from(self.perf.id())?);
        nix::sys::signal::kill(perf, nix::sys::signal::Signal::SIGINT)?;
        self.perf.wait()?;
        let log = self.file.with_extension("log");
        ensure!(
            self.file.exists(),
            "perf recorded nothing: {}",
            read_to_string(&log).unwrap_or_default().trim()
        );
        crate::say(&format!("Recorded: perf report --no-children --input {}", self.file.display()));
        Ok(())
    }
}
