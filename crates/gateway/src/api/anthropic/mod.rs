//! Anthropic's routes: the Messages API, version 2023-06-01, translated onto chats.

mod answer;
pub mod count;
pub mod messages;
mod request;

use cxmpute_wire::anthropic::VERSION;
use http::HeaderMap;

use crate::error::{ApiError, ApiResult};

/// Every answer has the shape of one version, whichever the client names: later versions of the clients read it, too.
fn check_version(headers: &HeaderMap) -> ApiResult<()> {
    match headers.get("anthropic-version") {
        Some(version) if !is_date(version.as_bytes()) => {
            let message = format!("anthropic-version is a date, such as {VERSION}.");
            Err(ApiError::invalid_parameter("anthropic-version", message))
        }
        _ => Ok(()),
    }
}

/// `YYYY-MM-DD`.
fn is_date(text: &[u8]) -> bool {
    text.len() == VERSION.len()
        && text.iter().zip(VERSION.bytes()).all(|(byte, model)| match model {
            b'-' => *byte == b'-',
            _ => byte.is_ascii_digit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_a_date() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("anthropic-version", http::HeaderValue::from_static(text));
            check_version(&headers).is_ok()
        };
        assert!(check_version(&HeaderMap::new()).is_ok() && of(VERSION) && of("2026-10-21"));
        assert!(!of("latest") && !of("2023-6-01") && !of("2023-06-011") && !of(""));
    }
}
