//! Configuration of the gateway: defaults < TOML file < `CXMPUTE_*` < flags. One section per file.
//!
//! Every section owns its defaults and their reasons; what one value alone cannot say (a bind that needs TLS) is
//! checked by [`Config::check`].

mod catalogue;
mod limits;
mod log;
mod media;
mod metrics;
mod relay;
mod server;
mod store;
mod traces;

use std::path::PathBuf;

use cxmpute_runtime::config::{Sources, load};
use cxmpute_runtime::exit::{self, ExitError};
use serde::{Deserialize, Serialize};

pub use catalogue::CatalogueConfig;
pub use limits::LimitsConfig;
pub use log::LogConfig;
pub use media::MediaConfig;
pub use metrics::MetricsConfig;
pub use relay::RelayConfig;
pub use server::{ForwardedHeader, Origin, ServerConfig, Tls};
pub use store::StoreConfig;
pub use traces::TracesConfig;

/// Prefix of the environment variables: `server.bind` is `CXMPUTE_SERVER_BIND`.
pub const ENV_PREFIX: &str = "CXMPUTE";

/// Everything that can be set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Where and how the API listens.
    pub server: ServerConfig,
    /// Where metrics and health for operators listen.
    pub metrics: MetricsConfig,
    /// Database and data directory.
    pub store: StoreConfig,
    /// Deadlines and limits of the way to the nodes.
    pub relay: RelayConfig,
    /// What keys and accounts may do at most.
    pub limits: LimitsConfig,
    /// Models and prices.
    pub catalogue: CatalogueConfig,
    /// Sound and pictures of clients.
    pub media: MediaConfig,
    /// Logs.
    pub log: LogConfig,
    /// Traces.
    pub traces: TracesConfig,
}

impl Config {
    /// Reads the layers and checks the whole.
    pub fn load(file: Option<PathBuf>, flags: toml::Table) -> anyhow::Result<Self> {
        let config: Self = load(Sources { file, env_prefix: ENV_PREFIX.to_owned(), flags })?;
        config.check()?;
        Ok(config)
    }

    /// Rules that concern several keys.
    pub fn check(&self) -> Result<(), ExitError> {
        self.server.check().map_err(|message| ExitError::new(exit::CONFIG, message))?;
        self.metrics.address().map_err(|message| ExitError::new(exit::CONFIG, message))?;
        self.limits.check().map_err(|message| ExitError::new(exit::CONFIG, message))?;
        self.traces.check().map_err(|message| ExitError::new(exit::CONFIG, message))?;
        self.relay.check().map_err(|message| ExitError::new(exit::CONFIG, message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> anyhow::Result<Config> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("cxmpute.toml");
        std::fs::write(&file, text).unwrap();
        let config: Config =
            load(Sources { file: Some(file), env_prefix: String::new(), flags: toml::Table::new() })?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn the_defaults_are_usable_on_loopback() {
        Config::default().check().unwrap();
        assert_eq!(parsed("").unwrap(), Config::default());
    }

    #[test]
    fn a_public_bind_needs_tls_or_a_proxy_in_front() {
        let message = parsed("[server]\nbind = \"0.0.0.0:8080\"").unwrap_err().to_string();
        assert!(message.contains("server.bind") && message.contains("trusted_proxies"), "{message}");
        parsed("[server]\nbind = \"0.0.0.0:8080\"\ntrusted_proxies = [\"10.0.0.0/8\"]").unwrap();
        let message = parsed("[server]\ntls = \"files\"").unwrap_err().to_string();
        assert!(message.contains("tls_certificate"), "{message}");
    }

    #[test]
    fn wrong_values_name_key_and_allowed_values() {
        let message = parsed("[server]\ntls = \"acme\"").unwrap_err().to_string();
        assert!(
            message.contains("server.tls") && message.contains("off") && message.contains("files"),
            "{message}"
        );
        let message = parsed("[server]\ntrusted_proxies = [\"10.0.0.0/40\"]").unwrap_err().to_string();
        assert!(message.contains("trusted_proxies") && message.contains("10.0.0.0/40"), "{message}");
        let message = parsed("[traces]\nendpoint = \"http://192.0.2.1:4318\"").unwrap_err().to_string();
        assert!(message.contains("traces.endpoint") && message.contains("https://"), "{message}");
        let message = parsed("[relay]\ngap_ms = 0").unwrap_err().to_string();
        assert!(message.contains("relay.gap_ms"), "{message}");
    }
}
