//! What a page says of itself: its title, its `meta` elements, its JSON-LD.

use dom_query::Document;
use serde_json::Value;

use cxmpute_wire::scrape::PageMetadata;

/// Longest value that is handed on, in characters.
const VALUE_LIMIT_CHARS: usize = 1000;
/// Longest block of JSON-LD that is read.
const JSON_LIMIT_BYTES: usize = 256 * 1024;
/// Blocks of JSON-LD that are read.
const JSON_BLOCKS: usize = 8;
/// Levels of JSON-LD that are searched, and entries of its lists.
const JSON_DEPTH: usize = 4;

/// Reads it.
#[must_use]
pub fn read(document: &Document) -> PageMetadata {
    let stated = Stated::of(document);
    let title = || document.select("title").iter().next().map(|title| title.text().to_string());
    let language = document.select("html").attr("lang").map(|lang| lang.to_string());
    let stamped = || document.select("time[datetime]").attr("datetime").map(|date| date.to_string());
    let metadata = PageMetadata {
        title: stated.first(&["og:title"]).or_else(title).or_else(|| stated.json(&["headline", "name"])),
        description: stated.first(&[
            "description",
            "og:description",
            "twitter:description",
            "dc.description",
        ]),
        author: stated
            .first(&["author", "article:author", "dc.creator", "parsely-author"])
            .or_else(|| stated.json_author()),
        publish_date: stated
            .first(&[
                "article:published_time",
                "date",
                "dc.date",
                "dc.date.issued",
                "publish_date",
                "pubdate",
            ])
            .or_else(|| stated.json(&["datePublished", "dateCreated"]))
            .or_else(stamped),
        language: language.or_else(|| stated.first(&["content-language", "language", "og:locale"])),
    };
    PageMetadata {
        title: tidy(metadata.title),
        description: tidy(metadata.description),
        author: tidy(metadata.author),
        publish_date: tidy(metadata.publish_date),
        language: tidy(metadata.language),
    }
}

/// What `meta` elements and JSON-LD state.
struct Stated {
    meta: Vec<(String, String)>,
    json: Vec<Value>,
}

impl Stated {
    fn of(document: &Document) -> Self {
        let meta = document.select("meta[content]");
        let meta = meta.iter().filter_map(|element| {
            let name = element.attr("name").or_else(|| element.attr("property"));
            let name = name.or_else(|| element.attr("itemprop")).or_else(|| element.attr("http-equiv"))?;
            Some((name.trim().to_ascii_lowercase(), element.attr("content")?.to_string()))
        });
        let blocks = document.select("script[type=\"application/ld+json\"]");
        let json = blocks.iter().take(JSON_BLOCKS).filter_map(|block| {
            let text = block.text();
            // The parser refuses what is nested deeper than 128 levels.
            (text.len() <= JSON_LIMIT_BYTES).then(|| serde_json::from_str(&text).ok()).flatten()
        });
        Self { meta: meta.collect(), json: json.collect() }
    }

    fn first(&self, names: &[&str]) -> Option<String> {
        let value = |name: &&str| {
            self.meta
                .iter()
                .find(|(key, value)| key == name && !value.trim().is_empty())
                .map(|(_, value)| value.clone())
        };
        names.iter().find_map(value)
    }

    fn json(&self, keys: &[&str]) -> Option<String> {
        keys.iter().find_map(|key| {
            self.json.iter().find_map(|value| search(value, key, JSON_DEPTH)?.as_str().map(str::to_owned))
        })
    }

    fn json_author(&self) -> Option<String> {
        let author = self.json.iter().find_map(|value| search(value, "author", JSON_DEPTH))?;
        let author = author.as_array().and_then(|all| all.first()).unwrap_or(author);
        author.as_str().or_else(|| author.get("name")?.as_str()).map(str::to_owned)
    }
}

/// The first value of a key, itself or in what is listed below.
fn search<'a>(value: &'a Value, key: &str, depth: usize) -> Option<&'a Value> {
    if depth == 0 {
        return None;
    }
    match value {
        Value::Object(map) => {
            map.get(key).or_else(|| map.get("@graph").and_then(|graph| search(graph, key, depth - 1)))
        }
        Value::Array(list) => list.iter().take(20).find_map(|entry| search(entry, key, depth - 1)),
        _ => None,
    }
}

fn tidy(value: Option<String>) -> Option<String> {
    let value: String = value?.split_whitespace().collect::<Vec<_>>().join(" ");
    let value: String = value.chars().filter(|c| !c.is_control()).take(VALUE_LIMIT_CHARS).collect();
    (!value.is_empty()).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_taken_at_its_word() {
        let html = r#"<html lang="de"><head><title> A
            title </title><meta name="Description" content="What it is"><meta property="article:author" content="Ada">
            <meta property="article:published_time" content="2024-05-06T07:08:09Z"></head></html>"#;
        let found = read(&Document::from(html));
        assert_eq!(found.title.as_deref(), Some("A title"));
        assert_eq!(found.description.as_deref(), Some("What it is"));
        assert_eq!((found.author.as_deref(), found.language.as_deref()), (Some("Ada"), Some("de")));
        assert_eq!(found.publish_date.as_deref(), Some("2024-05-06T07:08:09Z"));
        assert_eq!(read(&Document::from("")), PageMetadata::default());
    }

    #[test]
    fn json_ld_fills_what_is_missing() {
        let html = r#"<script type="application/ld+json">{"@graph":[{"@type":"WebSite"},{"@type":"Article","headline":"H",
            "author":[{"@type":"Person","name":"Grace"}],"datePublished":"2023-01-02"}]}</script>
            <script type="application/ld+json">{"broken"</script>"#;
        let found = read(&Document::from(html));
        assert_eq!((found.title.as_deref(), found.author.as_deref()), (Some("H"), Some("Grace")));
        assert_eq!(found.publish_date.as_deref(), Some("2023-01-02"));
        let deep = format!("<script type=\"application/ld+json\">{}</script>", "[".repeat(100_000));
        assert_eq!(read(&Document::from(deep)), PageMetadata::default());
    }
}
