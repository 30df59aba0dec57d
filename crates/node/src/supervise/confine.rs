//! What is taken away from an engine server before it starts (NR38): the network, other people's files, the rights of
//! root, the wish to outlive its node. `cxmpute-provider engine confined` does it and is then replaced by the engine, so
//! that its process stays the one that is watched.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use cxmpute_runtime::once::Sandbox;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::CloneFlags;
use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{Gid, Group, Uid, chown, execvp, getppid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};

use crate::scrape::cage;

/// The user that nobody is.
const NOBODY: u32 = 65_534;
/// Groups that may use accelerators; an engine keeps them where the system has them.
const DEVICE_GROUPS: [&str; 2] = ["render", "video"];
/// Where people have their files; an engine finds nothing there.
const HOMES: [&str; 5] = ["/root", "/home", "/tmp", "/var/tmp", "/run/user"];
/// Size of an emptied directory. It lies in memory.
const EMPTY: &str = "size=64m,mode=755";
/// The same where every program may write.
const EMPTY_TEMPORARY: &str = "size=64m,mode=1777";
/// Files that it may have open.
const FILES: u64 = 4096;

/// How one engine is confined.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Directories that are empty for it, beside the homes.
    pub hidden: Vec<PathBuf>,
    /// What it may read there nevertheless: files and directories.
    pub readable: Vec<PathBuf>,
    /// The directory that is its own: its socket and its temporary files.
    pub room: PathBuf,
    /// Whether it keeps the network.
    pub network: bool,
    /// Most memory that it may have for itself, in bytes; pages of the model's file do not count.
    pub memory: Option<u64>,
    /// Largest file that it may write, in bytes.
    pub files: Option<u64>,
}

/// The program that confines, where this system lets it.
#[derive(Clone, Debug)]
pub struct Confiner {
    program: PathBuf,
}

impl Confiner {
    /// Finds out whether this system lets `program` (`cxmpute-provider`) confine, by trying. Takes some milliseconds.
    #[must_use]
    pub fn probe(program: PathBuf) -> Option<Self> {
        let tried = std::process::Command::new(&program)
            .args(["engine", "confined", "--check"])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .output();
        match tried {
            Ok(done) if done.status.success() => Some(Self { program }),
            Ok(done) => {
                let why = String::from_utf8_lossy(&done.stderr);
                tracing::warn!(
                    why = why.trim(),
                    "engines of others keep the network and the files of this user"
                );
                None
            }
            Err(error) => {
                tracing::debug!(%error, program = %program.display(), "no program to confine engines with");
                None
            }
        }
    }

    /// A sandbox with these terms.
    #[must_use]
    pub fn sandbox(&self, terms: &Terms) -> Sandbox {
        let terms = serde_json::to_string(terms).unwrap_or_default();
        Sandbox::behind(vec![
            self.program.display().to_string(),
            "engine".to_owned(),
            "confined".to_owned(),
            format!("--terms={terms}"),
            "--".to_owned(),
        ])
    }
}

/// Whether this system lets us. The process must have one thread only; it is of no other use afterwards.
///
/// # Errors
/// It does not.
pub fn check() -> Result<()> {
    let room = std::env::temp_dir();
    leave(false)?;
    hide(&Terms { room, ..Terms::default() })
}

/// Takes away what the terms say, and becomes the program. The process must have one thread only.
///
/// # Errors
/// Something cannot be taken away, or the program cannot be started.
pub fn become_engine(terms: &Terms, command: &[String]) -> Result<Infallible> {
    let keeper = getppid();
    let root = Uid::current().is_root();
    if root {
        chown(&terms.room, Some(Uid::from_raw(NOBODY)), Some(Gid::from_raw(NOBODY)))
            .with_context(|| format!("{} cannot be given away", terms.room.display()))?;
    }
    leave(terms.network)?;
    hide(terms)?;
    for (resource, most) in [
        (Resource::RLIMIT_CORE, Some(0)),
        (Resource::RLIMIT_FSIZE, terms.files),
        (Resource::RLIMIT_NOFILE, Some(FILES)),
        (Resource::RLIMIT_DATA, terms.memory),
    ] {
        if let Some(most) = most {
            setrlimit(resource, most, most).with_context(|| format!("{resource:?}"))?;
        }
    }
    // When memory runs out, an engine goes before anything of the owner.
    let _ = std::fs::write("/proc/self/oom_score_adj", "500");
    if root {
        let groups: Vec<Gid> = DEVICE_GROUPS
            .iter()
            .filter_map(|name| Group::from_name(name).ok().flatten())
            .map(|group| group.gid)
            .collect();
        setgroups(&groups)?;
        setgid(Gid::from_raw(NOBODY))?;
        setuid(Uid::from_raw(NOBODY))?;
    }
    set_no_new_privs()?;
    // After the change of user, which would take the wish back.
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != keeper {
        bail!("the node is gone");
    }
    let command: Vec<CString> =
        command.iter().map(|part| CString::new(part.as_str())).collect::<Result<_, _>>()?;
    let program = command.first().context("no program was named")?;
    execvp(program, &command).with_context(|| format!("{} cannot be started", program.to_string_lossy()))
}

fn leave(network: bool) -> Result<()> {
    let mut namespaces = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if !network {
        namespaces |= CloneFlags::CLONE_NEWNET;
    }
    cage::leave(namespaces)?;
    if network { Ok(()) } else { cage::raise_loopback() }
}

/// Empties the hidden directories and puts back what may be read.
fn hide(terms: &Terms) -> Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("a private view of the files")?;
    let hidden = outermost(HOMES.iter().map(PathBuf::from).chain(terms.hidden.iter().cloned()));
    let covered = |path: &Path| hidden.iter().any(|over| path.starts_with(over));
    let kept: Vec<(PathBuf, File, bool)> = terms
        .readable
        .iter()
        .map(|path| (path, true))
        .chain([(&terms.room, false)].into_iter().filter(|(room, _)| covered(room)))
        .map(|(path, fixed)| {
            let opened = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path);
            opened.map(|file| (path.clone(), file, fixed)).with_context(|| path.display().to_string())
        })
        .collect::<Result<_>>()?;
    for over in &hidden {
        let shared = ["/tmp", "/var/tmp"].iter().any(|shared| over == Path::new(shared));
        let options = if shared { EMPTY_TEMPORARY } else { EMPTY };
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("none"), over, Some("tmpfs"), flags, Some(options))
            .with_context(|| format!("{} cannot be hidden", over.display()))?;
    }
    for (path, file, fixed) in kept {
        let what = || format!("{} cannot be shown", path.display());
        let folder = file.metadata().with_context(what)?.is_dir();
        let parent = if folder { Some(path.as_path()) } else { path.parent() };
        if let Some(parent) = parent {
            DirBuilder::new().recursive(true).mode(0o755).create(parent).with_context(what)?;
        }
        if !folder {
            OpenOptions::new().create(true).append(true).open(&path).with_context(what)?;
        }
        let source = format!("/proc/self/fd/{}", file.as_raw_fd());
        mount(Some(source.as_str()), &path, NONE, MsFlags::MS_BIND, NONE).with_context(what)?;
        if fixed {
            mount(NONE, &path, NONE, read_only(&path)?, NONE).with_context(what)?;
        }
    }
    Ok(())
}

/// The flags that make a bound path read-only and leave what else holds for its file system.
fn read_only(path: &Path) -> Result<MsFlags> {
    let have = statvfs(path)?.flags();
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
    for (has, keep) in [
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if have.contains(has) {
            flags |= keep;
        }
    }
    Ok(flags)
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
