//! `GET /openapi.json`: the API, described for programs.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::openapi::document;

/// A release changes the document, nothing else does.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// The document, or a 304 for who has it.
pub async fn get_document(headers: HeaderMap) -> Response {
    let document = document();
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    let known = known.flat_map(|value| value.split(',')).any(|tag| {
        let tag = tag.trim();
        tag == "*" || tag.trim_start_matches("W/") == document.etag
    });
    let mut response = match known {
        true => Response::new(Body::empty()),
        false => Response::new(Body::from(document.text.as_str())),
    };
    if known {
        *response.status_mut() = StatusCode::NOT_MODIFIED;
    }
    let headers = response.headers_mut();
    if !known {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    if let Ok(tag) = HeaderValue::from_str(&document.etag) {
        headers.insert(header::ETAG, tag);
    }
    headers.insert(header::CACHE_CONTROL, CACHE);
    response
}
