//! `[catalogue]`: models and prices.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The section `[catalogue]`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CatalogueConfig {
    /// The TOML file with models and prices; by default the one that ships with the program.
    pub path: Option<PathBuf>,
    /// Directory with model files, from which tokenizers and chat templates are read for counting. A model whose
    /// files are not here is counted by what its node's model file says, or priced per character.
    pub models_dir: Option<PathBuf>,
}
