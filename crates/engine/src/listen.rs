//! Listening on a unix socket or a loopback port.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::Router;
use cxmpute_runtime::exit::{DIR_UNWRITABLE, ExitError, PORT_TAKEN};
use cxmpute_runtime::{CancellationToken, Tasks};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::cli::Listen;

/// Pause after a failed accept (no free file descriptors): less would burn a core, more would be felt.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A bound listener.
pub enum Listener {
    /// A unix socket; its file is removed when this is dropped.
    Unix(UnixListener, SocketFile),
    /// A loopback port.
    Tcp(TcpListener),
}

/// The file of a unix socket, removed when this is dropped.
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// When another process listens there, or the directory of the socket cannot be written.
    pub async fn bind(listen: &Listen) -> Result<Self, ExitError> {
        match listen {
            Listen::Tcp(address) => match TcpListener::bind(address).await {
                Ok(listener) => Ok(Self::Tcp(listener)),
                Err(error) => {
                    let message =
                        format!("cannot listen on {address}: {error}; choose another port with --listen");
                    Err(ExitError::new(PORT_TAKEN, message))
                }
            },
            Listen::Unix(path) => bind_unix(path).await,
        }
    }

    /// Where it listens, in words.
    pub fn describe(&self) -> String {
        match self {
            Self::Unix(_, SocketFile(path)) => format!("unix:{}", path.display()),
            Self::Tcp(listener) => {
                listener.local_addr().map(|address| address.to_string()).unwrap_or_default()
            }
        }
    }

    /// Accepts connections until the soft stop.
    pub async fn serve(self, router: Router, tasks: Tasks) {
        let soft = tasks.soft();
        loop {
            let accepted = tokio::select! {
                () = soft.cancelled() => return,
                accepted = self.accept(&router, &tasks) => accepted,
            };
            if let Err(error) = accepted {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }

    async fn accept(&self, router: &Router, tasks: &Tasks) -> io::Result<()> {
        let stops = (tasks.soft(), tasks.hard());
        match self {
            Self::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                tasks.spawn("connection", serve_connection(stream, router.clone(), stops));
            }
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                tasks.spawn("connection", serve_connection(stream, router.clone(), stops));
            }
        }
        Ok(())
    }
}

/// The socket is made under another name, closed to others, and then moved into place: nobody can connect before.
async fn bind_unix(path: &Path) -> Result<Listener, ExitError> {
    if UnixStream::connect(path).await.is_ok() {
        let message =
            format!("another process listens on {}; stop it or choose another path", path.display());
        return Err(ExitError::new(PORT_TAKEN, message));
    }
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(format!(".{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let bound = UnixListener::bind(&fresh).and_then(|listener| {
        std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&fresh, path)?;
        Ok(listener)
    });
    match bound {
        Ok(listener) => Ok(Listener::Unix(listener, SocketFile(path.to_owned()))),
        Err(error) => {
            let _ = std::fs::remove_file(&fresh);
            let message = format!(
                "cannot make the socket {}: {error}; name another place with --listen",
                path.display()
            );
            Err(ExitError::new(DIR_UNWRITABLE, message))
        }
    }
}

async fn serve_connection<S>(stream: S, router: Router, stops: (CancellationToken, CancellationToken))
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (soft, hard) = stops;
    // Half-closed connections count as closed (hyper's default): a caller that is gone stops its generation.
    let connection =
        http1::Builder::new().serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = hard.cancelled() => return,
        () = soft.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = hard.cancelled() => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}
