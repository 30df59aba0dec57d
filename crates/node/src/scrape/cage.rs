//! A process without any network but one door: a network namespace of its own, in it a loopback port, behind the port
//! the guard's proxy. `cxmpute-provider engine cage` makes the namespace, opens the door and starts the browser inside.

use std::convert::Infallible;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use anyhow::{Context, Result, bail};
use cxmpute_runtime::Tasks;
use cxmpute_runtime::confine::{self, Calls, Sockets, Terms, files, namespaces};
use nix::sched::CloneFlags;
use nix::sys::prctl::{set_no_new_privs, set_pdeathsig};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, getppid, setgid, setgroups, setuid};
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
    namespaces::leave(CloneFlags::CLONE_NEWNET)?;
    namespaces::raise_loopback().context("the loopback of the namespace")
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
    shut_in()?;
    confine::become_command(command)
}

/// Leaves the program its own directory to write and the calls that a browser needs, as far as this system can; that it
/// cannot was said when the node started.
fn shut_in() -> Result<()> {
    set_no_new_privs()?;
    let own = Terms { writable: vec![std::env::current_dir()?], nests: true, ..Terms::default() };
    if let Err(error) = files::confine(&own, false) {
        tracing::debug!(%error, "the browser keeps the files of its user");
    }
    // It opens internet sockets, for its door is one.
    if let Err(error) = (Calls { sockets: Sockets::Interfaces, nests: true }).confine() {
        tracing::debug!(%error, "the browser keeps all calls of the system");
    }
    Ok(())
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
