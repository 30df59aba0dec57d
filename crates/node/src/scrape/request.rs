//! What is asked of the engine: the shapes are those of the API; here they are read, and pages that gave nothing are named.

use cxmpute_wire::Code;
use cxmpute_wire::scrape::{PageError, PageResult, ScrapeRequest};

/// URLs of one request (gateway.md section 9).
pub const URLS_LIMIT: usize = 20;

/// A request that is not carried out at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRequest {
    /// The code of the API.
    pub code: Code,
    /// The field that is wrong, if one is.
    pub field: Option<&'static str>,
    /// One sentence.
    pub message: String,
}

/// Reads a request.
///
/// # Errors
/// It is no JSON, a field has the wrong type, or the number of URLs is out of range.
pub fn parse(body: &[u8]) -> Result<ScrapeRequest, BadRequest> {
    let request: ScrapeRequest = serde_json::from_slice(body).map_err(|error| {
        let code = if error.is_data() { Code::InvalidParameter } else { Code::InvalidJson };
        BadRequest { code, field: None, message: format!("The request cannot be read: {error}.") }
    })?;
    let count = request.urls.len();
    if count == 0 || count > URLS_LIMIT {
        let message = format!("`urls` has {count} entries; 1 to {URLS_LIMIT} are taken.");
        return Err(BadRequest { code: Code::InvalidParameter, field: Some("urls"), message });
    }
    Ok(request)
}

/// A code and a sentence.
#[must_use]
pub fn error(code: &str, message: impl Into<String>) -> PageError {
    PageError { code: code.to_owned(), message: message.into() }
}

/// A URL that gave nothing.
#[must_use]
pub fn failed(url: &str, error: PageError) -> PageResult {
    PageResult { url: url.to_owned(), error: Some(error), ..PageResult::default() }
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::scrape::PageFormat;

    use super::*;

    #[test]
    fn a_request_has_defaults_and_bounds() {
        let request = parse(br#"{"urls":["https://example.com"],"model":"x"}"#).unwrap();
        assert_eq!((request.format, request.render, request.respect_robots), (PageFormat::Html, false, true));
        let many = serde_json::json!({"urls": vec!["https://example.com"; 21]}).to_string();
        for (body, code) in [
            ("{\"urls\":[]}", Code::InvalidParameter),
            (&*many, Code::InvalidParameter),
            ("{}", Code::InvalidParameter),
            ("{\"urls\":\"https://example.com\"}", Code::InvalidParameter),
            ("{\"urls\":[1]}", Code::InvalidParameter),
            ("{\"urls\":[\"a\"],\"format\":\"pdf\"}", Code::InvalidParameter),
            ("{\"urls\":", Code::InvalidJson),
        ] {
            assert_eq!(parse(body.as_bytes()).unwrap_err().code, code, "{body}");
        }
    }
}
