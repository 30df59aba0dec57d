//! Whom secured connections trust.

use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::judge::Host;

/// The authorities that are trusted.
#[derive(Clone, Debug)]
pub struct Trust {
    roots: RootCertStore,
}

/// An authority that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("no usable authority in the PEM text: {0}")]
pub struct TrustError(String);

impl Trust {
    /// The public authorities.
    #[must_use]
    pub fn public() -> Self {
        Self { roots: RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() } }
    }

    /// The same and the authorities of a PEM text.
    ///
    /// # Errors
    /// There is none in it, or one is damaged.
    pub fn and(mut self, pem: &[u8]) -> Result<Self, TrustError> {
        let before = self.roots.len();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| TrustError(error.to_string()))?;
            self.roots.add(certificate).map_err(|error| TrustError(error.to_string()))?;
        }
        if self.roots.len() == before {
            return Err(TrustError("there is none".into()));
        }
        Ok(self)
    }

    pub(super) fn connector(&self) -> TlsConnector {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the ring provider knows the default protocol versions")
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }
}

pub(super) fn server_name(host: &Host) -> Result<ServerName<'static>, String> {
    match host {
        Host::Name(name) => ServerName::try_from(name.clone()).map_err(|error| error.to_string()),
        Host::Address(address) => Ok(ServerName::IpAddress((*address).into())),
    }
}
