//! The list of models and services the network offers, read from TOML and checked as a whole: a catalogue that
//! loads has usable prices, unique names and complete files (MR4).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use cxmpute_wire::{Bytes, MicroCredits, Millis, ServiceId, ServiceKind, Tokens};
use serde::Deserialize;
use toml::Spanned;

use crate::price::{DEFAULT_SHARE_BP, PriceRow};

mod parameter;

pub use parameter::Parameter;

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
    /// Tokens of prompt and output together; 0 where the kind has no context.
    pub context_length: Tokens,
    /// Most output tokens; 0 where the kind has none.
    pub max_completion_tokens: Tokens,
    /// Length of vectors, embeddings only.
    pub dimensions: Option<u64>,
    /// Files a node needs.
    pub files: Vec<ModelFile>,
    /// Engines that can run it, in order of preference.
    pub engines: Vec<String>,
    /// Memory one engine needs.
    pub memory: Bytes,
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
}

impl ModelEntry {
    /// Whether a field of requests has an effect.
    #[must_use]
    pub fn supports(&self, parameter: Parameter) -> bool {
        self.supported_parameters.contains(&parameter)
    }
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
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCatalogue {
    #[serde(default)]
    model: Vec<Spanned<RawModel>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModel {
    id: Spanned<String>,
    #[serde(default)]
    aliases: Vec<Spanned<String>>,
    name: Option<String>,
    #[serde(default)]
    description: String,
    kind: Spanned<String>,
    #[serde(default)]
    created: i64,
    #[serde(default)]
    owned_by: String,
    context_length: Option<Spanned<i64>>,
    max_completion_tokens: Option<Spanned<i64>>,
    dimensions: Option<Spanned<i64>>,
    #[serde(default)]
    file: Vec<Spanned<RawFile>>,
    #[serde(default)]
    engines: Vec<String>,
    #[serde(default)]
    memory_mb: u32,
    #[serde(default)]
    disk_mb: u32,
    price: Spanned<RawPrice>,
    #[serde(default = "one")]
    target: u32,
    quantization: Option<Spanned<String>>,
    first_token_ms: Option<Spanned<i64>>,
    #[serde(default)]
    first_token_ms_per_1k: Option<Spanned<i64>>,
    supported_parameters: Option<Vec<Spanned<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    role: String,
    name: String,
    sha256: Spanned<String>,
    size: Spanned<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPrice {
    version: Spanned<i64>,
    prompt: Option<Spanned<i64>>,
    completion: Option<Spanned<i64>>,
    embedding: Option<Spanned<i64>>,
    character: Option<Spanned<i64>>,
    second: Option<Spanned<i64>>,
    url: Option<Spanned<i64>>,
    image: Option<Spanned<i64>>,
    minimum: Option<Spanned<i64>>,
    share_bp: Option<Spanned<i64>>,
    #[serde(default)]
    free: bool,
}

const fn one() -> u32 {
    1
}

/// Where an error is: file and text, to turn byte positions into lines.
struct Source<'a> {
    file: &'a str,
    text: &'a str,
}

impl Source<'_> {
    fn error(&self, span: Range<usize>, key: impl Into<String>, reason: impl Into<String>) -> CatalogueError {
        let end = span.start.min(self.text.len());
        let line = self.text.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count() + 1;
        CatalogueError { file: self.file.to_owned(), line, key: key.into(), reason: reason.into() }
    }

    /// A whole number of at least `least`.
    fn number(&self, value: &Spanned<i64>, key: &str, least: i64) -> Result<u64, CatalogueError> {
        let number = *value.get_ref();
        let checked = u64::try_from(number).ok().filter(|_| number >= least);
        checked.ok_or_else(|| self.error(value.span(), key, format!("{number} is below {least}")))
    }
}

impl Catalogue {
    /// Reads and checks a catalogue. `file` only names the source in errors.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, line and key.
    pub fn parse(text: &str, file: &str) -> Result<Self, CatalogueError> {
        let source = Source { file, text };
        let raw: RawCatalogue = toml::from_str(text)
            .map_err(|e| source.error(e.span().unwrap_or(0..0), "syntax", e.message().to_owned()))?;
        let mut catalogue = Self::default();
        for model in &raw.model {
            let entry = entry(&source, model.get_ref(), model.span())?;
            catalogue.add(&source, model.get_ref(), entry)?;
        }
        Ok(catalogue)
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
            if self.names.insert(name.get_ref().clone(), position).is_some() {
                let reason = format!("`{}` names another model already", name.get_ref());
                return Err(source.error(name.span(), key, reason));
            }
        }
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
        self.entries.iter().find(|entry| entry.service == *service)
    }

    /// All models in the order of the file.
    #[must_use]
    pub fn entries(&self) -> &[Arc<ModelEntry>] {
        &self.entries
    }
}

fn entry(source: &Source<'_>, raw: &RawModel, span: Range<usize>) -> Result<ModelEntry, CatalogueError> {
    let kind = ServiceKind::from_name(raw.kind.get_ref()).ok_or_else(|| {
        let reason =
            format!("`{}` is not one of llm, embeddings, tts, stt, vision, scrape", raw.kind.get_ref());
        source.error(raw.kind.span(), "model.kind", reason)
    })?;
    let required = |value: &Option<Spanned<i64>>, key: &str, needed: bool| match value {
        Some(value) => source.number(value, key, 1).map(Some),
        None if needed => Err(source.error(span.clone(), key, format!("is required for kind `{kind}`"))),
        None => Ok(None),
    };
    let tokens = matches!(kind, ServiceKind::Llm | ServiceKind::Embeddings);
    let context = required(&raw.context_length, "model.context_length", tokens)?.unwrap_or(0);
    let output =
        required(&raw.max_completion_tokens, "model.max_completion_tokens", kind == ServiceKind::Llm)?
            .unwrap_or(0);
    if output > context {
        let at = raw.max_completion_tokens.as_ref().map_or_else(|| span.clone(), Spanned::span);
        let reason = format!("{output} is above context_length {context}");
        return Err(source.error(at, "model.max_completion_tokens", reason));
    }
    let dimensions = required(&raw.dimensions, "model.dimensions", kind == ServiceKind::Embeddings)?;
    let files = raw.file.iter().map(|file| model_file(source, file)).collect::<Result<Vec<_>, _>>()?;
    let id = raw.id.get_ref().clone();
    Ok(ModelEntry {
        service: ServiceId::new(kind, &id),
        aliases: raw.aliases.iter().map(|alias| alias.get_ref().clone()).collect(),
        name: raw.name.clone().unwrap_or_else(|| id.clone()),
        description: raw.description.clone(),
        kind,
        created: raw.created,
        owned_by: raw.owned_by.clone(),
        context_length: Tokens(context),
        max_completion_tokens: Tokens(output),
        dimensions,
        files,
        engines: raw.engines.clone(),
        memory: Bytes(u64::from(raw.memory_mb) << 20),
        disk: Bytes(u64::from(raw.disk_mb) << 20),
        price: Arc::new(price(source, raw, kind, &id)?),
        target: raw.target,
        quantization: raw.quantization.as_ref().map(|name| quantization(source, name)).transpose()?,
        first_token: first_token(source, raw)?,
        id,
        supported_parameters: supported_parameters(source, raw, kind)?,
    })
}

fn supported_parameters(
    source: &Source<'_>,
    raw: &RawModel,
    kind: ServiceKind,
) -> Result<Vec<Parameter>, CatalogueError> {
    let Some(names) = &raw.supported_parameters else { return Ok(Parameter::usual(kind)) };
    let parameter = |name: &Spanned<String>| {
        Parameter::from_name(name.get_ref()).ok_or_else(|| {
            let known: Vec<&str> = Parameter::ALL.iter().map(|parameter| parameter.name()).collect();
            let reason = format!("`{}` is not one of {}", name.get_ref(), known.join(", "));
            source.error(name.span(), "model.supported_parameters", reason)
        })
    };
    names.iter().map(parameter).collect()
}

fn quantization(source: &Source<'_>, name: &Spanned<String>) -> Result<String, CatalogueError> {
    let text = name.get_ref();
    let valid = (1..=16).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if !valid {
        let reason = format!("`{text}` is not a name such as `q8_0`, `int4` or `bf16`");
        return Err(source.error(name.span(), "model.quantization", reason));
    }
    Ok(text.clone())
}

fn first_token(source: &Source<'_>, raw: &RawModel) -> Result<Option<(Millis, Millis)>, CatalogueError> {
    let of = |value: &Option<Spanned<i64>>, key: &str| {
        value.as_ref().map(|value| source.number(value, key, 1)).transpose()
    };
    let base = of(&raw.first_token_ms, "model.first_token_ms")?;
    let more = of(&raw.first_token_ms_per_1k, "model.first_token_ms_per_1k")?;
    Ok((base.is_some() || more.is_some())
        .then(|| (Millis(base.unwrap_or_default()), Millis(more.unwrap_or_default()))))
}

fn model_file(source: &Source<'_>, file: &Spanned<RawFile>) -> Result<ModelFile, CatalogueError> {
    let raw = file.get_ref();
    let digest = raw.sha256.get_ref();
    if digest.len() != 64 || !digest.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        let reason = format!("`{digest}` is not 64 lower-case hexadecimal digits");
        return Err(source.error(raw.sha256.span(), "model.file.sha256", reason));
    }
    let inside = !raw.name.is_empty()
        && !raw.name.starts_with('/')
        && !raw.name.contains('\\')
        && raw.name.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if !inside {
        let reason = format!("`{}` is not a path below the model directory", raw.name);
        return Err(source.error(file.span(), "model.file.name", reason));
    }
    let size = Bytes(source.number(&raw.size, "model.file.size", 1)?);
    Ok(ModelFile { role: raw.role.clone(), name: raw.name.clone(), sha256: digest.clone(), size })
}

fn price(
    source: &Source<'_>,
    raw: &RawModel,
    kind: ServiceKind,
    id: &str,
) -> Result<PriceRow, CatalogueError> {
    let price = raw.price.get_ref();
    let amount =
        |value: &Option<Spanned<i64>>, key: &str, needed: bool| -> Result<MicroCredits, CatalogueError> {
            let key = format!("model.price.{key}");
            match value {
                // A needed price of zero is a slip unless the row says that it is free.
                Some(value) if needed && !price.free && *value.get_ref() <= 0 => {
                    let reason = format!("{} is not above 0 (or set `free = true`)", value.get_ref());
                    Err(source.error(value.span(), key, reason))
                }
                Some(value) => {
                    source.number(value, &key, 0)?;
                    Ok(MicroCredits(*value.get_ref()))
                }
                None if needed && !price.free => {
                    let reason = format!("is required for kind `{kind}` (or set `free = true`)");
                    Err(source.error(raw.price.span(), key, reason))
                }
                None => Ok(MicroCredits::ZERO),
            }
        };
    let llm = kind == ServiceKind::Llm;
    source.number(&price.version, "model.price.version", 1)?;
    let row = PriceRow {
        id: id.to_owned(),
        version: *price.version.get_ref(),
        prompt: amount(&price.prompt, "prompt", llm)?,
        completion: amount(&price.completion, "completion", llm)?,
        embedding: amount(&price.embedding, "embedding", kind == ServiceKind::Embeddings)?,
        character: amount(&price.character, "character", kind == ServiceKind::Tts)?,
        second: amount(&price.second, "second", kind == ServiceKind::Stt)?,
        url: amount(&price.url, "url", kind == ServiceKind::Scrape)?,
        image: amount(&price.image, "image", kind == ServiceKind::Vision)?,
        minimum: amount(&price.minimum, "minimum", false)?,
        share_bp: price.share_bp.as_ref().map_or(DEFAULT_SHARE_BP, |share| *share.get_ref()),
        free: price.free,
    };
    row.validate().map_err(|e| source.error(raw.price.span(), "model.price", e.to_string()))?;
    Ok(row)
}

#[cfg(test)]
mod tests;
