//! Routes of the first seed that OpenAI has none for: pictures and pages.

pub mod scrape;
pub mod sight;
