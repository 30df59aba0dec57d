//! What a process costs, read from `/proc`.

use std::fs::read_to_string;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

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
///
/// # Errors
/// There is no such process.
pub fn resident_bytes(pid: u32) -> Result<u64> {
    let status = read_to_string(format!("/proc/{pid}/status")).with_context(|| format!("process {pid}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
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
