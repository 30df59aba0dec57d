//! One request and its answer over one judged connection.

use std::pin::pin;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use url::Position;

use super::decode::Decoder;
use super::{FetchError, Limits, Page, Wanted, essence};
use crate::connect::Connector;
use crate::judge::Target;

/// Fields of an answer's head.
pub(super) const HEAD_FIELDS: usize = 100;
/// Longest declared content type that is handed on.
const CONTENT_TYPE_LIMIT_CHARS: usize = 200;

pub(super) enum Answer {
    Page(Page),
    Redirect(String),
}

/// Asks the target once. The connection is driven by this very future: dropping it closes the connection.
pub(super) async fn exchange(
    connector: &Connector,
    target: &Target,
    headers: HeaderMap,
    wanted: &Wanted,
    limits: &Limits,
) -> Result<Answer, FetchError> {
    let stream = connector.open(target).await?;
    let protocol = |error: hyper::Error| FetchError::Protocol(chain(&error));
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(limits.head_bytes)
        .max_headers(HEAD_FIELDS)
        .handshake::<_, Empty<Bytes>>(TokioIo::new(stream))
        .await
        .map_err(protocol)?;
    let request = request(target, headers)?;
    let mut asking = pin!(async {
        let response = sender.send_request(request).await.map_err(protocol)?;
        #[cfg(feature = "sabotage")]
        let decoded = !connector.is_sabotaged(crate::sabotage::Sabotage::NoDecodedCount);
        #[cfg(not(feature = "sabotage"))]
        let decoded = true;
        read(target, response, wanted, limits, decoded).await
    });
    tokio::select! {
        answer = &mut asking => answer,
        // A host that closes behind its answer ends the connection before we have read everything.
        _ = connection => asking.await,
    }
}

pub(super) fn request(target: &Target, headers: HeaderMap) -> Result<Request<Empty<Bytes>>, FetchError> {
    // The parser of URLs leaves this one character where the parser of requests does not take it.
    let path = target.url()[Position::BeforePath..Position::AfterQuery].replace('`', "%60");
    let invalid = |error: String| FetchError::Refused(crate::judge::Refusal::Syntax(error));
    let host = HeaderValue::try_from(target.authority()).map_err(|error| invalid(error.to_string()))?;
    let mut request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .body(Empty::new())
        .map_err(|error| invalid(error.to_string()))?;
    *request.headers_mut() = headers;
    request.headers_mut().insert(header::HOST, host);
    Ok(request)
}

async fn read(
    target: &Target,
    response: Response<Incoming>,
    wanted: &Wanted,
    limits: &Limits,
    count_decoded: bool,
) -> Result<Answer, FetchError> {
    let (head, mut body) = response.into_parts();
    if is_redirect(head.status)
        && let Some(location) = head.headers.get(header::LOCATION)
    {
        // Servers send raw UTF-8 here; anything else is judged as a character that does not belong.
        return Ok(Answer::Redirect(String::from_utf8_lossy(location.as_bytes()).into_owned()));
    }
    let content_type = head.headers.get(header::CONTENT_TYPE).map(|value| {
        String::from_utf8_lossy(value.as_bytes()).chars().take(CONTENT_TYPE_LIMIT_CHARS).collect::<String>()
    });
    if head.status.is_success() && !wanted.types.is_empty() {
        let declared = content_type.as_deref().map(essence).unwrap_or_default();
        if !wanted.types.contains(&declared) {
            return Err(FetchError::Type(declared));
        }
    }
    let mut decoder = Decoder::new(&encoding(&head.headers)?, limits, wanted.cut, count_decoded)?;
    let announced = body.size_hint().lower();
    if count_decoded && !wanted.cut && announced > decoder.wire_limit() {
        return Err(FetchError::TooLarge { limit_bytes: limits.decoded_bytes });
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| FetchError::Protocol(chain(&error)))?;
        if let Ok(data) = frame.into_data()
            && !decoder.push(&data)?
        {
            break;
        }
    }
    let (body, wire_bytes) = decoder.finish()?;
    let url = target.url().clone();
    Ok(Answer::Page(Page { url, status: head.status, content_type, body, wire_bytes, redirects: 0 }))
}

pub(super) const fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// The codings of the body, joined as one text.
fn encoding(headers: &HeaderMap) -> Result<String, FetchError> {
    let mut all = Vec::new();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let text = value.to_str().map_err(|_| FetchError::Encoding("?".into()))?;
        all.extend(text.split(',').map(|coding| coding.trim().to_ascii_lowercase()));
    }
    all.retain(|coding| !coding.is_empty() && coding != "identity");
    Ok(all.join(", "))
}

/// The error with its causes: hyper's own text names only the phase.
pub(super) fn chain(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
