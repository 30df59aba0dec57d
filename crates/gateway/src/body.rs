//! Reading request bodies: at most so many bytes, not slower than so, and the same envelope for every refusal.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use bytes::{Bytes, BytesMut};
use cxmpute_wire::Code;
use http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout_at};

use crate::app::App;
use crate::edge::{Edge, Matched};
use crate::error::{ApiError, ApiResult};
use crate::json;
use crate::room::Share;

/// Longest body of ordinary routes (GR section 9).
pub const JSON_LIMIT: usize = crate::limits::BODY;

/// Bytes of an oversized body that are read and thrown away, so that the client gets to read the refusal instead of a
/// reset connection.
const THROWN_AWAY: usize = 32 * 1024 * 1024;

/// The slowest a body may be: `bytes` in every `window`.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The window; the first one is the grace period.
    pub window: Duration,
    /// Bytes that must arrive in it, unless the body ends before.
    pub bytes: u64,
}

impl Pace {
    /// As configured.
    #[must_use]
    pub fn of(app: &App) -> Option<Self> {
        #[cfg(feature = "sabotage")]
        if app.sabotage == Some(crate::sabotage::Sabotage::NoAcceptTimer) {
            return None;
        }
        let server = &app.config.server;
        let window = Duration::from_millis(server.body_grace_ms.max(1));
        Some(Self { window, bytes: server.body_rate.saturating_mul(server.body_grace_ms) / 1000 })
    }
}

/// Reads a whole body.
pub async fn read(body: Body, headers: &HeaderMap, limit: usize, pace: Option<Pace>) -> ApiResult<Bytes> {
    read_within(body, headers, limit, pace, |_| Ok(())).await
}

/// Reads a whole body that `grow` lets become as long as it says.
async fn read_within(
    body: Body,
    headers: &HeaderMap,
    limit: usize,
    pace: Option<Pace>,
    mut grow: impl FnMut(usize) -> ApiResult<()>,
) -> ApiResult<Bytes> {
    let announced =
        headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if headers.contains_key(header::EXPECT) && announced.is_some_and(|length| length > limit as u64) {
        // The client waits for permission to send; it gets the refusal instead.
        return Err(ApiError::body_too_large(limit));
    }
    let mut reader = Reader { body, pace, since: Instant::now(), arrived: 0 };
    let Some(first) = reader.next().await? else { return Ok(Bytes::new()) };
    if first.len() <= limit && announced == Some(first.len() as u64) {
        // The usual case: one frame, no copy.
        return grow(first.len()).map(|()| first);
    }
    let mut whole =
        BytesMut::with_capacity(announced.map_or(first.len(), |length| length.min(limit as u64) as usize));
    let mut next = Some(first);
    while let Some(chunk) = next {
        if whole.len() + chunk.len() > limit {
            reader.throw_away().await;
            return Err(ApiError::body_too_large(limit));
        }
        if let Err(refused) = grow(whole.len() + chunk.len()) {
            drop(whole);
            reader.throw_away().await;
            return Err(refused);
        }
        whole.extend_from_slice(&chunk);
        next = reader.next().await?;
    }
    Ok(whole.freeze())
}

struct Reader {
    body: Body,
    pace: Option<Pace>,
    since: Instant,
    arrived: u64,
}

impl Reader {
    async fn next(&mut self) -> ApiResult<Option<Bytes>> {
        loop {
            let frame = match self.pace {
                Some(pace) => timeout_at(self.since + pace.window, self.body.frame())
                    .await
                    .map_err(|_| too_slow(pace))?,
                None => self.body.frame().await,
            };
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|error| {
                ApiError::new(Code::ClientClosed, "The body ended before its announced length.")
                    .caused_by(error)
            })?;
            let Ok(data) = frame.into_data() else { continue };
            self.arrived += data.len() as u64;
            if self.pace.is_some_and(|pace| self.arrived >= pace.bytes) {
                self.since = Instant::now();
                self.arrived = 0;
            }
            return Ok(Some(data));
        }
    }

    async fn throw_away(&mut self) {
        let mut thrown = 0;
        while thrown < THROWN_AWAY {
            match self.next().await {
                Ok(Some(data)) => thrown += data.len(),
                Ok(None) | Err(_) => return,
            }
        }
    }
}

fn too_slow(pace: Pace) -> ApiError {
    ApiError::new(
        Code::RequestTimeout,
        format!("The body came slower than {} bytes in {} s.", pace.bytes, pace.window.as_secs_f64()),
    )
}

/// The body of a request, within the limit of its route.
pub struct RawBody(pub Bytes);

impl FromRequest<Arc<App>> for RawBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> ApiResult<Self> {
        let limit =
            request.extensions().get::<Matched>().map_or(JSON_LIMIT, |matched| matched.route().body_limit);
        let (parts, body) = request.into_parts();
        let mut share = Share::default();
        let grow = |bytes| share.grow(&app.room, bytes);
        let bytes = read_within(body, &parts.headers, limit, Pace::of(app), grow).await?;
        // What is made of the body is as large as it, and lives until the answer begins.
        if let Some(edge) = parts.extensions.get::<Edge>().filter(|_| !share.is_empty()) {
            edge.takes(share);
        }
        #[cfg(feature = "sabotage")]
        if app.sabotage == Some(crate::sabotage::Sabotage::BodyInLog) {
            tracing::info!(body = %String::from_utf8_lossy(&bytes), "request body");
        }
        #[cfg(feature = "sabotage")]
        if app.sabotage == Some(crate::sabotage::Sabotage::BodyInTrace)
            && let Some(edge) = parts.extensions.get::<Edge>()
        {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            edge.watch.describe(|fields| fields.set(crate::trace::Key::ErrorType, text));
        }
        Ok(Self(bytes))
    }
}

/// A JSON body, read by the one reader. The content type must be JSON or absent.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<Arc<App>> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &Arc<App>) -> ApiResult<Self> {
        require_json(request.headers())?;
        let RawBody(bytes) = RawBody::from_request(request, app).await?;
        json::read(&bytes).map(Self)
    }
}

/// 415 unless the content type is JSON or absent, and the body is not compressed.
pub fn require_json(headers: &HeaderMap) -> ApiResult<()> {
    let plain = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(header::CONTENT_ENCODING).iter().all(plain) {
        return Err(ApiError::new(Code::UnsupportedMediaType, "Send the body without Content-Encoding."));
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let kind = value.to_str().unwrap_or("").split(';').next().unwrap_or("").trim();
    if kind.eq_ignore_ascii_case("application/json") || kind.to_ascii_lowercase().ends_with("+json") {
        Ok(())
    } else {
        Err(ApiError::new(Code::UnsupportedMediaType, "Send the body as Content-Type: application/json."))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn chunks(parts: &[usize]) -> Body {
        let items: Vec<Result<Bytes, std::io::Error>> =
            parts.iter().map(|length| Ok(Bytes::from(vec![b'x'; *length]))).collect();
        Body::from_stream(stream::iter(items))
    }

    #[tokio::test]
    async fn a_body_at_the_limit_passes_and_one_byte_more_does_not() {
        let none = HeaderMap::new();
        assert_eq!(read(chunks(&[3, 4, 3]), &none, 10, None).await.unwrap().len(), 10);
        let error = read(chunks(&[3, 4, 4]), &none, 10, None).await.unwrap_err();
        assert_eq!(error.code, Code::BodyTooLarge);
        assert!(read(chunks(&[]), &none, 10, None).await.unwrap().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickling_body_is_cut_and_a_steady_one_is_not() {
        let pace = Pace { window: Duration::from_secs(10), bytes: 10_240 };
        let trickle = |chunk: usize, every: Duration| {
            Body::from_stream(stream::unfold(0, move |sent| async move {
                tokio::time::sleep(every).await;
                (sent < 40).then(|| (Ok::<_, std::io::Error>(Bytes::from(vec![0; chunk])), sent + 1))
            }))
        };
        let none = HeaderMap::new();
        let slow = read(trickle(1, Duration::from_secs(1)), &none, JSON_LIMIT, Some(pace)).await;
        assert_eq!(slow.unwrap_err().code, Code::RequestTimeout);
        let steady = read(trickle(2048, Duration::from_secs(1)), &none, JSON_LIMIT, Some(pace)).await;
        assert_eq!(steady.unwrap().len(), 40 * 2048);
    }

    #[test]
    fn content_types() {
        let mut headers = HeaderMap::new();
        require_json(&headers).unwrap();
        for (value, good) in [
            ("application/json; charset=utf-8", true),
            ("APPLICATION/JSON", true),
            ("text/plain", false),
            ("application/x-www-form-urlencoded", false),
        ] {
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(require_json(&headers).is_ok(), good, "{value}");
        }
    }
}
