//! Model files that nodes may fetch: which of the catalogue lie in this gateway's model directory, and what the plan tells
//! nodes of where else to look.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use cxmpute_market::catalogue::{Catalogue, ModelFile};
use cxmpute_wire::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::CatalogueConfig;

/// Transfers at a time: the gateway has other work, and nodes come back.
const TRANSFERS: usize = 16;

/// The files that are given out.
#[derive(Debug)]
pub struct Larder {
    folder: Option<PathBuf>,
    mirrors: Vec<String>,
    files: HashMap<String, (String, Bytes)>,
    transfers: Arc<Semaphore>,
}

impl Larder {
    /// As configured; only what the catalogue pins is ever given out.
    #[must_use]
    pub fn new(config: &CatalogueConfig, catalogue: &Catalogue) -> Self {
        let files = catalogue.entries().iter().flat_map(|entry| &entry.files);
        Self {
            folder: config.models_dir.clone().filter(|_| config.serve_models),
            mirrors: config.mirrors.clone(),
            files: files.map(|file| (file.sha256.clone(), (file.name.clone(), file.size))).collect(),
            transfers: Arc::new(Semaphore::new(TRANSFERS)),
        }
    }

    /// Where a file of this sum lies here, with its size. The sum itself is checked by whoever fetches it.
    #[must_use]
    pub fn find(&self, sha256: &str) -> Option<(PathBuf, u64)> {
        let (name, size) = self.files.get(sha256)?;
        let path = self.folder.as_ref()?.join(name);
        let meta = std::fs::metadata(&path).ok()?;
        (meta.is_file() && meta.len() == size.0).then_some((path, size.0))
    }

    /// A place for one transfer; `None` while there are enough.
    #[must_use]
    pub fn transfer(&self) -> Option<OwnedSemaphorePermit> {
        self.transfers.clone().try_acquire_owned().ok()
    }

    /// Where nodes may look for a file: here, the operator's mirrors, what the catalogue says.
    #[must_use]
    pub fn urls(&self, file: &ModelFile) -> Vec<String> {
        let own = self.find(&file.sha256).map(|_| format!("/api/v1/blobs/{}", file.sha256));
        own.into_iter().chain(self.mirrors.iter().cloned()).chain(file.urls.iter().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_catalogue_are_given_out_and_only_whole() {
        let dir = tempfile::tempdir().unwrap();
        let catalogue = Catalogue::shipped().unwrap();
        let file = catalogue.resolve("cxm-tiny").unwrap().files[0].clone();
        let mut config = CatalogueConfig {
            models_dir: Some(dir.path().to_owned()),
            mirrors: vec!["https://mirror.example".into()],
            ..CatalogueConfig::default()
        };
        let larder = Larder::new(&config, &catalogue);
        let path = dir.path().join(&file.name);
        std::fs::write(&path, vec![0; 10]).unwrap();
        assert_eq!((larder.find(&file.sha256), larder.urls(&file)), (None, config.mirrors.clone()));
        std::fs::File::options().write(true).open(&path).unwrap().set_len(file.size.0).unwrap();
        assert_eq!(larder.find(&file.sha256), Some((path, file.size.0)));
        assert_eq!(larder.urls(&file)[0], format!("/api/v1/blobs/{}", file.sha256));
        assert_eq!(larder.find(&"0".repeat(64)), None);
        config.serve_models = false;
        assert_eq!(Larder::new(&config, &catalogue).find(&file.sha256), None);
    }
}
