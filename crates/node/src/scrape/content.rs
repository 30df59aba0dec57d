//! What is made of a page: html, text or markdown, whole or only its main part.

use dom_query::Document;
use dom_smoothie::{Config, Readability, TextMode};
use serde::{Deserialize, Serialize};
use url::Url;

use super::document::{self, Parsed};
use super::metadata;
use super::request;
use cxmpute_wire::scrape::{PageError, PageFormat, PageMetadata};

/// Elements in which the main part is searched; a page with more is given whole.
const READABILITY_ELEMENTS: usize = 50_000;
/// Bytes that absolute links may add.
const LINKS_LIMIT_BYTES: usize = 2 * 1024 * 1024;
/// Longest data of one page.
pub const DATA_LIMIT_BYTES: usize = 5 * 1024 * 1024;
/// What no reader sees.
const UNSEEN: &str = "script, style, noscript, template, svg, iframe, object, embed, head, [hidden]";

/// A page made ready.
#[derive(Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Made {
    /// In the format asked for.
    pub data: String,
    /// What it says of itself.
    pub metadata: PageMetadata,
}

/// Makes a page of HTML ready. Takes up to a few seconds of one core for the largest pages.
///
/// # Errors
/// The page is nested too deeply, or too large.
pub fn make(html: String, url: &Url, format: PageFormat, main: bool) -> Result<Made, PageError> {
    let Parsed { document, cut } = document::parse(&html);
    let metadata = metadata::read(&document);
    if format == PageFormat::Html && !main {
        return sized(html, metadata);
    }
    drop(html);
    if let Some(why) = cut {
        return Err(request::error("page_too_complex", format!("The page cannot be converted: {why}.")));
    }
    absolute_links(&document, url);
    let data = match main.then(|| main_part(&document, format)).flatten() {
        Some(part) => part,
        None => whole(&document, format),
    };
    sized(data, metadata)
}

fn sized(data: String, metadata: PageMetadata) -> Result<Made, PageError> {
    if data.len() > DATA_LIMIT_BYTES {
        let message = format!("The converted page is larger than {DATA_LIMIT_BYTES} bytes.");
        return Err(request::error("too_large", message));
    }
    Ok(Made { data, metadata })
}

fn whole(document: &Document, format: PageFormat) -> String {
    if format == PageFormat::Html {
        return document.html().to_string();
    }
    document.select(UNSEEN).remove();
    let text = match format {
        PageFormat::Markdown => document.md(None),
        PageFormat::Text | PageFormat::Html => document.formatted_text(),
    };
    text.trim().to_owned()
}

/// The article of the page, if it has one.
fn main_part(document: &Document, format: PageFormat) -> Option<String> {
    let text_mode = match format {
        PageFormat::Markdown => TextMode::Markdown,
        PageFormat::Text | PageFormat::Html => TextMode::Formatted,
    };
    let config = Config {
        max_elements_to_parse: READABILITY_ELEMENTS,
        // PageMetadata is read elsewhere, with a parser of JSON that bounds its depth.
        disable_json_ld: true,
        text_mode,
        ..Config::default()
    };
    let article = Readability::with_document(document.clone(), None, Some(config)).ok()?.parse().ok()?;
    let part = if format == PageFormat::Html { article.content } else { article.text_content };
    let part = part.trim();
    (!part.is_empty()).then(|| part.to_owned())
}

/// Makes links and pictures absolute, as far as the budget goes.
fn absolute_links(document: &Document, url: &Url) {
    let base = document.base_uri().and_then(|base| url.join(&base).ok());
    let base = base.as_ref().unwrap_or(url);
    let mut budget = LINKS_LIMIT_BYTES;
    for (selector, attribute) in [("a[href]", "href"), ("img[src]", "src")] {
        for element in document.select(selector).iter() {
            let Some(value) = element.attr(attribute) else { continue };
            if value.starts_with('#') {
                continue;
            }
            let Ok(absolute) = base.join(&value) else { continue };
            let Some(left) = budget.checked_sub(absolute.as_str().len()) else { return };
            budget = left;
            element.set_attr(attribute, absolute.as_str());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const PAGE: &str = include_str!("../../tests/it/article.html");
    /// What the largest page may take, on a machine that builds something else meanwhile and without optimisation.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn url() -> Url {
        Url::parse("https://example.com/a/b").unwrap()
    }

    fn made(format: PageFormat, main: bool) -> String {
        make(PAGE.to_owned(), &url(), format, main).unwrap().data
    }

    #[test]
    fn each_format_keeps_what_it_promises() {
        assert_eq!(made(PageFormat::Html, false), PAGE);
        let markdown = made(PageFormat::Markdown, false);
        assert!(markdown.contains("# Tides and clocks") && markdown.contains("## The moon"), "{markdown}");
        assert!(markdown.contains("(https://example.com/a/harbour)"), "{markdown}");
        assert!(markdown.contains("Imprint") && !markdown.contains("tracking"), "{markdown}");
        let text = made(PageFormat::Text, false);
        assert!(text.contains("Tides and clocks") && text.contains("Imprint"), "{text}");
        for noise in ["tracking", "color: red", "<p>", "enable scripts"] {
            assert!(!text.contains(noise), "{noise}: {text}");
        }
    }

    #[test]
    fn the_main_part_leaves_the_rest_out() {
        for format in [PageFormat::Text, PageFormat::Markdown, PageFormat::Html] {
            let part = made(format, true);
            assert!(part.contains("twice a day"), "{format:?}: {part}");
            assert!(!part.contains("Imprint") && !part.contains("Subscribe"), "{format:?}: {part}");
        }
        // A page without an article is given whole.
        let little = make("<p>short</p>".into(), &url(), PageFormat::Text, true).unwrap();
        assert_eq!(little.data, "short");
    }

    #[test]
    fn hostile_pages_are_bounded() {
        let deep = "<div>".repeat(100_000) + "bottom";
        let foster = format!("<table>{}", "<div>".repeat(100_000));
        let links = "<a href=/x>y</a> ".repeat(300_000);
        let bold: String = (0..400).map(|n| format!("<b id={n}>")).collect();
        // The parser opens all of them again for every paragraph.
        let formatting = format!("<p>{bold}</p>{}", "<p>x".repeat(100_000));
        let begun = Instant::now();
        for (what, page) in [("deep", deep), ("foster", foster), ("links", links), ("formatting", formatting)]
        {
            let error = make(page.clone(), &url(), PageFormat::Markdown, true).unwrap_err();
            assert_eq!(error.code, "page_too_complex", "{what}");
            assert_eq!(make(page.clone(), &url(), PageFormat::Html, false).unwrap().data, page, "{what}");
        }
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }

    #[test]
    fn the_deepest_and_largest_page_that_passes_is_converted() {
        let begun = Instant::now();
        let deep = "<div>".repeat(document::DEPTH_LIMIT - 20) + "bottom";
        let large = "<p>some <b>words</b> of a <a href=x>long</a> page, and more.</p>\n".repeat(15_000);
        for (page, word) in [(deep, "bottom"), (large, "long")] {
            for main in [false, true] {
                for format in [PageFormat::Text, PageFormat::Markdown, PageFormat::Html] {
                    let made = make(page.clone(), &url(), format, main).unwrap();
                    assert!(made.data.contains(word), "{format:?} {main}");
                }
            }
        }
        assert!(begun.elapsed() < PATIENCE, "{:?}", begun.elapsed());
    }

    #[test]
    fn links_are_made_absolute_within_a_budget() {
        let base = Url::parse(&format!("https://example.com/{}/", "x".repeat(4000))).unwrap();
        let page = "<a href=y>z</a>".repeat(5000);
        let made = make(page, &base, PageFormat::Markdown, false).unwrap();
        assert!(made.data.len() < LINKS_LIMIT_BYTES * 2, "{}", made.data.len());
        assert!(made.data.contains("https://example.com/xxx"));
    }
}
