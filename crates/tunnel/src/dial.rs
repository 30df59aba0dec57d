//! The node's way in: connect, ask for the upgrade with a signed request, become the HTTP/2 server.

use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::Tasks;
use cxmpute_wire::{Code, Epoch, Timestamp};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::handshake::{CX_EPOCH, CX_SERVER_TIME, TUNNEL_PATH, UPGRADE_TOKEN, parse};
use crate::http_client::{Answer, Signer, chain, drive};
use crate::node_end::NodeEnd;
use crate::ping::PingConfig;
use crate::transport::{Roots, Target, TransportError};

/// Largest refusal that is read.
const REFUSAL_LIMIT_BYTES: usize = 64 * 1024;

/// How to reach the gateway, and as whom.
#[derive(Clone, Debug)]
pub struct DialConfig {
    /// `https://HOST[:PORT]`, or `http://` for the loopback.
    pub url: String,
    /// The node's key and corrected clock.
    pub signer: Signer,
    /// Whom to trust.
    pub roots: Roots,
    /// Pieces of work that may run at once; more are refused.
    pub capacity: u32,
    /// Liveness.
    pub ping: PingConfig,
    /// Time for the whole handshake after the connection stands.
    pub handshake_timeout: Duration,
}

impl DialConfig {
    /// The usual settings.
    pub fn new(url: impl Into<String>, signer: Signer, roots: Roots) -> Self {
        Self {
            url: url.into(),
            signer,
            roots,
            capacity: 64,
            ping: PingConfig::default(),
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// A tunnel that did not come up.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The gateway could not be reached.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The gateway said no.
    #[error("{authority} refused the tunnel: {message}")]
    Refused {
        /// Host and port.
        authority: String,
        /// HTTP status.
        status: u16,
        /// The machine code, if the gateway gave one that we know.
        code: Option<Code>,
        /// Its sentence.
        message: String,
        /// The gateway's time, if it told it; already taken over by the signer when the code is `clock_skew`.
        server_time: Option<Timestamp>,
    },
    /// The answer is not that of a gateway.
    #[error("{authority} does not speak {UPGRADE_TOKEN}: {message}")]
    Protocol {
        /// Host and port.
        authority: String,
        /// What went wrong.
        message: String,
    },
}

/// Opens a tunnel. The connection is driven by tasks of `tasks` until the [`NodeEnd`] and all work are dropped.
pub async fn dial(config: &DialConfig, tasks: &Tasks) -> Result<NodeEnd, DialError> {
    let target = Target::parse(&config.url)?;
    let io = target.connect(&config.roots).await?;
    match tokio::time::timeout(config.handshake_timeout, shake(config, &target, io, tasks)).await {
        Ok(result) => result,
        Err(_) => Err(TransportError::Timeout { authority: target.authority }.into()),
    }
}

async fn shake(
    config: &DialConfig,
    target: &Target,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    tasks: &Tasks,
) -> Result<NodeEnd, DialError> {
    let protocol = |message: String| DialError::Protocol { authority: target.authority.clone(), message };
    let path = format!("{}{TUNNEL_PATH}", target.base_path);
    let mut request = Request::get(&path)
        .header(http::header::HOST, &target.authority)
        .header(http::header::CONNECTION, "Upgrade")
        .header(http::header::UPGRADE, UPGRADE_TOKEN);
    for (name, value) in config.signer.sign(&Method::GET, &target.authority, &path, b"") {
        request = request.header(name, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| protocol(error.to_string()))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(|error| protocol(chain(error)))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|error| protocol(chain(error)))?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, REFUSAL_LIMIT_BYTES).collect().await;
            let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
            return Err(refused(
                config,
                target,
                &Answer { status: parts.status, headers: parts.headers, body },
            ));
        }
        let headers = response.headers();
        let epoch = parse(headers, &CX_EPOCH, "cx-epoch").map_err(|error| protocol(error.to_string()))?;
        let server_time =
            parse(headers, &CX_SERVER_TIME, "cx-server-time").map_err(|error| protocol(error.to_string()))?;
        let io = hyper::upgrade::on(response).await.map_err(|error| protocol(chain(error)))?;
        Ok((io, Epoch(epoch), Timestamp(server_time)))
    };
    let (io, epoch, server_time) = drive(connection.with_upgrades(), exchange).await?;
    NodeEnd::start(TokioIo::new(io), epoch, server_time, config.capacity, config.ping, tasks)
        .await
        .map_err(|error| protocol(error.to_string()))
}

fn refused(config: &DialConfig, target: &Target, answer: &Answer) -> DialError {
    let code = answer.code();
    let server_time = answer.server_time();
    if let (Some(Code::ClockSkew), Some(server_time)) = (code, server_time) {
        config.signer.correct(server_time);
    }
    DialError::Refused {
        authority: target.authority.clone(),
        status: answer.status.as_u16(),
        code,
        message: answer.message(),
        server_time,
    }
}
