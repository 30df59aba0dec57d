//! `[traces]`: what happened to requests, told to an OpenTelemetry collector.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use serde::{Deserialize, Serialize};

/// The HTTP client gives up by itself after this long.
const LONGEST_TIMEOUT_MS: u64 = 30_000;

/// The section `[traces]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TracesConfig {
    /// Base address of a collector that speaks OTLP over HTTP, such as `http://127.0.0.1:4318`, or `off`. Spans name
    /// models and nodes, so plain HTTP stays on this machine (DESIGN D13).
    pub endpoint: String,
    /// PEM file of a certificate authority to trust besides the public ones, for a collector of your own.
    pub ca_file: Option<PathBuf>,
    /// Share of the requests without a `traceparent` that are traced, from 0 to 1.
    pub ratio: f64,
    /// Whether the flag in a client's `traceparent` decides instead of the ratio. Strangers can then have each of their
    /// requests traced; switch it off where that is too many. Their trace ids are kept either way.
    pub follow_clients: bool,
    /// Traced requests that may wait for the collector; more are dropped and counted.
    pub queue: usize,
    /// What has come is sent at this rhythm, or sooner when it is many.
    pub every_ms: u64,
    /// A collector that takes longer for one batch has failed; 30 s at most.
    pub timeout_ms: u64,
}

impl Default for TracesConfig {
    fn default() -> Self {
        Self {
            endpoint: "off".to_owned(),
            ca_file: None,
            ratio: 1.0,
            follow_clients: true,
            // A request is five spans or so, about 2 KiB: 4 MiB at most.
            queue: 2_048,
            // The defaults of OpenTelemetry's own exporters.
            every_ms: 5_000,
            timeout_ms: 10_000,
        }
    }
}

impl TracesConfig {
    /// The collector's base address, unless switched off.
    #[must_use]
    pub fn collector(&self) -> Option<&str> {
        Some(self.endpoint.trim_end_matches('/')).filter(|text| *text != "off")
    }

    /// Time between two batches.
    #[must_use]
    pub fn every(&self) -> Duration {
        Duration::from_millis(self.every_ms)
    }

    /// Time for one batch.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// What one value alone cannot say.
    pub fn check(&self) -> Result<(), String> {
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(format!("traces.ratio is {}, expected a number from 0 to 1.", self.ratio));
        }
        for (key, value) in
            [("queue", self.queue as u64), ("every_ms", self.every_ms), ("timeout_ms", self.timeout_ms)]
        {
            if value == 0 {
                return Err(format!("traces.{key} is 0, expected 1 or more."));
            }
        }
        if self.timeout_ms > LONGEST_TIMEOUT_MS {
            return Err(format!(
                "traces.timeout_ms is {}, expected {LONGEST_TIMEOUT_MS} at most.",
                self.timeout_ms
            ));
        }
        let Some(text) = self.collector() else { return Ok(()) };
        let wrong = |why: &str| Err(format!("traces.endpoint is \"{text}\", {why}."));
        let Ok(uri) = text.parse::<Uri>() else {
            return wrong("expected an address such as http://127.0.0.1:4318, or off");
        };
        let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
            return wrong("expected an address such as http://127.0.0.1:4318, or off");
        };
        if uri.query().is_some() || uri.authority().is_some_and(|authority| authority.as_str().contains('@'))
        {
            return wrong("expected an address without user or query");
        }
        match scheme {
            "https" => Ok(()),
            "http" if is_loopback(host) => Ok(()),
            "http" => wrong("which is not this machine: use https://, or run a collector here"),
            _ => wrong("expected http:// or https://"),
        }
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_endpoint(endpoint: &str) -> Result<(), String> {
        TracesConfig { endpoint: endpoint.to_owned(), ..TracesConfig::default() }.check()
    }

    #[test]
    fn plain_http_stays_on_this_machine() {
        for good in [
            "off",
            "http://127.0.0.1:4318",
            "http://localhost:4318/",
            "http://[::1]:4318/otel",
            "https://collector.example",
        ] {
            with_endpoint(good).unwrap();
        }
        for bad in [
            "",
            "on",
            "127.0.0.1:4318",
            "http://192.0.2.1:4318",
            "http://collector.example",
            "https://user:word@collector.example",
            "https://collector.example?key=1",
            "ftp://127.0.0.1",
        ] {
            let message = with_endpoint(bad).unwrap_err();
            assert!(message.starts_with("traces.endpoint is "), "{message}");
        }
    }

    #[test]
    fn a_ratio_is_a_share() {
        for bad in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
            let config = TracesConfig { ratio: bad, ..TracesConfig::default() };
            assert!(config.check().unwrap_err().contains("traces.ratio"), "{bad}");
        }
    }
}
