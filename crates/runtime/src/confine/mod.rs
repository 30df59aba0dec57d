//! What is taken away from a program before it starts (NR38): the network, other people's files, the rights of root, the
//! calls of the system that it does not need, the wish to outlive its keeper. A launcher of ours does it to itself and is
//! then replaced by the program, so that its process stays the one that is watched.
//!
//! | What | How | Where the system has it not |
//! |---|---|---|
//! | network, homes, temporary files | [`namespaces`] | files by [`files`]; the network stays for those that may make such sockets |
//! | all other files, signals | [`files`] (Landlock) | the rights of the user decide |
//! | system calls, kinds of sockets | [`calls`] (seccomp) | never on Linux with one of the processors that are known |
//! | rights of root | another user, no new privileges | - |
//! | memory, files, processes | limits of the process | - |

pub mod calls;
pub mod files;
mod launcher;
pub mod namespaces;

use std::convert::Infallible;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sched::CloneFlags;
use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, Gid, Group, Uid, access, chown, execvp, getppid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};

pub use calls::{Calls, Sockets};
pub use launcher::Confiner;

/// The user that nobody is.
pub const NOBODY: u32 = 65_534;
/// Groups that may use accelerators; an engine keeps them where the system has them.
const DEVICE_GROUPS: [&str; 2] = ["render", "video"];
/// Where people have their files; an engine finds nothing there.
const HOMES: [&str; 5] = ["/root", "/home", "/tmp", "/var/tmp", "/run/user"];
/// Files that it may have open.
const FILES: u64 = 4096;
/// Processes and threads of its user. All that run as nobody share it, so it only stops what breeds without end.
const PROCESSES: u64 = 8192;

/// How one program is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Terms {
    /// Directories that are empty for it, beside the homes.
    pub hidden: Vec<PathBuf>,
    /// What it may read there, and elsewhere outside the system's own directories: files and directories.
    pub readable: Vec<PathBuf>,
    /// The directory that is its own: its socket and its temporary files.
    pub room: Option<PathBuf>,
    /// Directories that it may write, too.
    pub writable: Vec<PathBuf>,
    /// Whether it keeps the network.
    pub network: bool,
    /// The sockets that it may make.
    pub sockets: Sockets,
    /// Whether it makes namespaces of its own for what it starts. It keeps its user then, whose rights that takes.
    pub nests: bool,
    /// Most memory that it may have for itself, in bytes; pages of the model's file do not count.
    pub memory: Option<u64>,
    /// Most memory that it may see at all, in bytes.
    pub address_space: Option<u64>,
    /// Largest file that it may write, in bytes.
    pub files: Option<u64>,
    /// What this system cannot do.
    pub without: Without,
}

/// What a system cannot take away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Without {
    /// It makes no namespaces for us.
    pub namespaces: bool,
    /// It has no Landlock.
    pub files: bool,
    /// It has no filter of system calls, or none is known for its processor.
    pub calls: bool,
}

/// Finds out what this system cannot take away, by trying; with the reasons. The process must have one thread only; it is
/// of no other use afterwards.
#[must_use]
pub fn check() -> (Without, Vec<String>) {
    let (mut without, mut reasons) = (Without::default(), Vec::new());
    let terms = Terms { room: Some(std::env::temp_dir()), ..Terms::default() };
    if let Err(error) = leave(false).and_then(|()| namespaces::hide(&terms)) {
        without.namespaces = true;
        reasons.push(format!("no namespaces ({error:#}): a program that needs sockets keeps the network"));
    }
    match set_no_new_privs().map_err(Into::into).and_then(|()| files::confine(&terms, !without.namespaces)) {
        Ok(files::Held::Whole | files::Held::Partly) => {}
        Ok(files::Held::Not) => {
            without.files = true;
            reasons.push("no Landlock: a program can read what its user can".to_owned());
        }
        Err(error) => {
            without.files = true;
            reasons.push(format!("no Landlock ({error:#}): a program can read what its user can"));
        }
    }
    if let Err(error) = Calls::default().confine() {
        without.calls = true;
        reasons.push(format!("no filter of system calls: {error:#}"));
    }
    (without, reasons)
}

/// Takes away what the terms say, and becomes the program. The process must have one thread only.
///
/// # Errors
/// Something cannot be taken away, or the program cannot be started.
pub fn become_program(terms: &Terms, command: &[String]) -> Result<Infallible> {
    let keeper = getppid();
    let gives_up = Uid::current().is_root() && !terms.nests;
    if let Some(room) = terms.room.as_ref().filter(|_| gives_up) {
        chown(room, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)))
            .with_context(|| format!("{} cannot be given away", room.display()))?;
    }
    let alone = !terms.nests && !terms.without.namespaces;
    if alone {
        leave(terms.network)?;
        namespaces::hide(terms)?;
    }
    for (resource, most) in [
        (Resource::RLIMIT_CORE, Some(0)),
        (Resource::RLIMIT_FSIZE, terms.files),
        (Resource::RLIMIT_NOFILE, Some(FILES)),
        (Resource::RLIMIT_NPROC, Some(PROCESSES)),
        (Resource::RLIMIT_DATA, terms.memory),
        (Resource::RLIMIT_AS, terms.address_space),
    ] {
        if let Some(most) = most {
            setrlimit(resource, most, most).with_context(|| format!("{resource:?}"))?;
        }
    }
    // When memory runs out, an engine goes before anything of the owner.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    if gives_up {
        let groups: Vec<Gid> = DEVICE_GROUPS
            .iter()
            .filter_map(|name| Group::from_name(name).ok().flatten())
            .map(|group| group.gid)
            .collect();
        setgroups(&groups)?;
        setgid(Gid::from_raw(NOBODY))?;
        setuid(Uid::from_raw(NOBODY))?;
    }
    if let Some(path) = terms.readable.iter().find(|path| access(*path, AccessFlags::R_OK).is_err()) {
        bail!("{} cannot be read by the user that engines run as: chmod o+r it", path.display());
    }
    set_no_new_privs()?;
    // After the change of user, which would take the wish back.
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != keeper {
        bail!("its keeper is gone");
    }
    if !terms.without.files {
        files::confine(terms, alone)?;
    }
    if !terms.without.calls {
        Calls { sockets: terms.sockets, nests: terms.nests }.confine()?;
    }
    become_command(command)
}

/// Becomes a program with its arguments.
///
/// # Errors
/// It cannot be started.
pub fn become_command(command: &[String]) -> Result<Infallible> {
    let command: Vec<CString> =
        command.iter().map(|part| CString::new(part.as_str())).collect::<Result<_, _>>()?;
    let program = command.first().context("no program was named")?;
    execvp(program, &command).with_context(|| format!("{} cannot be started", program.to_string_lossy()))
}

fn leave(network: bool) -> Result<()> {
    let mut leaving = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if !network {
        leaving |= CloneFlags::CLONE_NEWNET;
    }
    namespaces::leave(leaving)?;
    if network { Ok(()) } else { namespaces::raise_loopback() }
}

/// The directories in which a program with these terms finds nothing.
fn hidden(terms: &Terms) -> Vec<PathBuf> {
    outermost(HOMES.iter().map(PathBuf::from).chain(terms.hidden.iter().cloned()))
}

/// Directories that exist and lie in none of the others.
fn outermost(paths: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = paths.filter_map(|path| path.canonicalize().ok()).collect();
    paths.retain(|path| path.is_dir() && path != Path::new("/"));
    paths.sort();
    let mut kept: Vec<PathBuf> = Vec::new();
    for path in paths {
        if !kept.iter().any(|over| path.starts_with(over)) {
            kept.push(path);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_within_a_hidden_one_is_hidden_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("a/b"), dir.path().join("ab"));
        std::fs::create_dir_all(&one).unwrap();
        std::fs::create_dir_all(&two).unwrap();
        let paths = [one, dir.path().join("a"), two.clone(), dir.path().join("none"), "/".into()];
        let root = dir.path().canonicalize().unwrap();
        assert_eq!(outermost(paths.into_iter()), [root.join("a"), root.join("ab")]);
    }
}
