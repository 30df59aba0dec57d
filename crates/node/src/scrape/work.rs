//! One request, URL by URL: judged, counted, fetched, made ready. Every URL gets its own answer.

use std::sync::Arc;
use std::time::Duration;

use cxmpute_egress::{FetchError, Fetcher, Page, Wanted};
use futures_util::StreamExt;
use tokio::time::Instant;

use super::browser::Browser;
use super::charset;
use super::content::Made;
use super::convert::Converter;
use super::quota::Quota;
use super::request;
use cxmpute_wire::scrape::{PageError, PageFormat, PageMetadata, PageResult, ScrapeRequest, ScrapeResponse};

/// URLs of one request that are worked on at a time.
const AT_A_TIME: usize = 4;
/// Time for a whole request; the gateway waits 60 s (gateway.md section 6).
const REQUEST_TIME: Duration = Duration::from_secs(55);
/// Data of one answer. What does not fit is said so, URL by URL.
const ANSWER_LIMIT_BYTES: usize = 16 * 1024 * 1024;
/// What hosts are told we can read.
const ACCEPT: &str = "text/html,application/xhtml+xml,text/plain;q=0.9,application/xml;q=0.8,*/*;q=0.1";
/// Types that are converted as HTML.
const HTML_TYPES: [&str; 2] = ["text/html", "application/xhtml+xml"];
/// Types that are handed on as the text they are.
const TEXT_TYPES: [&str; 9] = [
    "text/plain",
    "text/markdown",
    "text/csv",
    "text/xml",
    "application/xml",
    "application/rss+xml",
    "application/atom+xml",
    "application/json",
    "application/ld+json",
];

/// What all requests share.
#[derive(Debug)]
pub struct Scraper {
    fetcher: Fetcher,
    quota: Quota,
    browser: Option<Browser>,
    converter: Converter,
}

impl Scraper {
    /// A scraper; without a browser it renders nothing.
    #[must_use]
    pub const fn new(fetcher: Fetcher, quota: Quota, converter: Converter, browser: Option<Browser>) -> Self {
        Self { fetcher, quota, browser, converter }
    }

    /// Whether pages can be rendered.
    #[must_use]
    pub const fn renders(&self) -> bool {
        self.browser.is_some()
    }

    /// URLs of today, and the owner's limit.
    #[must_use]
    pub fn today(&self) -> (u64, u64) {
        self.quota.today()
    }

    /// Carries a request out. Dropping the future ends everything it began.
    pub async fn run(self: &Arc<Self>, request: ScrapeRequest) -> ScrapeResponse {
        let deadline = Instant::now() + REQUEST_TIME;
        // What may not be asked costs the owner's day nothing.
        let judged: Vec<_> = request.urls.iter().map(|url| self.fetcher.connector().target(url)).collect();
        let mut left = self.quota.take(judged.iter().filter(|target| target.is_ok()).count());
        let jobs = request.urls.iter().zip(judged).map(|(url, target)| match target {
            Err(refusal) => (url, Some(request::error(refusal.code(), refusal.to_string()))),
            Ok(_) if left == 0 => {
                let message = "The owner of this machine lets it fetch no more today.";
                (url, Some(request::error("daily_limit", message)))
            }
            Ok(_) => {
                left -= 1;
                (url, None)
            }
        });
        let carried: Vec<_> =
            jobs.map(|(url, refused)| self.carry_out(url, refused, &request, deadline)).collect();
        let mut room = Room(ANSWER_LIMIT_BYTES);
        let done = futures_util::stream::iter(carried).buffered(AT_A_TIME);
        ScrapeResponse { results: done.map(|outcome| room.fit(outcome)).collect().await, usage: None }
    }

    async fn carry_out(
        &self,
        url: &str,
        refused: Option<PageError>,
        request: &ScrapeRequest,
        deadline: Instant,
    ) -> PageResult {
        if let Some(error) = refused {
            return request::failed(url, error);
        }
        let late =
            || request::failed(url, request::error("timed_out", "The time for this request was used up."));
        if Instant::now() >= deadline {
            return late();
        }
        let scraping = Box::pin(self.scrape(url, request));
        tokio::time::timeout_at(deadline, scraping).await.unwrap_or_else(|_| late())
    }

    async fn scrape(&self, url: &str, request: &ScrapeRequest) -> PageResult {
        if request.render && self.browser.is_none() {
            let message = "This machine has no browser to render pages with.";
            return request::failed(url, request::error("render_unavailable", message));
        }
        let wanted = Wanted {
            accept: ACCEPT.into(),
            types: HTML_TYPES.iter().chain(&TEXT_TYPES).map(|name| (*name).to_owned()).collect(),
            robots: request.respect_robots,
            ..Wanted::default()
        };
        let page = match self.fetcher.get(url, &wanted).await {
            Ok(page) => page,
            Err(error) => return request::failed(url, told(&error)),
        };
        let mut outcome = PageResult {
            url: url.to_owned(),
            final_url: Some(page.url.to_string()),
            status: Some(page.status.as_u16()),
            content_type: page.content_type.clone(),
            ..PageResult::default()
        };
        if !page.status.is_success() {
            let message = format!("The page answered with status {}.", page.status.as_u16());
            return PageResult { error: Some(request::error("http_status", message)), ..outcome };
        }
        match self.make(page, request).await {
            Ok(made) => {
                outcome.success = true;
                outcome.data = Some(made.data);
                outcome.metadata = Some(made.metadata);
                outcome
            }
            Err(error) => PageResult { error: Some(error), ..outcome },
        }
    }

    async fn make(&self, page: Page, request: &ScrapeRequest) -> Result<Made, PageError> {
        let html = page.media_type().is_some_and(|media_type| HTML_TYPES.contains(&media_type.as_str()));
        let text = charset::decode(&page.body, page.content_type.as_deref());
        if !html {
            return Ok(Made { data: text, metadata: PageMetadata::default() });
        }
        let text = match &self.browser {
            Some(browser) if request.render => {
                // The browser's visit is a request to the host like any other.
                self.fetcher.wait_for_turn(page.url.as_str()).await.map_err(|error| told(&error))?;
                browser.render(&page.url, self.fetcher.connector()).await?
            }
            _ => text,
        };
        let made = self.converter.convert(&text, &page.url, request.format, request.main_content).await;
        match made {
            // The page itself needs no converting; only what it says of itself could not be read.
            Err(error) if error.code == "page_too_complex" && as_it_is(request) => {
                Ok(Made { data: text, metadata: PageMetadata::default() })
            }
            made => made,
        }
    }
}

const fn as_it_is(request: &ScrapeRequest) -> bool {
    matches!(request.format, PageFormat::Html) && !request.main_content
}

fn told(error: &FetchError) -> PageError {
    request::error(error.code(), error.to_string())
}

/// Bytes of data that an answer may still have. Pages are judged as they come: what does not fit is not held.
struct Room(usize);

impl Room {
    /// Takes data away where the whole would be too much for one answer.
    fn fit(&mut self, outcome: PageResult) -> PageResult {
        let size = outcome.data.as_ref().map_or(0, String::len);
        if let Some(rest) = self.0.checked_sub(size) {
            self.0 = rest;
            return outcome;
        }
        let message = "The answer is full; ask for this page in a request of its own.";
        let error = Some(request::error("answer_full", message));
        PageResult { success: false, data: None, metadata: None, error, ..outcome }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_a_size_and_what_does_not_fit_says_so() {
        let page =
            |size: usize| PageResult { success: true, data: Some("x".repeat(size)), ..PageResult::default() };
        let mut room = Room(ANSWER_LIMIT_BYTES);
        let fitted = [ANSWER_LIMIT_BYTES - 10, 11, 10, 1].map(|size| room.fit(page(size)));
        let kept: Vec<bool> =
            fitted.iter().map(|outcome| outcome.success && outcome.data.is_some()).collect();
        assert_eq!(kept, [true, false, true, false]);
        assert_eq!(fitted[1].error.as_ref().unwrap().code, "answer_full");
    }
}
