//! The tokenizers by which users are billed: one per model, read from the operator's model directory when first
//! needed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use cxmpute_market::catalogue::{Catalogue, ModelEntry};
use cxmpute_tokens::TokenCounter;
use cxmpute_wire::ServiceKind;
use parking_lot::RwLock;

/// The counters of the catalogue's models. Clones share them.
#[derive(Clone, Default)]
pub struct Counters {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    directory: Option<PathBuf>,
    loaded: RwLock<HashMap<String, TokenCounter>>,
}

impl Counters {
    /// Counters that are read from `directory` when they are needed.
    #[must_use]
    pub fn new(directory: Option<PathBuf>) -> Self {
        Self { inner: Arc::new(Inner { directory, loaded: RwLock::default() }) }
    }

    /// The ids of the catalogue's models with a pinned tokenizer that the directory does not hold; they are priced per
    /// character, or not served where they have no such price. The others are read when the first node offers them: each takes
    /// megabytes, and a start should not wait for models that nobody serves.
    #[must_use]
    pub fn missing(&self, catalogue: &Catalogue) -> Vec<String> {
        let pinned = |entry: &&Arc<ModelEntry>| {
            matches!(entry.kind, ServiceKind::Llm | ServiceKind::Embeddings) && !entry.files.is_empty()
        };
        let missing = catalogue.entries().iter().filter(pinned).filter(|entry| self.source(entry).is_none());
        missing.map(|entry| entry.id.clone()).collect()
    }

    /// The counter of a model; reads its file off the async threads when that has not happened yet.
    pub async fn of(&self, entry: &ModelEntry) -> Option<TokenCounter> {
        if let Some(counter) = self.inner.loaded.read().get(&entry.id) {
            return Some(counter.clone());
        }
        let (counters, entry) = (self.clone(), entry.clone());
        tokio::task::spawn_blocking(move || counters.get_or_read(&entry)).await.ok().flatten()
    }

    /// Puts a counter in by hand, for worlds without model files.
    pub fn insert(&self, model: &str, counter: TokenCounter) {
        self.inner.loaded.write().insert(model.to_owned(), counter);
    }

    fn get_or_read(&self, entry: &ModelEntry) -> Option<TokenCounter> {
        if let Some(counter) = self.inner.loaded.read().get(&entry.id) {
            return Some(counter.clone());
        }
        let counter = self.read(entry)?;
        self.insert(&entry.id, counter.clone());
        Some(counter)
    }

    /// A GGUF model carries its tokenizer and its chat template in its header; else there is a tokenizer file.
    fn source(&self, entry: &ModelEntry) -> Option<Source> {
        let directory = self.inner.directory.as_ref()?;
        let path = |role: &str| {
            let file = entry.files.iter().find(|file| file.role == role)?;
            let path = directory.join(&file.name);
            path.is_file().then_some(path)
        };
        let model = path("model").filter(|path| path.extension().is_some_and(|e| e == "gguf"));
        model.map(Source::Gguf).or_else(|| path("tokenizer").map(Source::Tokenizer))
    }

    fn read(&self, entry: &ModelEntry) -> Option<TokenCounter> {
        let made = match self.source(entry)? {
            Source::Gguf(model) => TokenCounter::from_gguf(&model),
            Source::Tokenizer(tokenizer) => TokenCounter::from_tokenizer_json(&tokenizer),
        };
        made.inspect_err(|error| tracing::warn!(model = entry.id, %error, "no tokenizer for a model")).ok()
    }
}

/// The file that a counter is read from.
enum Source {
    Gguf(PathBuf),
    Tokenizer(PathBuf),
}
