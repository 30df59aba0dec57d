//! nginx `proxy_pass` with one worker: the yardstick.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_e2e::ground::until;
use cxmpute_e2e::house::free_address;
use cxmpute_e2e::process::children;
use tokio::net::TcpStream;

use crate::cost;
use crate::tls::Certificate;

/// A running nginx. Dropping it ends it.
pub struct Nginx {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its only worker, whose CPU time counts.
    pub worker: u32,
    master: Child,
}

impl Nginx {
    /// Starts nginx in `folder` in front of `upstream`, pinned to `core`.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn start(
        program: &Path,
        folder: &Path,
        upstream: SocketAddr,
        certificate: Option<&Certificate>,
        core: usize,
    ) -> Result<Self> {
        let address = free_address()?;
        let config = folder.join("nginx.conf");
        std::fs::write(&config, configuration(folder, address, upstream, certificate))?;
        let master = Command::new(program)
            .arg("-c")
            .arg(&config)
            .arg("-p")
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(folder.join("nginx.err"))?)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let mut nginx = Self { address, worker: 0, master };
        until("nginx", Duration::from_secs(10), async || Ok(TcpStream::connect(address).await.ok())).await?;
        // The master listens before it has a worker.
        nginx.worker = until("nginx's worker", Duration::from_secs(10), async || {
            Ok(children(nginx.master.id()).first().copied())
        })
        .await?;
        cost::pin(nginx.worker, core)?;
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        if let Ok(pid) = i32::try_from(self.master.id()) {
            // nginx ends its worker with itself on SIGTERM; a SIGKILL would leave it behind.
            let _ = kill(nix::unistd::Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _ = self.master.wait();
    }
}

fn configuration(
    folder: &Path,
    address: SocketAddr,
    upstream: SocketAddr,
    certificate: Option<&Certificate>,
) -> String {
    let (ssl, files) = certificate.map_or_else(Default::default, |certificate| {
        let (file, key) = (certificate.file.display(), certificate.key.display());
        (" ssl", format!("    ssl_certificate {file};\n    ssl_certificate_key {key};\n"))
    });
    let folder = folder.display();
    format!(
        "daemon off;\nworker_processes 1;\npid {folder}/nginx.pid;\nerror_log {folder}/nginx.log warn;\n\
         worker_rlimit_nofile 65536;\nevents {{ worker_connections 32768; }}\n\
         http {{\n  access_log off;\n  tcp_nodelay on;\n  keepalive_requests 1000000000;\n  keepalive_timeout 600s;\n\
         \x20 client_body_temp_path {folder}/body;\n  proxy_temp_path {folder}/proxy;\n\
         \x20 fastcgi_temp_path {folder}/fastcgi;\n  uwsgi_temp_path {folder}/uwsgi;\n  scgi_temp_path {folder}/scgi;\n\
         \x20 upstream engine {{ server {upstream}; keepalive 1024; keepalive_requests 1000000000; }}\n\
         \x20 server {{\n    listen {address}{ssl} backlog=4096;\n{files}    location / {{\n      proxy_pass http://engine;\n\
         \x20     proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n      proxy_buffering off;\n    }}\n  }}\n}}\n"
    )
}
