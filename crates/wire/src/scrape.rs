//! Fetching pages: the first seed's `/scrape`, with one result for every address.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::openai::ProviderPreferences;
use crate::sight::PieceUsage;

/// `POST /scrape`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
pub struct ScrapeRequest {
    /// Addresses, `http` or `https`.
    pub urls: Vec<String>,
    /// What is wanted of each page.
    #[serde(default)]
    pub format: PageFormat,
    /// Only the main part of the page: no menus, no footers.
    #[serde(default)]
    pub main_content: bool,
    /// Run the page's scripts in a browser first.
    #[serde(default)]
    pub render: bool,
    /// Leave out what the site's `robots.txt` forbids; true when absent.
    #[serde(default = "yes")]
    pub respect_robots: bool,
    /// Model id or alias of the service; the first that fetches pages when absent.
    #[serde(default, skip_serializing)]
    pub model: Option<String>,
    /// What the caller wants of the nodes; stays in the gateway.
    #[serde(default, skip_serializing)]
    pub provider: Option<ProviderPreferences>,
}

const fn yes() -> bool {
    true
}

/// What is wanted of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PageFormat {
    /// The markup.
    #[default]
    Html,
    /// Plain text.
    Text,
    /// Markdown.
    Markdown,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ScrapeResponse {
    /// One for each address, in order.
    pub results: Vec<PageResult>,
    /// What was counted and what it cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<PieceUsage>,
}

/// One page, or why there is none.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PageResult {
    /// The address as given.
    pub url: String,
    /// Where redirects led.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_url: Option<String>,
    /// The site's status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Whether there is content; only then it is charged.
    pub success: bool,
    /// Type of the page as the site declares it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    /// The page in the wanted format.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// What the page says about itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata: Option<PageMetadata>,
    /// Why there is no content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<PageError>,
}

/// What a page says about itself. Untrusted text.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PageMetadata {
    /// Title.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Author.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// When it was published, as the page prints it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub publish_date: Option<String>,
    /// Language.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language: Option<String>,
}

/// Why a page was not fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct PageError {
    /// Stable code.
    pub code: String,
    /// One sentence.
    pub message: String,
}
