//! Anthropic's routes: the Messages API, version 2023-06-01, translated onto chats.

mod answer;
pub mod count;
pub mod messages;
mod request;

use cxmpute_wire::anthropic::VERSION;
use http::HeaderMap;

use crate::error::{ApiError, ApiResult};

/// Only one version is spoken; a client that names none gets it, too.
fn check_version(headers: &HeaderMap) -> ApiResult<()> {
    match headers.get("anthropic-version") {
        Some(version) if version.as_bytes() != VERSION.as_bytes() => {
            let message = format!("anthropic-version is {VERSION}.");
            Err(ApiError::invalid_parameter("anthropic-version", message))
        }
        _ => Ok(()),
    }
}
