//! A staged world: names by script, public addresses led to servers of the test, everything noted.

use std::net::SocketAddr;
use std::time::Duration;

use cxmpute_egress::connect::{Connector, Dialler, Resolver, Script, Stage, Trust};
use cxmpute_egress::{Fetcher, Limits, Policy};
use cxmpute_runtime::Clock;

/// How the tests call themselves.
pub const AGENT: &str = "Mozilla/5.0 (compatible; cxmpute-scrape/0.1)";
/// A public address that servers of the tests stand in for.
pub const PUBLIC: &str = "93.184.216.34";
/// Another one.
pub const OTHER: &str = "151.101.1.140";

/// Limits with a deadline that a test can wait for.
pub fn limits() -> Limits {
    Limits { deadline: Duration::from_secs(5), ..Limits::default() }
}

pub struct World {
    pub script: Script,
    pub stage: Stage,
    pub policy: Policy,
    pub limits: Limits,
    pub trust: Trust,
}

impl Default for World {
    fn default() -> Self {
        Self {
            script: Script::default(),
            stage: Stage::default(),
            policy: Policy::default(),
            limits: limits(),
            trust: Trust::public(),
        }
    }
}

impl World {
    /// `a.example.com` on [`PUBLIC`] and `b.example.com` on [`OTHER`], both led to one server.
    pub fn two_hosts(server: SocketAddr) -> Self {
        Self {
            script: Script::default().answer("a.example.com", &[PUBLIC]).answer("b.example.com", &[OTHER]),
            stage: Stage::default().server(PUBLIC, server).server(OTHER, server),
            ..Self::default()
        }
    }

    pub fn connector(&self) -> Connector {
        Connector::with(
            self.policy.clone(),
            Resolver::Scripted(self.script.clone()),
            Dialler::Staged(self.stage.clone()),
            &self.trust,
        )
    }

    pub fn fetcher(&self, bad: Bad) -> Fetcher {
        Fetcher::new(broken(self.connector(), bad), self.limits, AGENT, Clock::system())
    }
}

/// The known-bad variant that a gate runs with.
#[cfg(feature = "sabotage")]
pub type Bad = Option<cxmpute_egress::sabotage::Sabotage>;
/// Without the feature there is none.
#[cfg(not(feature = "sabotage"))]
pub type Bad = Option<std::convert::Infallible>;

#[cfg(feature = "sabotage")]
fn broken(connector: Connector, bad: Bad) -> Connector {
    match bad {
        Some(bad) => connector.sabotaged(bad),
        None => connector,
    }
}

#[cfg(not(feature = "sabotage"))]
fn broken(connector: Connector, bad: Bad) -> Connector {
    match bad {
        Some(never) => match never {},
        None => connector,
    }
}
