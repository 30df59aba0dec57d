//! The API, described: `GET /openapi.json` for programs, `GET /docs` for people.

use axum::response::Response;
use http::{HeaderMap, HeaderValue};

use crate::openapi::document;
use crate::web::{page, reference, unless_known};

/// A release changes both, nothing else does.
const CACHE: HeaderValue = HeaderValue::from_static("public, max-age=300");

/// The document, or a 304 for who has it.
pub async fn get_document(headers: HeaderMap) -> Response {
    let document = document();
    unless_known(&document.text, &document.etag, CACHE, &headers)
}

/// The reference page, or a 304 for who has it.
pub async fn get_reference(headers: HeaderMap) -> Response {
    let (html, etag) = reference::html();
    page(html, etag, CACHE, &headers)
}
