//! Why something may not be asked.

use std::net::SocketAddr;

use super::Class;

/// Why a URL or an address is refused. Each has a stable code for programs and one sentence for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// More bytes than a URL may have.
    #[error("The URL is longer than {limit_bytes} bytes.")]
    TooLong {
        /// The most it may have.
        limit_bytes: usize,
    },
    /// A line break, a NUL, an escape or another control character.
    #[error("The URL contains a control character, a space or a backslash.")]
    Character,
    /// It cannot be parsed.
    #[error("The URL cannot be parsed: {0}.")]
    Syntax(String),
    /// Neither `http` nor `https`.
    #[error("The scheme `{0}` is refused; only http and https are fetched.")]
    Scheme(String),
    /// A name or a password before the host.
    #[error("The URL carries a user name or a password; leave them out.")]
    Userinfo,
    /// A port that is not fetched.
    #[error("Port {0} is not among the allowed ports.")]
    Port(u16),
    /// No host that could stand in the public DNS.
    #[error("The host `{0}` is not a valid public host name.")]
    Host(String),
    /// A name that only means something in a local network.
    #[error("The host `{0}` is a name of a local network.")]
    LocalName(String),
    /// A host that the owner does not want to be asked.
    #[error("The host `{0}` is not among those that may be asked from here.")]
    Domain(String),
    /// An address in a refused range.
    #[error("The address {address} is refused: it is {}.", class.sentence())]
    Address {
        /// The address, as it would have been connected to.
        address: SocketAddr,
        /// What it is.
        class: Class,
    },
}

impl Refusal {
    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLong { .. } => "url_too_long",
            Self::Character => "url_character",
            Self::Syntax(_) => "url_invalid",
            Self::Scheme(_) => "scheme_refused",
            Self::Userinfo => "userinfo_refused",
            Self::Port(_) => "port_refused",
            Self::Host(_) => "host_invalid",
            Self::LocalName(_) => "host_local",
            Self::Domain(_) => "domain_refused",
            Self::Address { class, .. } => class.code(),
        }
    }
}
