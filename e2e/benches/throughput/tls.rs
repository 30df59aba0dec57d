//! TLS on both sides of the comparison: one self-made certificate for the gateway and for nginx, and who trusts it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A certificate for the loopback address, in files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// The certificate, in PEM; it vouches for itself.
    pub file: PathBuf,
    /// Its private key, in PEM.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one in a folder.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn make(folder: &Path) -> Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?.self_signed(&key)?;
        let made = Self { file: folder.join("certificate.pem"), key: folder.join("key.pem") };
        std::fs::write(&made.file, certificate.pem())?;
        std::fs::write(&made.key, key.serialize_pem())?;
        Ok(made)
    }
}

/// Somebody who trusts one certificate and no other.
#[derive(Clone)]
pub struct Trust {
    connector: TlsConnector,
}

impl Trust {
    /// Trust in a certificate.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn in_certificate(certificate: &Certificate) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&certificate.file)?)?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { connector: TlsConnector::from(Arc::new(config)) })
    }

    /// Secures a connection.
    ///
    /// # Errors
    /// The other end has another certificate.
    pub async fn connect(&self, tcp: TcpStream) -> Result<TlsStream<TcpStream>> {
        let name = ServerName::from(tcp.peer_addr()?.ip());
        self.connector.connect(name, tcp).await.context("TLS")
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

/// Lets those in who do not speak TLS: the suite's own client, which asks whether the gateway is ready. No figure goes
/// this way.
pub async fn plain_door(listener: TcpListener, secured: SocketAddr, trust: Trust) {
    while let Ok((mut plain, _)) = listener.accept().await {
        let trust = trust.clone();
        tokio::spawn(async move {
            let Ok(tcp) = TcpStream::connect(secured).await else { return };
            if let Ok(mut secured) = trust.connect(tcp).await {
                let _ = tokio::io::copy_bidirectional(&mut plain, &mut secured).await;
            }
        });
    }
}
