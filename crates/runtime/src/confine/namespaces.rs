//! A view of the machine of its own: namespaces without a network, with empty directories where people keep their files.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::Terms;

/// Size of an emptied directory. It lies in memory.
const EMPTY: &str = "size=64m,mode=755";
/// The same where every program may write.
const EMPTY_TEMPORARY: &str = "size=64m,mode=1777";

/// Leaves these namespaces for new ones. The process must have one thread only.
///
/// # Errors
/// The system allows none to this user.
pub fn leave(namespaces: CloneFlags) -> Result<()> {
    let (uid, gid) = (nix::unistd::getuid(), nix::unistd::getgid());
    if uid.is_root() {
        unshare(namespaces).context("no namespace")?;
    } else {
        // A user's own namespace, in which it may have others of its own.
        unshare(CloneFlags::CLONE_NEWUSER | namespaces).context("no user namespace")?;
        std::fs::write("/proc/self/setgroups", "deny")?;
        std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
        std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1"))?;
    }
    Ok(())
}

/// Empties the hidden directories and puts back what may be read.
///
/// # Errors
/// The system refuses it.
pub fn hide(terms: &Terms) -> Result<()> {
    const NONE: Option<&str> = None;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE)
        .context("a private view of the files")?;
    let hidden = super::hidden(terms);
    let covered = |path: &Path| hidden.iter().any(|over| path.starts_with(over));
    let kept: Vec<(PathBuf, File, bool)> = terms
        .readable
        .iter()
        .map(|path| (path, true))
        .chain(terms.room.iter().chain(&terms.writable).filter(|own| covered(own)).map(|own| (own, false)))
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
        // What a directory that was shown already has in it may be written no more.
        if !folder && !path.exists() {
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

/// Sets the loopback of the namespace up: one message of the kernel's routing protocol (rtnetlink(7)).
///
/// # Errors
/// The kernel refuses it.
pub fn raise_loopback() -> Result<()> {
    const LENGTH: u32 = 32;
    const RTM_NEWLINK: u16 = 16;
    const REQUEST_AND_ACKNOWLEDGE: u16 = 1 | 4;
    const LOOPBACK_INDEX: i32 = 1;
    const UP: u32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend(LENGTH.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(REQUEST_AND_ACKNOWLEDGE.to_ne_bytes());
    message.extend(1u32.to_ne_bytes()); // sequence
    message.extend(0u32.to_ne_bytes()); // to the kernel
    message.extend([0; 4]); // family, padding, type
    message.extend(LOOPBACK_INDEX.to_ne_bytes());
    message.extend(UP.to_ne_bytes()); // flags
    message.extend(UP.to_ne_bytes()); // the flags that change
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        Some(SockProtocol::NetlinkRoute),
    )?;
    sendto(socket.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 64];
    let size = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // An acknowledgement is an error message with the number 0 behind its header of 16 bytes.
    match answer
        .get(16..20)
        .filter(|_| size >= 20)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
    {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number).into()),
        None => bail!("the kernel gave no answer"),
    }
}
