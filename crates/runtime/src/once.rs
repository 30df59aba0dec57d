//! A program that runs once for one request: no shell, an empty environment, no network and no rights where the system
//! lets us take them away, its own process group, bounded memory, time and output. Whatever happens, nothing of it stays.

mod running;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Gid, Pid, Uid};
use tempfile::NamedTempFile;
use tokio::process::{Child, Command};

use crate::confine::NOBODY;

pub use running::Running;

/// Address space of a tool, in bytes.
pub const MEMORY: u64 = 2 * 1024 * 1024 * 1024;
/// Largest file that it may write, in bytes.
pub const FILE: u64 = 64 * 1024 * 1024;
/// Files that it may have open.
const FILES: u64 = 64;
/// Where the sandbox's own programs are looked for.
const PLACES: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// What is taken away from a program before it starts, as far as this system can.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    front: Vec<String>,
}

impl Sandbox {
    /// Finds out what this system can take away, by trying. Takes some milliseconds.
    #[must_use]
    pub fn probe() -> Self {
        let mut front = Vec::new();
        if let Some(unshare) = find("unshare") {
            for network in [vec!["--net"], vec!["--user", "--map-current-user", "--net"]] {
                let mut line = vec![unshare.clone()];
                line.extend(network.iter().map(|&word| word.to_owned()));
                line.push("--".to_owned());
                if works(&line) {
                    front = line;
                    break;
                }
            }
        }
        if let Some(setpriv) = find("setpriv") {
            let mut plain = front.clone();
            plain.extend([setpriv, "--no-new-privs".to_owned()]);
            let mut nobody = plain.clone();
            let id = NOBODY.to_string();
            for word in ["--reuid", &id, "--regid", &id, "--clear-groups", "--bounding-set=-all", "--"] {
                nobody.push(word.to_owned());
            }
            plain.push("--".to_owned());
            front = [nobody, plain].into_iter().find(|line| works(line)).unwrap_or(front);
        }
        if let Some(prlimit) = find("prlimit") {
            let mut line = front.clone();
            line.push(prlimit);
            for limit in [format!("--as={MEMORY}"), format!("--fsize={FILE}"), format!("--nofile={FILES}")] {
                line.push(limit);
            }
            line.extend(["--core=0".to_owned(), "--".to_owned()]);
            if works(&line) {
                front = line;
            }
        }
        Self { front }
    }

    /// A sandbox that another program makes: it and its arguments stand in front of what is run.
    #[must_use]
    pub const fn behind(front: Vec<String>) -> Self {
        Self { front }
    }

    /// This program behind it.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let Some((first, rest)) = self.front.split_first() else { return Command::new(program) };
        let mut command = Command::new(first);
        command.args(rest).arg(program);
        command
    }

    /// Whether the network is out of reach.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.front.iter().any(|word| word == "--net")
    }
}

/// A file with these bytes that nobody but us, and a program that we confine, can read. It is gone when it is dropped.
///
/// # Errors
/// It cannot be written.
pub fn lend(bytes: &[u8]) -> std::io::Result<NamedTempFile> {
    let mut file = tempfile::Builder::new().prefix("cxmpute-").tempfile()?;
    std::io::Write::write_all(&mut file, bytes)?;
    if Uid::current().is_root() {
        nix::unistd::fchown(file.as_file(), Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)))?;
    }
    Ok(file)
}

fn find(program: &str) -> Option<String> {
    let path = PLACES.iter().map(|place| Path::new(place).join(program)).find(|path| path.is_file())?;
    path.to_str().map(str::to_owned)
}

/// Whether a program starts behind this line.
fn works(line: &[String]) -> bool {
    let [program, arguments @ ..] = line else { return false };
    let status = std::process::Command::new(program)
        .args(arguments)
        .arg("true")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

/// What to run.
#[derive(Debug)]
pub struct Once<'a> {
    /// The program.
    pub program: &'a Path,
    /// Its arguments; never anything of a user.
    pub arguments: &'a [String],
    /// Its variables.
    pub environment: &'a [(&'a str, &'a str)],
    /// What it reads.
    pub input: &'a [u8],
    /// Most bytes it may print.
    pub output_limit: usize,
    /// Longest it may run.
    pub time: Duration,
}

/// Why it gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum OnceError {
    /// It cannot be started.
    #[error("{} cannot be started: {error}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It ended with an error.
    #[error("it ended with {status}: {complaint}")]
    Ended {
        /// How.
        status: String,
        /// What it said last.
        complaint: String,
    },
    /// It ran too long.
    #[error("it ran longer than {} s", .0.as_secs())]
    Late(Duration),
    /// It printed too much.
    #[error("it printed more than {0} bytes")]
    TooLong(usize),
}

/// Ends a process group when it is dropped, whatever of it still runs.
#[derive(Debug)]
pub struct Group(Option<i32>);

impl Group {
    /// The group of a child that was started as the first of its own, and has not been waited for yet.
    #[must_use]
    pub fn of(child: &Child) -> Self {
        Self(child.id().and_then(|pid| i32::try_from(pid).ok()))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // An error means that the group is gone already.
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

impl Once<'_> {
    /// Runs it to its end and gives what it printed. Dropping this ends it and all it started.
    ///
    /// # Errors
    /// It gave nothing that counts.
    pub async fn run(&self, sandbox: &Sandbox) -> Result<Vec<u8>, OnceError> {
        let mut running = self.start(sandbox)?;
        running.close();
        let mut printed = Vec::new();
        while let Some(piece) = running.chunk().await {
            printed.extend_from_slice(&piece?);
        }
        Ok(printed)
    }

    /// Starts it with its input; more may be given, until [`Running::close`] says that this was all.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(&self, sandbox: &Sandbox) -> Result<Running, OnceError> {
        let mut command = sandbox.command(self.program);
        command.args(self.arguments).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", "/nonexistent");
        command.envs(self.environment.iter().copied()).process_group(0).kill_on_drop(true).current_dir("/");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let start = |error| OnceError::Start { program: self.program.to_owned(), error };
        let mut running = Running::new(command.spawn().map_err(start)?, self.output_limit, self.time);
        running.give(Bytes::copy_from_slice(self.input));
        Ok(running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn shell(
        script: &str,
        input: &[u8],
        sandbox: &Sandbox,
        time: Duration,
    ) -> Result<String, OnceError> {
        let arguments = ["-c".to_owned(), script.to_owned()];
        let once = Once {
            program: Path::new("/bin/sh"),
            arguments: &arguments,
            environment: &[("MARK", "set")],
            input,
            output_limit: 10_000,
            time,
        };
        once.run(sandbox).await.map(|printed| String::from_utf8_lossy(&printed).into_owned())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn it_reads_prints_and_says_why_it_failed() {
        let none = Sandbox::default();
        assert_eq!(shell("tr a-z A-Z; echo $MARK", b"abc", &none, LONG).await.unwrap(), "ABCset\n");
        let failed = shell("echo because >&2; exit 3", b"", &none, LONG).await.unwrap_err().to_string();
        assert!(failed.contains('3') && failed.contains("because"), "{failed}");
        let much = shell("head -c 20000 /dev/zero", b"", &none, LONG).await;
        assert!(matches!(much, Err(OnceError::TooLong(10_000))), "{much:?}");
        // Input that nobody reads does not hold it up.
        assert_eq!(shell("exec <&-; echo done", &[b'x'; 1 << 20], &none, LONG).await.unwrap(), "done\n");
        let nothing = Once {
            program: Path::new("/nonexistent"),
            arguments: &[],
            environment: &[],
            input: b"",
            output_limit: 1,
            time: LONG,
        };
        assert!(matches!(nothing.run(&none).await, Err(OnceError::Start { .. })));
    }

    /// Each piece comes while the program runs, and the next one is made only when more was given.
    #[tokio::test]
    async fn what_is_given_piece_by_piece_comes_back_piece_by_piece() {
        let arguments = ["-c".to_owned(), "while read line; do echo \"<$line>\"; done; echo end".to_owned()];
        let once = Once {
            program: Path::new("/bin/sh"),
            arguments: &arguments,
            environment: &[],
            input: b"one\n",
            output_limit: 10_000,
            time: LONG,
        };
        let mut running = once.start(&Sandbox::default()).unwrap();
        assert_eq!(running.chunk().await.unwrap().unwrap(), "<one>\n");
        // Asking and giving up loses nothing.
        assert!(tokio::time::timeout(Duration::from_millis(50), running.chunk()).await.is_err());
        running.give("two\n".into());
        assert_eq!((running.chunk().await.unwrap().unwrap(), running.unread()), ("<two>\n".into(), 0));
        running.close();
        assert_eq!(running.chunk().await.unwrap().unwrap(), "end\n");
        assert!(running.chunk().await.is_none() && running.chunk().await.is_none());
        // Much in both directions at once is no deadlock.
        let arguments = ["-c".to_owned(), "cat; cat /dev/zero | head -c 1 >&2; exit 7".to_owned()];
        let input = vec![b'x'; 1 << 20];
        let once = Once { arguments: &arguments, input: &input, output_limit: 2 << 20, ..once };
        let mut running = once.start(&Sandbox::default()).unwrap();
        running.close();
        let mut count = 0;
        let failed = loop {
            match running.chunk().await.unwrap() {
                Ok(piece) => count += piece.len(),
                Err(error) => break error.to_string(),
            }
        };
        assert!(count == 1 << 20 && failed.contains('7'), "{count} {failed}");
        assert!(running.chunk().await.is_none());
    }

    #[tokio::test]
    async fn what_runs_too_long_ends_with_all_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("child");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let none = Sandbox::default();
        let late = shell(&script, b"", &none, Duration::from_millis(300)).await;
        assert!(matches!(late, Err(OnceError::Late(_))), "{late:?}");
        let child = std::fs::read_to_string(&file).unwrap().trim().to_owned();
        let gone = async {
            let stat = || std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            while !stat().is_empty() && !stat().contains(") Z ") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    }

    #[tokio::test]
    async fn the_sandbox_takes_away_what_the_system_lets_us() {
        let sandbox = Sandbox::probe();
        let script = "grep -c -v -e lo: -e '|' /proc/net/dev; id -u; cat /proc/self/status; ulimit -v";
        let printed = shell(script, b"", &sandbox, LONG).await.unwrap();
        if sandbox.is_offline() {
            assert!(
                printed.starts_with(
                    "0
"
                ),
                "{printed}"
            );
        }
        if sandbox.front.iter().any(|word| word == "--no-new-privs") {
            assert!(printed.contains("NoNewPrivs:\t1"), "{printed}");
        }
        if sandbox.front.iter().any(|word| word == "--reuid") {
            let lent = lend(b"mine").unwrap();
            let script = format!("cat {}", lent.path().display());
            assert_eq!(shell(&script, b"", &sandbox, LONG).await.unwrap(), "mine");
            assert!(printed.lines().any(|line| line == NOBODY.to_string()), "{printed}");
        }
        if sandbox.front.iter().any(|word| word.starts_with("--as=")) {
            assert!(printed.lines().any(|line| line == (MEMORY / 1024).to_string()), "{printed}");
        }
    }
}
