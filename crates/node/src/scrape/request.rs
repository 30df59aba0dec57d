//! What is asked of the engine, and what it answers.

use cxmpute_wire::Code;
use serde::{Deserialize, Serialize};

/// URLs of one request (gateway.md section 9).
pub const URLS_LIMIT: usize = 20;

/// `POST /v1/scrape`
#[derive(Clone, Debug, Deserialize)]
pub struct ScrapeRequest {
    /// What to fetch, 1 to 20.
    pub urls: Vec<String>,
    /// What to make of it.
    #[serde(default)]
    pub format: Format,
    /// Whether scripts run before the page is read.
    #[serde(default)]
    pub render: bool,
    /// Whether only the article is wanted, without navigation and the like.
    #[serde(default)]
    pub main_content: bool,
    /// Whether hosts' robots.txt files are obeyed.
    #[serde(default = "yes")]
    pub respect_robots: bool,
}

const fn yes() -> bool {
    true
}

/// What is made of a page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// The page as it is.
    #[default]
    Html,
    /// Its readable text.
    Text,
    /// The same with its structure.
    Markdown,
}

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

impl ScrapeRequest {
    /// Reads a request.
    ///
    /// # Errors
    /// It is no JSON, a field has the wrong type, or the number of URLs is out of range.
    pub fn parse(body: &[u8]) -> Result<Self, BadRequest> {
        let request: Self = serde_json::from_slice(body).map_err(|error| {
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
}

/// The answer: one result for each URL, in order.
#[derive(Debug, Serialize)]
pub struct ScrapeAnswer {
    /// The results.
    pub results: Vec<Outcome>,
}

/// What became of one URL: `data` or `error`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// The URL as asked for.
    pub url: String,
    /// The URL that answered, after redirects.
    pub final_url: Option<String>,
    /// Its HTTP status.
    pub status: Option<u16>,
    /// Whether there is data.
    pub success: bool,
    /// The content type that the host declared.
    pub content_type: Option<String>,
    /// The page in the format asked for.
    pub data: Option<String>,
    /// What the page says of itself.
    pub metadata: Option<Metadata>,
    /// Why there is no data.
    pub error: Option<UrlError>,
}

/// What a page says of itself. All of it is a stranger's text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Metadata {
    /// Its title.
    pub title: Option<String>,
    /// A summary.
    pub description: Option<String>,
    /// Who wrote it.
    pub author: Option<String>,
    /// When, as the page writes it.
    pub publish_date: Option<String>,
    /// Its language, as a tag such as `en`.
    pub language: Option<String>,
}

/// Why one URL gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct UrlError {
    /// A stable code.
    pub code: String,
    /// One sentence.
    pub message: String,
}

impl UrlError {
    /// A code and a sentence.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

impl Outcome {
    /// A URL that gave nothing.
    #[must_use]
    pub fn failed(url: &str, error: UrlError) -> Self {
        Self { url: url.to_owned(), error: Some(error), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_defaults_and_bounds() {
        let request = ScrapeRequest::parse(br#"{"urls":["https://example.com"],"model":"x"}"#).unwrap();
        assert_eq!((request.format, request.render, request.respect_robots), (Format::Html, false, true));
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
            assert_eq!(ScrapeRequest::parse(body.as_bytes()).unwrap_err().code, code, "{body}");
        }
    }
}
