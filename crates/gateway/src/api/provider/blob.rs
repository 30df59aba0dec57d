//! `GET /blobs/{sha256}`: a model file for a node that signs (NR32, NR35). The signature is worth a minute and one request, so
//! no address that somebody could pass on gives a file away.

use std::io::SeekFrom;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use bytes::Bytes;
use cxmpute_wire::Code;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::OwnedSemaphorePermit;

use crate::app::App;
use crate::auth::SignedNode;
use crate::error::{ApiError, ApiResult};

/// Bytes that are read at once.
const PIECE_BYTES: usize = 256 * 1024;
/// Seconds after which a node that found all places taken asks again.
const BUSY_SECONDS: u64 = 10;

/// `GET /blobs/{sha256}`.
pub async fn get_blob(
    State(app): State<Arc<App>>,
    sha256: Result<Path<String>, PathRejection>,
    request: Request<Body>,
) -> ApiResult<Response> {
    let (parts, _) = request.into_parts();
    SignedNode::check(&app, &parts, b"").await?;
    let missing = || ApiError::new(Code::NotFound, "This gateway has no such file.");
    let Path(sha256) = sha256.map_err(|_| missing())?;
    let (path, size) = app.larder.find(&sha256).ok_or_else(missing)?;
    let busy = || {
        ApiError::new(Code::RateLimited, "Enough nodes fetch files at the moment.").retry_after(BUSY_SECONDS)
    };
    let place = app.larder.transfer().ok_or_else(busy)?;
    let from = first_byte(&parts.headers, size);
    let unreadable =
        |error: std::io::Error| ApiError::internal(anyhow::Error::from(error).context("a model file"));
    let mut file = File::open(&path).await.map_err(unreadable)?;
    file.seek(SeekFrom::Start(from.unwrap_or(0))).await.map_err(unreadable)?;
    let left = size - from.unwrap_or(0);
    let mut response = Response::new(body(file, left, place));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(left));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if let Ok(tag) = HeaderValue::try_from(format!("\"{sha256}\"")) {
        headers.insert(header::ETAG, tag);
    }
    if let Some(from) = from {
        let range = HeaderValue::try_from(format!("bytes {from}-{}/{size}", size - 1));
        headers.extend(range.ok().map(|range| (header::CONTENT_RANGE, range)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

/// The first byte that is wanted, of `bytes=FIRST-`; every other range is answered with the whole file, as RFC 9110 lets a
/// server do.
fn first_byte(headers: &HeaderMap, size: u64) -> Option<u64> {
    let range = headers.get(header::RANGE)?.to_str().ok()?;
    let first = range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()?;
    (first < size).then_some(first)
}

/// The rest of a file. The place is given back with the body.
fn body(file: File, left: u64, place: OwnedSemaphorePermit) -> Body {
    let pieces = stream::try_unfold((file, left, place), async |(mut file, left, place)| {
        if left == 0 {
            return Ok::<_, std::io::Error>(None);
        }
        let most = usize::try_from(left).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
        let mut piece = vec![0; most];
        let got = file.read(&mut piece).await?;
        if got == 0 {
            return Err(std::io::Error::other("the file became shorter"));
        }
        piece.truncate(got);
        Ok(Some((Bytes::from(piece), (file, left - got as u64, place))))
    });
    Body::from_stream(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ranges_to_the_end_are_ranges_here() {
        let first = |range: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            first_byte(&headers, 100)
        };
        assert_eq!((first("bytes=0-"), first("bytes=99-")), (Some(0), Some(99)));
        for other in ["bytes=100-", "bytes=5-9", "bytes=-5", "bytes=1-,5-", "lines=1-", "bytes=x-"] {
            assert_eq!(first(other), None, "{other}");
        }
        assert_eq!(first_byte(&HeaderMap::new(), 100), None);
    }
}
