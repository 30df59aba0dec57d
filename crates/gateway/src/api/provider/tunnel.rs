//! `GET /tunnel`: a node's connection becomes its tunnel. The newest one is the only valid one (NR13).

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use cxmpute_tunnel::LinkConfig;
use cxmpute_tunnel::accept::{accept, asks_for_tunnel, switching_protocols};
use cxmpute_tunnel::ping::PingConfig;
use cxmpute_wire::Code;
use cxmpute_wire::control::Location;
use http::{HeaderValue, Request, StatusCode, Version, header};

use crate::app::App;
use crate::auth::SignedNode;
use crate::auth::node::{node_unknown, retired};
use crate::config::RelayConfig;
use crate::error::{ApiError, ApiResult};
use crate::fleet::ProvisionSession;

/// `GET /tunnel`.
pub async fn open_tunnel(State(app): State<Arc<App>>, mut request: Request<Body>) -> ApiResult<Response> {
    if request.version() != Version::HTTP_11 || !asks_for_tunnel(request.headers()) {
        return Ok(upgrade_required());
    }
    if app.tasks.is_stopping() {
        return Err(ApiError::draining());
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let (parts, _) = request.into_parts();
    let node = SignedNode::check(&app, &parts, b"").await?;
    let now = app.clock.now();
    let epoch = app.db.next_epoch(&node.provision_id, now).await?;
    // Known a moment ago, so what is left is suspension or retirement.
    let epoch = epoch.ok_or_else(retired)?;
    let row = app.db.find_provision(node.provision_id.as_str()).await?;
    let row = row.ok_or_else(node_unknown)?;
    let location: Location = serde_json::from_str(&row.location).unwrap_or_default();
    let session = ProvisionSession {
        provision_id: node.provision_id,
        owner: node.owner,
        region: Some(location.country.trim().to_ascii_uppercase()).filter(|country| country.len() == 2),
        epoch,
        generation: row.desired_generation,
    };
    let (tasks, config) = (app.tasks.clone(), link_config(&app.config.relay));
    let owner = tasks.clone();
    owner.spawn("tunnel-accept", async move {
        match accept(upgrade, config, &tasks).await {
            Ok(link) => app.fleet.attach(link, session),
            Err(error) => {
                tracing::warn!(provision = %session.provision_id, %error, "a tunnel did not start");
                let closed = app.db.close_epoch(
                    &session.provision_id,
                    session.epoch,
                    "handshake_failed",
                    app.clock.now(),
                );
                if let Err(error) = closed.await {
                    tracing::warn!(%error, "the end of a tunnel was not recorded");
                }
            }
        }
    });
    Ok(switching_protocols(epoch, now))
}

fn link_config(relay: &RelayConfig) -> LinkConfig {
    let ping = PingConfig {
        interval: Duration::from_millis(relay.ping_ms),
        timeout: Duration::from_millis(relay.dead_ms),
    };
    LinkConfig { ping, ..LinkConfig::default() }
}

fn upgrade_required() -> Response {
    let error = ApiError::new(
        Code::VersionTooOld,
        "This address speaks only to nodes: HTTP/1.1 with Upgrade: cxmpute-tunnel/1.",
    );
    let mut response = axum::response::IntoResponse::into_response(error);
    *response.status_mut() = StatusCode::UPGRADE_REQUIRED;
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("cxmpute-tunnel/1"));
    response
}
