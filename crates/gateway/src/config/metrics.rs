//! `[metrics]`: the listener for operators, apart from the API.

use serde::{Deserialize, Serialize};

/// The section `[metrics]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MetricsConfig {
    /// Address of `GET /metrics`, `/healthz` and `/readyz`, or `off`. It has no authentication: keep it on loopback or on a
    /// network of the operators.
    pub bind: String,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { bind: "127.0.0.1:9464".to_owned() }
    }
}

impl MetricsConfig {
    /// The address, unless switched off.
    pub fn address(&self) -> Result<Option<std::net::SocketAddr>, String> {
        match self.bind.as_str() {
            "off" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                format!("metrics.bind is \"{text}\", expected an address such as 127.0.0.1:9464, or off.")
            }),
        }
    }
}
