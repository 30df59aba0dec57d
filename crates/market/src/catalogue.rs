//! The list of models and services the network offers, read from TOML and checked as a whole: a catalogue that
//! loads has usable prices, unique names and complete files (MR4).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use cxmpute_wire::control::ContainerImage;
use cxmpute_wire::{Bytes, Millis, ServiceId, ServiceKind, Tokens};

use crate::price::PriceRow;

mod canvas;
mod capability;
mod container;
mod engine;
mod entry;
mod parameter;
mod places;
mod raw;
mod shipped;

pub use canvas::Canvas;
pub use capability::Capability;
pub use engine::{Engine, EngineSet};
pub use parameter::Parameter;
pub use places::Places;
pub use shipped::SHIPPED;

use raw::{RawCatalogue, RawModel, Source};

/// One model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelEntry {
    /// Model id; opaque, never split.
    pub id: String,
    /// Other names that are accepted.
    pub aliases: Vec<String>,
    /// Name for people.
    pub name: String,
    /// One paragraph.
    pub description: String,
    /// Kind of work.
    pub kind: ServiceKind,
    /// `kind:id`, what a provision serves.
    pub service: ServiceId,
    /// Seconds since 1970 when the model was published.
    pub created: i64,
    /// Who made it.
    pub owned_by: String,
    /// Licence of the model, as an SPDX expression or by its name.
    pub licence: Option<String>,
    /// Tokens of prompt and output together; 0 where the kind has no context.
    pub context_length: Tokens,
    /// Most output tokens; 0 where the kind has none.
    pub max_completion_tokens: Tokens,
    /// Length of vectors, embeddings only.
    pub dimensions: Option<u64>,
    /// Files a node needs.
    pub files: Vec<ModelFile>,
    /// Engines that can run it, in order of preference.
    pub engines: Vec<Engine>,
    /// Where an engine may fetch it, when no files are pinned.
    pub hub: Option<HubReference>,
    /// Its name in Ollama's library.
    pub ollama: Option<String>,
    /// The image that serves it, for the engine `docker`.
    pub container: Option<Arc<ContainerImage>>,
    /// Memory of the machine that one engine needs; beside `vram` where it uses an accelerator.
    pub memory: Bytes,
    /// Memory of accelerators that one engine needs; 0 where it runs on the processor.
    pub vram: Bytes,
    /// Memory of the machine that one engine needs without an accelerator; `None` where it makes no sense without.
    pub cpu_memory: Option<Bytes>,
    /// Disk the files need.
    pub disk: Bytes,
    /// Price.
    pub price: Arc<PriceRow>,
    /// How many provisions the plan wants to serve it.
    pub target: u32,
    /// Quantisation of the model file, in lower case, such as `q8_0`.
    pub quantization: Option<String>,
    /// Time to the first token, where the configured one is too short for this model: of an empty prompt, and more for
    /// each 1,000 prompt tokens.
    pub first_token: Option<(Millis, Millis)>,
    /// Fields of requests that have an effect.
    pub supported_parameters: Vec<Parameter>,
    /// What it can do beyond the usual of its kind.
    pub capabilities: Vec<Capability>,
    /// Names of voices that are accepted, and what the engine calls them; speech only.
    pub voices: BTreeMap<String, String>,
    /// Languages it understands, such as `en-US`; recognition of speech only.
    pub languages: Vec<String>,
    /// What pictures it draws; [`ServiceKind::Image`] only.
    pub canvas: Option<Canvas>,
    /// In which numbers it says where something is.
    pub places: Places,
}

/// How a node gets what an entry needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Files with pinned hashes.
    Pinned,
    /// The engine has the model, or fetches it from a hub or library by name; nobody pins what it gets.
    Library,
    /// The engine's program is all it needs.
    Program,
}

impl ModelEntry {
    /// Whether a field of requests has an effect.
    #[must_use]
    pub fn supports(&self, parameter: Parameter) -> bool {
        self.supported_parameters.contains(&parameter)
    }

    /// Whether it can do something beyond the usual of its kind.
    #[must_use]
    pub fn can(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }

    /// How a node gets it.
    #[must_use]
    pub fn delivery(&self) -> Delivery {
        match (self.files.is_empty(), self.hub.is_some() || self.ollama.is_some()) {
            (false, _) => Delivery::Pinned,
            (true, true) => Delivery::Library,
            (true, false) => Delivery::Program,
        }
    }

    /// Whether a node that has an engine can serve it there: `has_model` says whether the engine holds the model
    /// already, `downloads` whether the operator lets engines fetch what nobody pinned. A model without pinned files is
    /// served by owners whose engines have it, and by nobody else.
    #[must_use]
    pub fn is_servable(&self, engine: Engine, has_model: bool, downloads: bool) -> bool {
        servable(self.delivery(), engine, has_model, downloads)
    }

    /// What a request may hold: `text`, `image`, `audio`, `url`.
    #[must_use]
    pub fn input_modalities(&self) -> Vec<&'static str> {
        match self.kind {
            ServiceKind::Llm if self.can(Capability::Vision) => vec!["text", "image"],
            ServiceKind::Llm | ServiceKind::Embeddings | ServiceKind::Tts | ServiceKind::Image => {
                vec!["text"]
            }
            ServiceKind::Stt => vec!["audio"],
            ServiceKind::Vision => vec!["image"],
            ServiceKind::Scrape => vec!["url"],
        }
    }

    /// What an answer holds: `text`, `embedding`, `audio`, `image`.
    #[must_use]
    pub fn output_modalities(&self) -> Vec<&'static str> {
        match self.kind {
            ServiceKind::Embeddings => vec!["embedding"],
            ServiceKind::Tts => vec!["audio"],
            ServiceKind::Image => vec!["image"],
            ServiceKind::Llm | ServiceKind::Stt | ServiceKind::Vision | ServiceKind::Scrape => vec!["text"],
        }
    }

    /// What the engine calls the model: the name in its own library, else the id.
    #[must_use]
    pub fn name_for(&self, engine: Engine) -> &str {
        let library = match engine {
            Engine::Ollama => self.ollama.as_deref(),
            Engine::Vllm => self.hub.as_ref().map(|hub| &*hub.repository),
            _ => None,
        };
        library.unwrap_or(&self.id)
    }
}

/// See [`ModelEntry::is_servable`].
pub(crate) fn servable(delivery: Delivery, engine: Engine, has_model: bool, downloads: bool) -> bool {
    match delivery {
        _ if has_model => true,
        _ if engine.keeps_own_models() => false,
        Delivery::Pinned | Delivery::Program => true,
        Delivery::Library => downloads,
    }
}

/// A repository on a hub in Hugging Face's layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubReference {
    /// `OWNER/NAME`.
    pub repository: String,
    /// Commit or tag; the newest when absent.
    pub revision: Option<String>,
    /// One file of it; all that the engine wants when absent.
    pub file: Option<String>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFile {
    /// `model`, `tokenizer`, `config`, `pooling`.
    pub role: String,
    /// Path below the model directory.
    pub name: String,
    /// SHA-256, lower-case hexadecimal.
    pub sha256: String,
    /// Size.
    pub size: Bytes,
    /// Its path in the entry's repository on a hub, where the entry names one.
    pub hub: Option<String>,
    /// Where else it can be had: `https://` URLs, with `{sha256}` and `{name}` for the file.
    pub urls: Vec<String>,
}

/// Why a catalogue is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}: {key}: {reason}")]
pub struct CatalogueError {
    /// File as given.
    pub file: String,
    /// Line, from 1.
    pub line: usize,
    /// The key at fault, such as `model.price.prompt`.
    pub key: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// A checked list of models.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    entries: Vec<Arc<ModelEntry>>,
    names: HashMap<String, usize>,
    services: HashMap<ServiceId, usize>,
}

impl Catalogue {
    /// Reads and checks a catalogue. `file` only names the source in errors.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, line and key.
    pub fn parse(text: &str, file: &str) -> Result<Self, CatalogueError> {
        let mut catalogue = Self::default();
        catalogue.read(text, file)?;
        Ok(catalogue)
    }

    /// The catalogue that ships with the program.
    ///
    /// # Errors
    /// Never in a program that was tested: the shipped files are part of it.
    pub fn shipped() -> Result<Self, CatalogueError> {
        let mut catalogue = Self::default();
        for (file, text) in SHIPPED {
            catalogue.read(text, file)?;
        }
        Ok(catalogue)
    }

    /// Adds the entries of one more file. A file with a fault adds those before it; drop the catalogue then.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, line and key; a name that an earlier file has given away is one.
    pub fn read(&mut self, text: &str, file: &str) -> Result<(), CatalogueError> {
        let source = Source { file, text };
        let raw: RawCatalogue = toml::from_str(text)
            .map_err(|e| source.error(e.span().unwrap_or(0..0), "syntax", e.message().to_owned()))?;
        for model in &raw.model {
            let entry = entry::check(&source, model.get_ref(), model.span())?;
            self.add(&source, model.get_ref(), entry)?;
        }
        Ok(())
    }

    fn add(&mut self, source: &Source<'_>, raw: &RawModel, entry: ModelEntry) -> Result<(), CatalogueError> {
        let position = self.entries.len();
        let names =
            std::iter::once(("model.id", &raw.id)).chain(raw.aliases.iter().map(|a| ("model.aliases", a)));
        for (key, name) in names {
            let valid = !name.get_ref().is_empty()
                && name.get_ref().len() <= 150
                && name.get_ref().bytes().all(|b| b.is_ascii_graphic());
            if !valid {
                let reason = format!("`{}` is not 1 to 150 visible ASCII characters", name.get_ref());
                return Err(source.error(name.span(), key, reason));
            }
            if let Some(other) = self.names.insert(name.get_ref().clone(), position) {
                let other = self.entries.get(other).map_or("this one", |entry| &entry.id);
                let reason = format!("`{}` names another model already ({other})", name.get_ref());
                return Err(source.error(name.span(), key, reason));
            }
        }
        self.services.insert(entry.service.clone(), position);
        self.entries.push(Arc::new(entry));
        Ok(())
    }

    /// The model with this id or alias.
    #[must_use]
    pub fn resolve(&self, model_or_alias: &str) -> Option<&Arc<ModelEntry>> {
        self.names.get(model_or_alias).and_then(|position| self.entries.get(*position))
    }

    /// The model that this service serves.
    #[must_use]
    pub fn by_service(&self, service: &ServiceId) -> Option<&Arc<ModelEntry>> {
        self.services.get(service).and_then(|position| self.entries.get(*position))
    }

    /// All models in the order of the files.
    #[must_use]
    pub fn entries(&self) -> &[Arc<ModelEntry>] {
        &self.entries
    }
}

#[cfg(test)]
mod tests;
