//! One answer taken piece by piece, for bodies that are too large to hold. The caller counts its bytes, keeps its time
//! and judges where a redirect leads; nothing is decoded.

use std::future::Future;
use std::pin::Pin;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::FetchError;
use super::exchange::{HEAD_FIELDS, chain, is_redirect, request};
use crate::connect::Connector;
use crate::judge::Target;

/// An answer whose body is still coming. Dropping it closes the connection.
pub struct Stream {
    /// Status and headers.
    pub head: http::response::Parts,
    body: Incoming,
    connection: Option<Connection>,
}

/// Drives the connection while the body is read.
type Connection = Pin<Box<dyn Future<Output = ()> + Send + Sync>>;

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("status", &self.head.status).finish_non_exhaustive()
    }
}

impl Connector {
    /// Asks the target once with these headers; `head_bytes` bounds the answer's head.
    ///
    /// # Errors
    /// An address is refused, nobody answers, or the answer is no HTTP.
    pub async fn ask(
        &self,
        target: &Target,
        headers: HeaderMap,
        head_bytes: usize,
    ) -> Result<Stream, FetchError> {
        let stream = self.open(target).await?;
        let protocol = |error: hyper::Error| FetchError::Protocol(chain(&error));
        let (mut sender, connection) = http1::Builder::new()
            .max_buf_size(head_bytes)
            .max_headers(HEAD_FIELDS)
            .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
            .await
            .map_err(protocol)?;
        let mut connection: Connection = Box::pin(async move {
            // What breaks the connection is an error of the body, too.
            let _ = connection.await;
        });
        let request = request(target, headers)?;
        let mut asking = std::pin::pin!(sender.send_request(request));
        let (answer, ended) = tokio::select! {
            answer = &mut asking => (answer, false),
            // A host that closes behind its answer ends the connection before we have read everything.
            () = &mut connection => (asking.await, true),
        };
        let (head, body) = answer.map_err(protocol)?.into_parts();
        Ok(Stream { head, body, connection: (!ended).then_some(connection) })
    }
}

impl Stream {
    /// Where the answer sends us instead, as it says.
    #[must_use]
    pub fn location(&self) -> Option<String> {
        let location = self.head.headers.get(header::LOCATION).filter(|_| is_redirect(self.head.status))?;
        Some(String::from_utf8_lossy(location.as_bytes()).into_owned())
    }

    /// The next piece of the body; `None` at its end. May be dropped at any moment without losing bytes.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, FetchError>> {
        loop {
            let frame = match &mut self.connection {
                None => self.body.frame().await,
                Some(connection) => tokio::select! {
                    biased;
                    frame = self.body.frame() => frame,
                    () = connection => {
                        self.connection = None;
                        continue;
                    }
                },
            };
            match frame? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(FetchError::Protocol(chain(&error)))),
            }
        }
    }
}
