//! From a judged URL to a connection: one lookup, every address judged, a connection to a judged address and to no
//! other, with the name as TLS server name.

mod dial;
mod resolve;
mod tls;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

pub use dial::{Dialler, Stage};
pub use resolve::{Resolver, Script};
pub use tls::{Trust, TrustError};

use crate::judge::{Host, Judged, Policy, Refusal, Target};

/// Addresses of one name that are tried, one after the other.
const TRIES: usize = 4;
/// Time that one address gets to take the connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// A connection that a judgement allowed.
pub type Stream = Either<TcpStream, TlsStream<TcpStream>>;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL or one of the addresses may not be asked.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// There is no such name, or the resolver failed; systems do not tell the two apart.
    #[error("The host `{host}` could not be resolved: {cause}.")]
    NotResolved {
        /// The name.
        host: String,
        /// What the resolver said.
        cause: String,
    },
    /// Nobody answered.
    #[error("The host `{host}` took no connection: {cause}.")]
    Unreachable {
        /// The host.
        host: String,
        /// What the system said of the last address.
        cause: String,
    },
    /// The host could not show who it is.
    #[error("No secure connection to `{host}`: {cause}.")]
    Tls {
        /// The host.
        host: String,
        /// What went wrong.
        cause: String,
    },
}

impl ConnectError {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::NotResolved { .. } => "host_not_resolved",
            Self::Unreachable { .. } => "connect_failed",
            Self::Tls { .. } => "tls_failed",
        }
    }
}

/// The one place that opens connections to addresses that others named. Cloning shares the resolver's script and the
/// dialler's notes.
#[derive(Clone)]
pub struct Connector {
    policy: Arc<Policy>,
    resolver: Resolver,
    dialler: Dialler,
    tls: TlsConnector,
    #[cfg(feature = "sabotage")]
    sabotage: Option<crate::sabotage::Sabotage>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("policy", &self.policy).finish_non_exhaustive()
    }
}

impl Connector {
    /// A connector with the system's resolver and sockets that trusts the public authorities.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self::with(policy, Resolver::System, Dialler::System, &Trust::public())
    }

    /// A connector with everything named.
    #[must_use]
    pub fn with(policy: Policy, resolver: Resolver, dialler: Dialler, trust: &Trust) -> Self {
        Self {
            policy: Arc::new(policy),
            resolver,
            dialler,
            tls: trust.connector(),
            #[cfg(feature = "sabotage")]
            sabotage: None,
        }
    }

    /// The same with a known-bad variant.
    #[cfg(feature = "sabotage")]
    #[must_use]
    pub fn sabotaged(mut self, sabotage: crate::sabotage::Sabotage) -> Self {
        self.sabotage = Some(sabotage);
        self
    }

    /// The known-bad variant, if there is one.
    #[cfg(feature = "sabotage")]
    pub(crate) fn is_sabotaged(&self, sabotage: crate::sabotage::Sabotage) -> bool {
        self.sabotage == Some(sabotage)
    }

    /// The same, which never leads to `own`.
    #[must_use]
    pub fn without(mut self, own: std::net::SocketAddr) -> Self {
        Arc::make_mut(&mut self.policy).own.push(own);
        self
    }

    /// What it allows.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Judges a URL.
    ///
    /// # Errors
    /// It may not be asked.
    pub fn target(&self, url: &str) -> Result<Target, Refusal> {
        #[cfg(feature = "sabotage")]
        if self.is_sabotaged(crate::sabotage::Sabotage::ResolverOnlyGuard)
            && let Some(target) = url::Url::parse(url).ok().and_then(Target::unjudged)
            && matches!(target.host(), Host::Address(_))
        {
            return Ok(target);
        }
        self.policy.target(url)
    }

    /// Opens the connection that the URL asks for, with TLS where it says `https`.
    ///
    /// # Errors
    /// An address is refused, or nobody answers.
    pub async fn open(&self, target: &Target) -> Result<Stream, ConnectError> {
        let tcp = self.open_tcp(target).await?;
        if !target.is_https() {
            return Ok(Either::Left(tcp));
        }
        let failed = |cause: String| ConnectError::Tls { host: target.host().to_string(), cause };
        let name = tls::server_name(target.host()).map_err(failed)?;
        let tls = self.tls.connect(name, tcp).await.map_err(|error| failed(error.to_string()))?;
        Ok(Either::Right(tls))
    }

    /// Opens a bare connection to a judged address of the target.
    ///
    /// # Errors
    /// An address is refused, or nobody answers.
    pub async fn open_tcp(&self, target: &Target) -> Result<TcpStream, ConnectError> {
        let judged = self.judged(target).await?;
        let mut cause = "it has no address".to_owned();
        for address in judged.into_iter().take(TRIES) {
            match tokio::time::timeout(CONNECT_TIMEOUT, self.dialler.dial(address)).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(error)) => cause = error.to_string(),
                Err(_) => cause = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
            }
        }
        Err(ConnectError::Unreachable { host: target.host().to_string(), cause })
    }

    /// The addresses of the target, all of them judged.
    async fn judged(&self, target: &Target) -> Result<Vec<Judged>, ConnectError> {
        match target.host() {
            Host::Address(address) => self.judge_literal(*address, target.port()),
            Host::Name(name) => {
                let found = self.resolver.resolve(name).await?;
                #[cfg(feature = "sabotage")]
                if self.is_sabotaged(crate::sabotage::Sabotage::SecondLookup) {
                    self.policy.addresses(found, target.port())?;
                    let again = self.resolver.resolve(name).await?.into_iter();
                    let at = |ip| Judged::unjudged(std::net::SocketAddr::new(ip, target.port()));
                    return Ok(again.map(at).collect());
                }
                if found.is_empty() {
                    let cause = "it has no address".to_owned();
                    return Err(ConnectError::NotResolved { host: name.clone(), cause });
                }
                Ok(self.policy.addresses(found, target.port())?)
            }
        }
    }

    fn judge_literal(&self, address: IpAddr, port: u16) -> Result<Vec<Judged>, ConnectError> {
        #[cfg(feature = "sabotage")]
        if self.is_sabotaged(crate::sabotage::Sabotage::ResolverOnlyGuard) {
            return Ok(vec![Judged::unjudged(std::net::SocketAddr::new(address, port))]);
        }
        Ok(self.policy.addresses([address], port)?)
    }
}
