//! `CONNECT host:port`: bytes in both directions, counted.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::usage::Counter;
use super::{Body, Refused, Shared};
use crate::connect::ConnectError;

/// Bytes that are moved at a time.
const PIECE_BYTES: usize = 16 * 1024;

pub(super) async fn open(
    request: Request<Incoming>,
    shared: &Arc<Shared>,
) -> Result<Response<Body>, Refused> {
    let authority = request.uri().authority().ok_or(Refused::Request("CONNECT names host and port.\n"))?;
    let port = authority.port_u16().ok_or(Refused::Request("CONNECT names a port.\n"))?;
    // What the client speaks inside is its own affair; where it goes is judged like any https URL.
    let url = format!("https://{authority}/");
    let target = shared.connector.target(&url).map_err(ConnectError::from).inspect_err(|error| {
        shared.counter.note_refusal(authority.as_str(), error);
    })?;
    if target.port() != port {
        return Err(Refused::Request("The port cannot be read.\n"));
    }
    if !shared.counter.take_connection() {
        return Err(Refused::Spent);
    }
    let outside =
        shared.connector.open_tcp(&target).await.inspect_err(|error| shared.counter.note(&target, error))?;
    let upgrade = hyper::upgrade::on(request);
    let (counter, end) = (shared.counter.clone(), shared.end.clone());
    shared.tasks.spawn("egress-proxy-tunnel", async move {
        tokio::select! {
            () = carry(upgrade, outside, &counter) => {}
            () = end.cancelled() => {}
        }
    });
    Ok(Response::new(Empty::<Bytes>::new().map_err(|never| match never {}).boxed()))
}

async fn carry(upgrade: OnUpgrade, outside: TcpStream, counter: &Counter) {
    let inside = match upgrade.await {
        Ok(inside) => TokioIo::new(inside),
        Err(error) => return tracing::debug!(%error, "a client of the proxy left before its tunnel stood"),
    };
    let (inside_read, inside_write) = tokio::io::split(inside);
    let (outside_read, outside_write) = outside.into_split();
    let flow = Flow { taken: Mutex::new(0), moved: Mutex::new(Instant::now()), idle: counter.limits.idle };
    // Either direction may end first (a client that says goodbye still hears the rest); a limit ends both.
    let _ = tokio::try_join!(
        copy(inside_read, outside_write, counter, &flow),
        copy(outside_read, inside_write, counter, &flow),
    );
}

/// What both directions of a tunnel share.
struct Flow {
    /// Bytes so far.
    taken: Mutex<u64>,
    /// When the last byte came, whichever way it went.
    moved: Mutex<Instant>,
    idle: Duration,
}

impl Flow {
    /// Waits for bytes as long as any flow: whoever listens to a download says nothing meanwhile.
    async fn read(&self, from: &mut (impl AsyncRead + Unpin), piece: &mut [u8]) -> Result<usize, ()> {
        loop {
            let until = *self.moved.lock() + self.idle;
            match tokio::time::timeout_at(until, from.read(piece)).await {
                Ok(read) => {
                    *self.moved.lock() = Instant::now();
                    return read.map_err(|_| ());
                }
                Err(_) if *self.moved.lock() + self.idle > until => {}
                Err(_) => return Err(()),
            }
        }
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    counter: &Counter,
    flow: &Flow,
) -> Result<(), ()> {
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = flow.read(&mut from, &mut piece).await?;
        if count == 0 {
            return to.shutdown().await.map_err(|_| ());
        }
        if !counter.take_bytes(&mut flow.taken.lock(), count) {
            return Err(());
        }
        let write = tokio::time::timeout(flow.idle, to.write_all(&piece[..count])).await;
        write.map_err(|_| ())?.map_err(|_| ())?;
    }
}
