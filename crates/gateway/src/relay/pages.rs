//! Pages as an errand: addresses to a node, one result for each back, checked, cut of everything that was not asked for,
//! and paid by the page with content.

use bytes::Bytes;
use cxmpute_market::price::Units;
use cxmpute_store::Settled;
use cxmpute_tunnel::WorkPath;
use cxmpute_wire::scrape::{PageError, PageMetadata, PageResult, ScrapeRequest, ScrapeResponse};

use super::errand::{Errand, Misread, Printed, Ticket, failure, object};
use super::retry::Fault;
use super::usage::page_usage;
use crate::app::App;
use crate::error::{ApiError, ApiResult};
use crate::limits;

/// Bytes of JSON that one byte of a page may take.
const ESCAPED: u64 = 2;
/// Bytes around a page.
const ENVELOPE: u64 = 64 * 1024;
/// Longest text that a page says about itself, in characters.
const LABEL: usize = 2_000;
/// Longest sentence of an error, in characters.
const SENTENCE: usize = 300;

/// Pages to fetch.
#[derive(Debug)]
pub struct Pages {
    /// The request as nodes get it.
    pub request: ScrapeRequest,
}

impl Errand for Pages {
    type Answer = Vec<PageResult>;

    fn path(&self) -> WorkPath {
        WorkPath::Scrape
    }

    fn bound(&self) -> Units {
        Units { urls: self.request.urls.len() as u64, ..Units::default() }
    }

    fn node_body(&self, _ticket: &Ticket) -> ApiResult<Bytes> {
        serde_json::to_vec(&self.request).map(Bytes::from).map_err(ApiError::internal)
    }

    fn max_bytes(&self) -> u64 {
        self.request.urls.len() as u64 * (limits::PAGE_BYTES as u64 * ESCAPED + ENVELOPE)
    }

    async fn read(&self, _app: &App, body: Vec<u8>) -> Result<Vec<PageResult>, Misread> {
        if let Some(fault) = failure(&body) {
            return Err(fault.into());
        }
        let answer: NodeAnswer = object(&body)?;
        if answer.results.len() != self.request.urls.len() {
            return Err(Fault::Protocol.into());
        }
        let pages = self.request.urls.iter().zip(answer.results).map(|(url, result)| judge(url, result));
        pages.collect::<Option<Vec<PageResult>>>().ok_or_else(|| Fault::Protocol.into())
    }

    /// Only pages with content are paid (MR31).
    fn delivered(&self, _exact: Units, answer: &Vec<PageResult>) -> Units {
        Units { urls: answer.iter().filter(|page| page.success).count() as u64, ..Units::default() }
    }

    fn print(&self, ticket: &Ticket, answer: Vec<PageResult>, units: &Units, settled: &Settled) -> Printed {
        let usage = page_usage(units, &ticket.model.price, settled);
        Printed::json(&ScrapeResponse { results: answer, usage: Some(usage) })
    }
}

/// What is read of a node's answer: what it says of its price is nothing to us.
#[derive(serde::Deserialize)]
struct NodeAnswer {
    results: Vec<PageResult>,
}

/// One result, made anew of what may be in it: either content, or a reason. None when it is neither, belongs to another
/// address, or is too long.
fn judge(url: &str, page: PageResult) -> Option<PageResult> {
    let web = |address: &String| address.starts_with("http://") || address.starts_with("https://");
    let short = |text: String| -> String { text.chars().filter(|c| !c.is_control()).take(LABEL).collect() };
    let base = PageResult {
        url: url.to_owned(),
        final_url: page.final_url.filter(web).map(short),
        status: page.status.filter(|status| (100..600).contains(status)),
        ..PageResult::default()
    };
    match (page.success, page.data, page.error) {
        (true, Some(data), None)
            if page.url == url && !data.is_empty() && data.len() <= limits::PAGE_BYTES =>
        {
            let metadata = page.metadata.map(|says| PageMetadata {
                title: says.title.map(short),
                description: says.description.map(short),
                author: says.author.map(short),
                publish_date: says.publish_date.map(short),
                language: says.language.map(short),
            });
            let content_type = page.content_type.map(short);
            Some(PageResult { success: true, content_type, data: Some(data), metadata, ..base })
        }
        (false, None, Some(error)) if page.url == url => {
            let known = |c: char| c.is_ascii_lowercase() || c == '_';
            let named = (1..=40).contains(&error.code.len()) && error.code.chars().all(known);
            let message = error.message.chars().filter(|c| !c.is_control()).take(SENTENCE).collect();
            named.then_some(PageResult { error: Some(PageError { code: error.code, message }), ..base })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "https://example.org/";

    fn page(json: serde_json::Value) -> Option<PageResult> {
        judge(URL, serde_json::from_value(json).unwrap())
    }

    #[test]
    fn a_page_has_content_or_a_reason_and_nothing_else() {
        let good = page(serde_json::json!({"url": URL, "success": true, "status": 200, "data": "<p>", "final_url": "javascript:x",
            "metadata": {"title": "a\u{7}b"}, "extra": 1}))
        .unwrap();
        assert_eq!(good.final_url, None, "no address that is none of the web");
        assert_eq!(good.metadata.unwrap().title.as_deref(), Some("ab"));
        let failed = page(
            serde_json::json!({"url": URL, "success": false, "error": {"code": "not_found", "message": "gone"}}),
        );
        assert_eq!(failed.unwrap().error.unwrap().code, "not_found");
        for bad in [
            serde_json::json!({"url": URL, "success": true}),
            serde_json::json!({"url": URL, "success": true, "data": ""}),
            serde_json::json!({"url": URL, "success": true, "data": "x", "error": {"code": "a", "message": ""}}),
            serde_json::json!({"url": "https://other/", "success": true, "data": "x"}),
            serde_json::json!({"url": URL, "success": false, "data": "x"}),
            serde_json::json!({"url": URL, "success": false, "error": {"code": "Not A Code", "message": ""}}),
            serde_json::json!({"url": URL, "success": true, "data": "x".repeat(limits::PAGE_BYTES + 1)}),
        ] {
            assert!(page(bad.clone()).is_none(), "{}", bad.to_string().chars().take(80).collect::<String>());
        }
    }
}
