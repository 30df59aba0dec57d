//! `[log]`: what is written to standard error.

use cxmpute_runtime::telemetry::{self, LogFormat};
use serde::{Deserialize, Serialize};

/// The section `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, `off`, or directives such as `info,cxmpute_gateway=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
    /// One line per request. Off by default: it costs more than the whole key check.
    pub requests: bool,
}

impl Default for LogConfig {
    fn default() -> Self {
        let telemetry::LogConfig { level, format } = telemetry::LogConfig::default();
        Self { level, format, requests: false }
    }
}

impl LogConfig {
    /// What the runtime sets up.
    #[must_use]
    pub fn telemetry(&self) -> telemetry::LogConfig {
        telemetry::LogConfig { level: self.level.clone(), format: self.format }
    }
}
