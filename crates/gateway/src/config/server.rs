//! `[server]`: where and how the API listens.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use cxmpute_egress::judge::Network;
use http::{HeaderMap, HeaderValue, header};
use serde::{Deserialize, Serialize};

/// The least room for large bodies.
const LEAST_BODIES_MIB: usize = 32;

/// The section `[server]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerConfig {
    /// Address of the API. Port 0 takes a free one.
    pub bind: SocketAddr,
    /// `off` or `files`.
    pub tls: Tls,
    /// Certificate chain in PEM, for `tls = "files"`.
    pub tls_certificate: Option<PathBuf>,
    /// Private key in PEM, for `tls = "files"`.
    pub tls_key: Option<PathBuf>,
    /// Addresses or networks of reverse proxies in front. With `tls = "off"` on a public address, only they may
    /// connect.
    pub trusted_proxies: Vec<Network>,
    /// The header in which those proxies name the client: `x-forwarded-for` or `forwarded`. A proxy must write the one
    /// that is named here, or clients could.
    pub forwarded_header: ForwardedHeader,
    /// Web origins whose scripts may read answers of the API, such as `https://app.example`; `*` for all.
    pub cors_origins: Vec<String>,
    /// Name of this control plane, shown to nodes.
    pub name: String,
    /// Threads that serve requests; 0 means one per core.
    pub workers: usize,
    /// Most connections of one address (GR section 9); 0 means no limit. Trusted proxies have none.
    pub connections_per_address: usize,
    /// Time to the end of a request's head.
    pub head_ms: u64,
    /// How long an idle connection is kept.
    pub keep_alive_ms: u64,
    /// Time in which a body may be as slow as it likes, after which it must average `body_rate`.
    pub body_grace_ms: u64,
    /// Slowest average of a body in bytes per second.
    pub body_rate: u64,
    /// Mebibytes that all large bodies of requests and of nodes' answers take at a time; what does not fit gets 429.
    pub bodies_mib: usize,
    /// How long a client may refuse to take bytes before it is cut off.
    pub write_stall_ms: u64,
    /// How long running requests may go on after the first SIGTERM.
    pub drain_ms: u64,
    /// The known-bad rule of gate G9.
    #[cfg(feature = "sabotage")]
    #[serde(skip)]
    pub trusts_everybody: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            bind: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            tls: Tls::Off,
            tls_certificate: None,
            tls_key: None,
            trusted_proxies: Vec::new(),
            forwarded_header: ForwardedHeader::XForwardedFor,
            cors_origins: vec!["*".to_owned()],
            name: "cxmpute".to_owned(),
            workers: 0,
            connections_per_address: 100,
            head_ms: 10_000,
            keep_alive_ms: 60_000,
            body_grace_ms: 10_000,
            body_rate: 1024,
            bodies_mib: 512,
            write_stall_ms: 30_000,
            drain_ms: 30_000,
            #[cfg(feature = "sabotage")]
            trusts_everybody: false,
        }
    }
}

/// The header in which trusted proxies name the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ForwardedHeader {
    /// `X-Forwarded-For`.
    #[serde(rename = "x-forwarded-for")]
    XForwardedFor,
    /// `Forwarded` of RFC 7239.
    #[serde(rename = "forwarded")]
    Forwarded,
}

/// Whose scripts may read an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Everybody's.
    Everybody,
    /// This one's.
    Listed(HeaderValue),
    /// Others', not the asking one's.
    Other,
    /// Nobody's: the route is not for browsers.
    Nobody,
}

/// How transport security is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tls {
    /// Plain HTTP: on loopback or behind trusted proxies only.
    Off,
    /// Certificate and key from files.
    Files,
}

impl ServerConfig {
    /// D13: plain HTTP only on loopback or behind trusted proxies.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.bodies_mib < LEAST_BODIES_MIB {
            return Err(format!(
                "server.bodies_mib is {}, expected at least {LEAST_BODIES_MIB}: the largest body alone takes 26.",
                self.bodies_mib
            ));
        }
        match self.tls {
            Tls::Files if self.tls_certificate.is_none() || self.tls_key.is_none() => Err(
                "server.tls = \"files\" needs server.tls_certificate and server.tls_key, each the path of a PEM file."
                    .to_owned(),
            ),
            Tls::Off if !self.bind.ip().is_loopback() && self.trusted_proxies.is_empty() => Err(format!(
                "server.bind = \"{}\" would carry keys and prompts in clear text: bind to 127.0.0.1, set \
                 server.tls = \"files\", or name the TLS proxy in front in server.trusted_proxies.",
                self.bind
            )),
            Tls::Files | Tls::Off => self.check_origins(),
        }
    }

    /// An origin is scheme, host and port, nothing behind it.
    fn check_origins(&self) -> Result<(), String> {
        let shaped = |origin: &&String| {
            let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            origin.as_str() == "*"
                || rest.is_some_and(|host| {
                    !host.is_empty()
                        && host
                            .bytes()
                            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'*' | b',' | b'?' | b'#'))
                })
        };
        match self.cors_origins.iter().find(|origin| !shaped(origin)) {
            Some(wrong) => Err(format!(
                "server.cors_origins has \"{wrong}\", expected \"*\" or an origin such as \"https://app.example\"."
            )),
            None => Ok(()),
        }
    }

    /// Whether the scripts that ask may read the answer.
    #[must_use]
    pub fn allowed_origin(&self, headers: &HeaderMap) -> Origin {
        if self.cors_origins.iter().any(|origin| origin == "*") {
            return Origin::Everybody;
        }
        match headers.get(header::ORIGIN) {
            Some(origin) if self.cors_origins.iter().any(|listed| listed.as_bytes() == origin.as_bytes()) => {
                Origin::Listed(origin.clone())
            }
            _ => Origin::Other,
        }
    }

    /// Whether a peer may speak to this listener at all.
    #[must_use]
    pub fn admits(&self, peer: IpAddr) -> bool {
        self.tls != Tls::Off || self.bind.ip().is_loopback() || peer.is_loopback() || self.trusts(peer)
    }

    /// Whether a peer is one of the configured proxies.
    #[must_use]
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.trusted_proxies.iter().any(|network| network.contains(peer))
    }

    /// [`Self::drain_ms`] as a span.
    #[must_use]
    pub fn drain(&self) -> Duration {
        Duration::from_millis(self.drain_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn behind_a_proxy_only_the_proxy_may_connect() {
        let config = ServerConfig {
            bind: "0.0.0.0:80".parse().unwrap(),
            trusted_proxies: vec!["10.0.0.1".parse().unwrap()],
            ..ServerConfig::default()
        };
        assert!(config.admits("10.0.0.1".parse().unwrap()) && config.admits("127.0.0.1".parse().unwrap()));
        assert!(!config.admits("203.0.113.9".parse().unwrap()));
    }
}
