//! Connections from a node to its gateway: TCP, TLS, and the rule that plain HTTP stays on the loopback (D13).

use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Time to connect and to finish the TLS handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A gateway that cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The address is not one.
    #[error("`{url}` is not an address of a gateway ({reason}); it looks like https://gateway.example")]
    Url {
        /// As given.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Plain HTTP to another machine.
    #[error("`{host}` is not this machine; use https:// (plain http:// is only for the loopback)")]
    PlainNotLoopback {
        /// The host.
        host: String,
    },
    /// No connection.
    #[error("cannot connect to {authority}: {source}")]
    Connect {
        /// Host and port.
        authority: String,
        /// What the operating system says.
        source: io::Error,
    },
    /// The TLS handshake failed.
    #[error("no secure connection to {authority}: {source}")]
    Tls {
        /// Host and port.
        authority: String,
        /// What the TLS library says.
        source: io::Error,
    },
    /// Neither yes nor no came in time.
    #[error("{authority} did not answer in time")]
    Timeout {
        /// Host and port.
        authority: String,
    },
    /// The file with the extra certificate authority is not usable.
    #[error("certificate authority file {}: {message}", file.display())]
    CaFile {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        message: String,
    },
}

/// Whom we trust to name a gateway: the public certificate authorities and, if given, one of the owner's.
#[derive(Clone)]
pub struct Roots {
    connector: TlsConnector,
}

impl Roots {
    /// The public authorities and those of a PEM file.
    pub fn new(ca_file: Option<&Path>) -> Result<Self, TransportError> {
        let mut store = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        if let Some(file) = ca_file {
            let wrong = |message: String| TransportError::CaFile { file: file.to_owned(), message };
            let certificates =
                CertificateDer::pem_file_iter(file).map_err(|error| wrong(error.to_string()))?;
            let mut count = 0;
            for certificate in certificates {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                store.add(certificate).map_err(|error| wrong(error.to_string()))?;
                count += 1;
            }
            if count == 0 {
                return Err(wrong("holds no certificate in PEM form".into()));
            }
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the ring provider knows the default protocol versions")
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Roots")
    }
}

/// A gateway's address, taken apart.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    tls: bool,
    host: String,
    port: u16,
    /// As in the `Host` header and in signatures: without the default port.
    pub(crate) authority: String,
    /// Path before ours, without its last slash.
    pub(crate) base_path: String,
}

impl Target {
    pub(crate) fn parse(url: &str) -> Result<Self, TransportError> {
        let wrong = |reason| TransportError::Url { url: url.to_owned(), reason };
        let uri: Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(wrong("it begins with neither https:// nor http://")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("it names no host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("it holds a user name"));
        }
        if uri.query().is_some() {
            return Err(wrong("it holds a query"));
        }
        let default_port = if tls { 443 } else { 80 };
        let port = authority.port_u16().unwrap_or(default_port);
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        let shown = authority.host().to_ascii_lowercase();
        let authority = if port == default_port { shown } else { format!("{shown}:{port}") };
        Ok(Self { tls, host, port, authority, base_path: uri.path().trim_end_matches('/').to_owned() })
    }

    pub(crate) async fn connect(&self, roots: &Roots) -> Result<Io, TransportError> {
        match tokio::time::timeout(CONNECT_TIMEOUT, self.connect_slowly(roots)).await {
            Ok(result) => result,
            Err(_) => Err(TransportError::Timeout { authority: self.authority.clone() }),
        }
    }

    async fn connect_slowly(&self, roots: &Roots) -> Result<Io, TransportError> {
        let connect = |source| TransportError::Connect { authority: self.authority.clone(), source };
        if !self.tls {
            // Judged before anything is sent, and connected to what was judged: no name can lead elsewhere.
            let resolved = lookup_host((self.host.as_str(), self.port)).await.map_err(connect)?;
            let near: Vec<_> = resolved.filter(|address| address.ip().to_canonical().is_loopback()).collect();
            if near.is_empty() {
                return Err(TransportError::PlainNotLoopback { host: self.host.clone() });
            }
            let tcp = TcpStream::connect(&near[..]).await.map_err(connect)?;
            tcp.set_nodelay(true).map_err(connect)?;
            return Ok(Io::Plain(tcp));
        }
        let tcp = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(connect)?;
        tcp.set_nodelay(true).map_err(connect)?;
        let tls = |source| TransportError::Tls { authority: self.authority.clone(), source };
        let name = ServerName::try_from(self.host.clone()).map_err(|error| tls(io::Error::other(error)))?;
        let stream = roots.connector.connect(name, tcp).await.map_err(tls)?;
        Ok(Io::Tls(Box::new(stream)))
    }
}

/// A connection, secured or on the loopback.
pub(crate) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Plain(io) => Pin::new(io).poll_write(cx, data),
            Io::Tls(io) => Pin::new(io).poll_write(cx, data),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, data),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, data),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_port_is_not_part_of_the_authority() {
        for (url, authority, base) in [
            ("https://Gate.example", "gate.example", ""),
            ("https://gate.example:443/", "gate.example", ""),
            ("http://127.0.0.1:8080/cx/", "127.0.0.1:8080", "/cx"),
            ("https://[::1]:8443", "[::1]:8443", ""),
        ] {
            let target = Target::parse(url).unwrap();
            assert_eq!((target.authority.as_str(), target.base_path.as_str()), (authority, base), "{url}");
        }
    }

    #[test]
    fn what_is_no_gateway_address_is_refused_with_a_reason() {
        for url in ["", "gate", "ftp://gate", "https://user@gate", "https://gate/?a=b", "https:///x"] {
            let error = Target::parse(url).unwrap_err().to_string();
            assert!(error.contains("https://gateway.example"), "{error}");
        }
    }

    #[test]
    fn a_file_without_certificates_is_named() {
        let error = Roots::new(Some(Path::new("/nowhere/ca.pem"))).unwrap_err().to_string();
        assert!(error.starts_with("certificate authority file /nowhere/ca.pem"), "{error}");
    }
}
