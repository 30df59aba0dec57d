//! The gateway's side of the upgrade. The route, the look-up of the key and the epoch belong to the gateway.

use cxmpute_runtime::Tasks;
use cxmpute_wire::{Epoch, Timestamp};
use http::{HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use crate::handshake::{CX_EPOCH, CX_SERVER_TIME, UPGRADE_TOKEN};
use crate::link::{Link, LinkConfig, LinkError};

pub use crate::handshake::{TUNNEL_PATH, asks_for_tunnel};

/// The answer that lets a node in; after it has been sent, [`accept`] takes the connection over.
pub fn switching_protocols<B: Default>(epoch: Epoch, now: Timestamp) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(http::header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(http::header::UPGRADE, HeaderValue::from_static(UPGRADE_TOKEN));
    headers.insert(CX_EPOCH, HeaderValue::from(epoch.0));
    headers.insert(CX_SERVER_TIME, HeaderValue::from(now.0));
    response
}

/// Waits for the upgrade and starts the tunnel on it.
pub async fn accept(upgrade: OnUpgrade, config: LinkConfig, tasks: &Tasks) -> Result<Link, LinkError> {
    let upgraded = match tokio::time::timeout(config.handshake_timeout, upgrade).await {
        Ok(Ok(upgraded)) => upgraded,
        Ok(Err(error)) => return Err(LinkError::Upgrade(error.to_string())),
        Err(_) => return Err(LinkError::Timeout),
    };
    Link::start(TokioIo::new(upgraded), config, tasks).await
}
