//! `[store]`: database and data directory.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The section `[store]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoreConfig {
    /// Directory of everything this gateway keeps: the SQLite database and the pepper of the key hashes.
    pub data_dir: PathBuf,
    /// `sqlite:PATH` or `postgres://…`; by default a SQLite file in the data directory.
    pub url: Option<String>,
    /// File with the pepper of the key hashes; by default `pepper` in the data directory. Replicas share it.
    pub pepper_file: Option<PathBuf>,
    /// Name of this process among the gateways of one PostgreSQL database; each needs its own.
    pub replica: String,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("cxmpute-data"),
            url: None,
            pepper_file: None,
            replica: "gateway".to_owned(),
        }
    }
}

impl StoreConfig {
    /// The database's address.
    #[must_use]
    pub fn url(&self) -> String {
        match &self.url {
            Some(url) => url.clone(),
            None => format!("sqlite:{}", self.data_dir.join("cxmpute.db").display()),
        }
    }

    /// The pepper's file.
    #[must_use]
    pub fn pepper_file(&self) -> PathBuf {
        self.pepper_file.clone().unwrap_or_else(|| self.data_dir.join("pepper"))
    }
}
