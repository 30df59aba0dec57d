//! The shape of a catalogue file, before anything but its shape is checked.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::Deserialize;
use toml::Spanned;

use super::CatalogueError;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCatalogue {
    #[serde(default)]
    pub model: Vec<Spanned<RawModel>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    pub id: Spanned<String>,
    #[serde(default)]
    pub aliases: Vec<Spanned<String>>,
    pub name: Option<String>,
    #[serde(default)]
    pub description: String,
    pub kind: Spanned<String>,
    #[serde(default)]
    pub created: i64,
    #[serde(default)]
    pub owned_by: String,
    pub licence: Option<Spanned<String>>,
    pub context_length: Option<Spanned<i64>>,
    pub max_completion_tokens: Option<Spanned<i64>>,
    pub dimensions: Option<Spanned<i64>>,
    #[serde(default)]
    pub file: Vec<Spanned<RawFile>>,
    #[serde(default)]
    pub engines: Vec<Spanned<String>>,
    #[serde(default)]
    pub memory_mb: u32,
    #[serde(default)]
    pub vram_mb: u32,
    pub cpu_memory_mb: Option<Spanned<i64>>,
    #[serde(default)]
    pub disk_mb: u32,
    pub hub: Option<Spanned<RawHub>>,
    pub ollama: Option<Spanned<String>>,
    pub container: Option<Spanned<RawContainer>>,
    pub capabilities: Option<Vec<Spanned<String>>>,
    #[serde(default)]
    pub voices: BTreeMap<String, Spanned<String>>,
    #[serde(default)]
    pub languages: Vec<Spanned<String>>,
    pub canvas: Option<Spanned<RawCanvas>>,
    pub places: Option<Spanned<String>>,
    pub price: Spanned<RawPrice>,
    #[serde(default = "one")]
    pub target: u32,
    pub quantization: Option<Spanned<String>>,
    pub first_token_ms: Option<Spanned<i64>>,
    #[serde(default)]
    pub first_token_ms_per_1k: Option<Spanned<i64>>,
    pub supported_parameters: Option<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCanvas {
    pub usual: String,
    pub most_side: u32,
    pub unit_pixels: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawHub {
    pub repository: Spanned<String>,
    pub revision: Option<Spanned<String>>,
    pub file: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawContainer {
    pub image: Spanned<String>,
    pub command: Spanned<Vec<String>>,
    pub environment: Option<Spanned<BTreeMap<String, String>>>,
    pub cpus: Option<Spanned<f64>>,
    pub pids: Option<Spanned<i64>>,
    pub tmp_mb: Option<Spanned<i64>>,
    pub shm_mb: Option<Spanned<i64>>,
    pub gpu: Option<Spanned<bool>>,
    pub ready: Option<Spanned<RawReady>>,
    pub paths: Option<Spanned<Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawReady {
    pub path: Option<String>,
    pub status: Option<u16>,
    pub body: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawFile {
    pub role: String,
    pub name: String,
    pub sha256: Spanned<String>,
    pub size: Spanned<i64>,
    pub hub: Option<Spanned<String>>,
    #[serde(default)]
    pub urls: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPrice {
    pub version: Spanned<i64>,
    pub prompt: Option<Spanned<i64>>,
    pub completion: Option<Spanned<i64>>,
    pub embedding: Option<Spanned<i64>>,
    pub character: Option<Spanned<i64>>,
    pub second: Option<Spanned<i64>>,
    pub url: Option<Spanned<i64>>,
    pub image: Option<Spanned<i64>>,
    pub minimum: Option<Spanned<i64>>,
    pub share_bp: Option<Spanned<i64>>,
    #[serde(default)]
    pub free: bool,
}

const fn one() -> u32 {
    1
}

/// Where an error is: file and text, to turn byte positions into lines.
pub(super) struct Source<'a> {
    pub file: &'a str,
    pub text: &'a str,
}

impl Source<'_> {
    pub fn error(
        &self,
        span: Range<usize>,
        key: impl Into<String>,
        reason: impl Into<String>,
    ) -> CatalogueError {
        let end = span.start.min(self.text.len());
        let line = self.text.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count() + 1;
        CatalogueError { file: self.file.to_owned(), line, key: key.into(), reason: reason.into() }
    }

    /// A whole number of at least `least`.
    pub fn number(&self, value: &Spanned<i64>, key: &str, least: i64) -> Result<u64, CatalogueError> {
        let number = *value.get_ref();
        let checked = u64::try_from(number).ok().filter(|_| number >= least);
        checked.ok_or_else(|| self.error(value.span(), key, format!("{number} is below {least}")))
    }
}
