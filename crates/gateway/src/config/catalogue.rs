//! `[catalogue]`: models and prices.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The section `[catalogue]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CatalogueConfig {
    /// The TOML file with models and prices that takes the place of what ships with the program.
    pub path: Option<PathBuf>,
    /// Files with further entries, and folders with such files (`*.toml`).
    pub files: Vec<PathBuf>,
    /// Whether engines of nodes may fetch models whose files nobody pins, by their name on a hub or in a library.
    pub hub_downloads: bool,
    /// Directory with model files, from which tokenizers and chat templates are read for counting. A model whose
    /// files are not here is counted by what its node's model file says, or priced per character.
    pub models_dir: Option<PathBuf>,
    /// Whether enrolled nodes may fetch pinned files from `models_dir`.
    pub serve_models: bool,
    /// Mirrors that nodes are told of: `BASE` (with `BASE/blobs/sha256-…` below it), or URLs with `{sha256}` or `{name}`.
    pub mirrors: Vec<String>,
    /// The seals of the catalogue (`cxmpute catalogue sign`); without them nodes follow the plan alone.
    pub seals: Option<PathBuf>,
}

impl Default for CatalogueConfig {
    fn default() -> Self {
        Self {
            path: None,
            files: Vec::new(),
            hub_downloads: false,
            models_dir: None,
            serve_models: true,
            mirrors: Vec::new(),
            seals: None,
        }
    }
}
