//! A process without any network but one door: a network namespace of its own, in it a loopback port, behind the port
//! the guard's proxy. `cxmpute-provider engine cage` makes the namespace, opens the door and starts the browser inside.

use std::convert::Infallible;
use std::ffi::CString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use cxmpute_runtime::Tasks;
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use nix::unistd::{Uid, User, execvp, getppid, setgid, setgroups, setuid};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::process::Command;

/// What stands for the door's address in the arguments of the program.
pub const DOOR: &str = "{door}";
/// Exit code when the namespace cannot be made.
pub const NO_CAGE: u8 = 97;

/// What runs inside.
#[derive(Clone, Debug)]
pub struct Inmate {
    /// The socket of the proxy.
    pub socket: PathBuf,
    /// Whom it runs as, when we are root.
    pub user: String,
    /// The program and its arguments; [`DOOR`] in them is replaced.
    pub command: Vec<String>,
}

/// Makes the namespace. The process must have one thread only.
///
/// # Errors
/// The system allows none to this user.
pub fn enter() -> Result<()> {
    leave(CloneFlags::CLONE_NEWNET)?;
    raise_loopback().context("the loopback of the namespace")
}

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

/// Opens the door and runs the program until it ends; gives its exit code.
///
/// # Errors
/// The program cannot be started.
pub async fn hold(inmate: Inmate, tasks: &Tasks) -> Result<u8> {
    // A cage without its keeper is of no use.
    set_pdeathsig(Signal::SIGKILL)?;
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let door = listener.local_addr()?.to_string();
    let _task = tasks.spawn_owned("cage-door", open_door(listener, inmate.socket, tasks.clone()));
    let mut child = Command::new(std::env::current_exe()?)
        .args(["engine", "inmate", "--user", &inmate.user, "--"])
        .args(inmate.command.iter().map(|argument| argument.replace(DOOR, &door)))
        .kill_on_drop(true)
        .spawn()?;
    Ok(code_of(child.wait().await?))
}

/// Becomes the program: gives up root, asks to be ended with its keeper, and is replaced by it.
///
/// # Errors
/// The user is none, or the program cannot be started.
pub fn become_inmate(user: &str, command: &[String]) -> Result<Infallible> {
    let keeper = getppid();
    if Uid::current().is_root() {
        let user = User::from_name(user)?.with_context(|| format!("there is no user {user}"))?;
        if user.uid.is_root() {
            bail!("a browser never runs as root; set scrape.browser_user");
        }
        setgroups(&[])?;
        setgid(user.gid)?;
        setuid(user.uid)?;
    }
    // After the change of user, which would take the wish back.
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != keeper {
        bail!("the cage is gone");
    }
    let command: Vec<CString> =
        command.iter().map(|part| CString::new(part.as_str())).collect::<Result<_, _>>()?;
    let program = command.first().context("no program was named")?;
    execvp(program, &command).with_context(|| format!("{} cannot be started", program.to_string_lossy()))
}

/// As a shell gives it: 128 and the signal for a program that was ended by one.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    u8::try_from(code).unwrap_or(u8::MAX)
}

async fn open_door(listener: TcpListener, socket: PathBuf, tasks: Tasks) {
    while let Ok((inside, _)) = listener.accept().await {
        let socket = socket.clone();
        tasks.spawn("cage-connection", async move {
            if let Err(error) = pass(inside, &socket).await {
                tracing::debug!(%error, "a connection of the cage ended");
            }
        });
    }
}

async fn pass(mut inside: TcpStream, socket: &Path) -> io::Result<()> {
    let mut outside = UnixStream::connect(socket).await?;
    tokio::io::copy_bidirectional(&mut inside, &mut outside).await.map(|_| ())
}

/// Whether this system makes cages: asks `program engine cage --check`.
pub async fn works(program: &Path) -> bool {
    let asked = Command::new(program).args(["engine", "cage", "--check"]).output().await;
    match asked {
        Ok(done) if done.status.success() => true,
        Ok(done) => {
            let why = String::from_utf8_lossy(&done.stderr);
            tracing::warn!(why = why.trim(), "no cage for a browser can be made, so no page is rendered");
            false
        }
        Err(error) => {
            tracing::warn!(%error, program = %program.display(), "the cage cannot be tried, so no page is rendered");
            false
        }
    }
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
