//! What a program says of itself. A program of the owner may say nothing and never end, so it has a time and no more room
//! than it needs; the thread is free meanwhile.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use cxmpute_runtime::once::Group;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Most that is listened to, in bytes of each of its two outputs.
const SAID_BYTES: u64 = 1 << 20;
/// Longest that a program may take to say its version.
pub(super) const VERSION_TIME: Duration = Duration::from_secs(10);

/// What it printed, and what it complained of.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub output: String,
    pub complaints: String,
}

/// Runs a program with an empty environment and gives what it says, however it ends; nothing where it cannot be started or
/// says more than it should or longer than `time`.
pub(super) async fn told(program: &Path, arguments: &[&str], time: Duration) -> Told {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().process_group(0).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let Ok(mut child) = command.spawn() else { return Told::default() };
    let _group = Group::of(&child);
    let listen = async {
        let (output, complaints) = tokio::join!(read(child.stdout.take()), read(child.stderr.take()));
        Told { output, complaints }
    };
    let told = tokio::time::timeout(time, listen).await;
    told.inspect_err(|_| tracing::warn!(program = %program.display(), "it does not say what it is in time"))
        .unwrap_or_default()
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> String {
    let mut said = Vec::new();
    if let Some(from) = from {
        let _ = from.take(SAID_BYTES).read_to_end(&mut said).await;
    }
    String::from_utf8_lossy(&said).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(script: &str, time: Duration) -> Told {
        told(Path::new("/bin/sh"), &["-c", script], time).await
    }

    #[tokio::test]
    async fn a_program_is_heard_whatever_it_ends_with_and_not_for_ever() {
        let said = shell("echo one; echo two >&2; exit 3", Duration::from_secs(20)).await;
        assert_eq!((&*said.output, &*said.complaints), ("one\n", "two\n"));
        // The thread is the only one: a program that hangs must leave it to others.
        let dir = tempfile::tempdir().unwrap();
        let note = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! >{}; wait", note.display());
        let said = shell(&script, Duration::from_secs(2)).await;
        assert_eq!(said.output, "");
        let pid: i32 = std::fs::read_to_string(&note).unwrap().trim().parse().unwrap();
        // One that has ended may wait for a parent to notice.
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let gone = async {
            while stat().rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.expect("what it started is gone, too");
        let said = shell("while :; do echo again; done", Duration::from_secs(60)).await;
        assert_eq!(said.output.len() as u64, SAID_BYTES);
    }
}
