//! `GET http://host/path`: a request handed on, its answer counted.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use cxmpute_runtime::lifecycle::OwnedTask;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use url::Position;

use super::usage::Counter;
use super::{Body, HEAD_BYTES, Refused, Shared};
use crate::connect::ConnectError;

/// Headers that end at each hop.
const HOP: [HeaderName; 8] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
];

pub(super) async fn forward(
    request: Request<Incoming>,
    shared: &Arc<Shared>,
) -> Result<Response<Body>, Refused> {
    let url = request.uri().to_string();
    if request.uri().scheme().is_none() {
        return Err(Refused::Request("This is a proxy; it takes absolute URLs.\n"));
    }
    if request.uri().scheme_str() != Some("http") {
        return Err(Refused::Request("https goes through CONNECT.\n"));
    }
    let named = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let target = shared.connector.target(&url).map_err(ConnectError::from).inspect_err(|error| {
        shared.counter.note_refusal(&named, error);
    })?;
    if !shared.counter.take_connection() {
        return Err(Refused::Spent);
    }
    let stream =
        shared.connector.open(&target).await.inspect_err(|error| shared.counter.note(&target, error))?;
    let upstream = |error: hyper::Error| Refused::Upstream(format!("{error}\n"));
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(HEAD_BYTES)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(upstream)?;
    let task = shared.tasks.spawn_owned("egress-proxy-forward", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a host broke off");
        }
    });
    let path = target.url()[Position::BeforePath..Position::AfterQuery].replace('`', "%60");
    let mut onward = Request::builder()
        .method(request.method())
        .uri(path)
        .body(Empty::new())
        .map_err(|_| Refused::Request("The URL cannot be asked.\n"))?;
    *onward.headers_mut() = without_hops(request.headers());
    let host = HeaderValue::try_from(target.authority())
        .map_err(|_| Refused::Request("The host cannot be asked.\n"))?;
    onward.headers_mut().insert(header::HOST, host);
    onward.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    let answer = tokio::time::timeout(shared.counter.limits.idle, sender.send_request(onward)).await;
    let answer = answer.map_err(|_| Refused::Upstream("No answer in time.\n".into()))?.map_err(upstream)?;
    let (head, body) = answer.into_parts();
    let counted = Counted { body, counter: shared.counter.clone(), taken: 0, over: false, _connection: task };
    let mut response = Response::new(counted.boxed());
    *response.status_mut() = head.status;
    *response.headers_mut() = without_hops(&head.headers);
    Ok(response)
}

fn without_hops(headers: &HeaderMap) -> HeaderMap {
    let mut headers = headers.clone();
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP.iter().chain(&named) {
        headers.remove(name);
    }
    headers
}

/// A body that ends when the limits are used up, together with the connection that it comes from.
struct Counted {
    body: Incoming,
    counter: Arc<Counter>,
    taken: u64,
    over: bool,
    _connection: OwnedTask,
}

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled
            && let Some(data) = frame.data_ref()
        {
            let this = &mut *self;
            if !this.counter.take_bytes(&mut this.taken, data.len()) {
                this.over = true;
                return Poll::Ready(None);
            }
        }
        polled
    }

    fn size_hint(&self) -> SizeHint {
        // What is announced may be cut, so nothing is promised.
        SizeHint::default()
    }
}
