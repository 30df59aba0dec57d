//! The way to the control plane.

use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::Clock;
use cxmpute_tunnel::HttpClient;
use cxmpute_wire::control::NetInfo;
use http::Method;

/// Longer than this and the measurement is given up; what matters will fail by itself.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whether the control plane answers, and how fast: one connection and one request.
pub async fn reach(client: &HttpClient, url: &str, clock: &Clock) -> NetInfo {
    let began = clock.mono();
    let call = client.call(url, Method::GET, "/healthz", Vec::new(), Bytes::new());
    let answered = matches!(tokio::time::timeout(PATIENCE, call).await, Ok(Ok(_)));
    let took = clock.mono().saturating_sub(began).as_millis();
    NetInfo {
        control_plane: Some(answered),
        rtt_ms: answered.then(|| u64::try_from(took).unwrap_or(u64::MAX)),
        clock_offset_ms: None,
    }
}
