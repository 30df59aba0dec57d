//! Checks one entry: from the shape of the file to a value that the rest of the program may trust.

use std::collections::BTreeMap;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use cxmpute_wire::{Bytes, MicroCredits, Millis, ServiceId, ServiceKind, Tokens};
use toml::Spanned;

use super::raw::{RawFile, RawHub, RawModel, Source};
use super::{Capability, CatalogueError, Engine, HubReference, ModelEntry, ModelFile, Parameter, container};
use super::{canvas, places};
use crate::price::{DEFAULT_SHARE_BP, PriceRow};

pub(super) fn check(
    source: &Source<'_>,
    raw: &RawModel,
    span: Range<usize>,
) -> Result<ModelEntry, CatalogueError> {
    let kind = ServiceKind::from_name(raw.kind.get_ref()).ok_or_else(|| {
        let reason = format!(
            "`{}` is not one of llm, embeddings, tts, stt, vision, image, scrape",
            raw.kind.get_ref()
        );
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
    let hub = raw.hub.as_ref().map(|hub| hub_reference(source, hub.get_ref())).transpose()?;
    let file = |file| model_file(source, file, hub.as_ref());
    let files = raw.file.iter().map(file).collect::<Result<Vec<_>, _>>()?;
    let capabilities = capabilities(source, raw, kind)?;
    let id = raw.id.get_ref().clone();
    Ok(ModelEntry {
        service: service(kind, &id),
        aliases: raw.aliases.iter().map(|alias| alias.get_ref().clone()).collect(),
        name: raw.name.clone().unwrap_or_else(|| id.clone()),
        description: raw.description.clone(),
        kind,
        created: raw.created,
        owned_by: raw.owned_by.clone(),
        licence: raw.licence.as_ref().map(|licence| licence_name(source, licence)).transpose()?,
        context_length: Tokens(context),
        max_completion_tokens: Tokens(output),
        dimensions,
        files,
        engines: raw.engines.iter().map(|name| engine(source, name)).collect::<Result<_, _>>()?,
        hub,
        ollama: raw
            .ollama
            .as_ref()
            .map(|name| plain(source, name, "model.ollama", ":/._-").map(str::to_owned))
            .transpose()?,
        container: container::check(source, raw, &span)?.map(Arc::new),
        memory: megabytes(u64::from(raw.memory_mb)),
        vram: megabytes(u64::from(raw.vram_mb)),
        cpu_memory: cpu_memory(source, raw)?,
        disk: megabytes(u64::from(raw.disk_mb)),
        price: Arc::new(price(source, raw, kind, &id)?),
        target: raw.target,
        quantization: raw.quantization.as_ref().map(|name| quantization(source, name)).transpose()?,
        first_token: first_token(source, raw)?,
        supported_parameters: supported_parameters(source, raw, kind, capabilities.as_deref())?,
        places: places::check(source, raw, capabilities.as_deref().unwrap_or_default())?,
        capabilities: capabilities.unwrap_or_default(),
        voices: voices(source, raw, kind)?,
        languages: languages(source, raw, kind)?,
        canvas: canvas::check(source, raw, kind, &span)?,
        id,
    })
}

/// A page is fetched by the service `scrape`; every other service has a model.
fn service(kind: ServiceKind, id: &str) -> ServiceId {
    match ServiceId::from_str(id) {
        Ok(bare) if kind == ServiceKind::Scrape && bare.kind() == kind => bare,
        _ => ServiceId::new(kind, id),
    }
}

pub(super) const fn megabytes(count: u64) -> Bytes {
    Bytes(count << 20)
}

fn cpu_memory(source: &Source<'_>, raw: &RawModel) -> Result<Option<Bytes>, CatalogueError> {
    match &raw.cpu_memory_mb {
        Some(count) if raw.vram_mb == 0 => {
            let reason = "needs `vram_mb` beside it; a model without accelerator says `memory_mb` only";
            Err(source.error(count.span(), "model.cpu_memory_mb", reason))
        }
        Some(count) => Ok(Some(megabytes(source.number(count, "model.cpu_memory_mb", 1)?))),
        None => Ok((raw.vram_mb == 0).then(|| megabytes(u64::from(raw.memory_mb)))),
    }
}

fn engine(source: &Source<'_>, name: &Spanned<String>) -> Result<Engine, CatalogueError> {
    Engine::from_name(name.get_ref()).ok_or_else(|| {
        let known: Vec<&str> = Engine::ALL.iter().map(|engine| engine.name()).collect();
        let reason = format!("`{}` is not one of {}", name.get_ref(), known.join(", "));
        source.error(name.span(), "model.engines", reason)
    })
}

/// A name that engines get as an argument: letters, digits and a few signs, none of them first.
fn plain<'r>(
    source: &Source<'_>,
    name: &'r Spanned<String>,
    key: &str,
    signs: &str,
) -> Result<&'r str, CatalogueError> {
    let text = name.get_ref().as_str();
    let good = |c: char| c.is_ascii_alphanumeric() || signs.contains(c);
    let begins = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    if !begins || text.len() > 150 || text.contains("..") || !text.chars().all(good) {
        let reason = format!("`{text}` is not a name of letters, digits and {signs}");
        return Err(source.error(name.span(), key, reason));
    }
    Ok(text)
}

fn hub_reference(source: &Source<'_>, raw: &RawHub) -> Result<HubReference, CatalogueError> {
    let repository = plain(source, &raw.repository, "model.hub.repository", "/._-")?;
    if repository.split('/').filter(|part| !part.is_empty()).count() != 2 || repository.ends_with('/') {
        let reason = format!("`{repository}` is not OWNER/NAME");
        return Err(source.error(raw.repository.span(), "model.hub.repository", reason));
    }
    let part = |name: &Option<Spanned<String>>, key: &str| {
        name.as_ref().map(|name| plain(source, name, key, "/._-").map(str::to_owned)).transpose()
    };
    Ok(HubReference {
        repository: repository.to_owned(),
        revision: part(&raw.revision, "model.hub.revision")?,
        file: part(&raw.file, "model.hub.file")?,
    })
}

fn capabilities(
    source: &Source<'_>,
    raw: &RawModel,
    kind: ServiceKind,
) -> Result<Option<Vec<Capability>>, CatalogueError> {
    let capability = |name: &Spanned<String>| {
        let known = Capability::from_name(name.get_ref()).filter(|capability| capability.suits(kind));
        known.ok_or_else(|| {
            let of_kind = Capability::ALL.iter().filter(|capability| capability.suits(kind));
            let names: Vec<&str> = of_kind.map(|capability| capability.name()).collect();
            let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let reason = format!("`{}` is not among those of kind `{kind}`: {names}", name.get_ref());
            source.error(name.span(), "model.capabilities", reason)
        })
    };
    raw.capabilities.as_ref().map(|names| names.iter().map(capability).collect()).transpose()
}

fn voices(
    source: &Source<'_>,
    raw: &RawModel,
    kind: ServiceKind,
) -> Result<BTreeMap<String, String>, CatalogueError> {
    let voice = |(name, engines): (&String, &Spanned<String>)| {
        if kind != ServiceKind::Tts {
            let reason = format!("kind `{kind}` has no voices");
            return Err(source.error(engines.span(), "model.voices", reason));
        }
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|byte| byte.is_ascii_graphic()) {
            let reason = format!("`{name}` is not 1 to 64 visible ASCII characters");
            return Err(source.error(engines.span(), "model.voices", reason));
        }
        Ok((name.clone(), plain(source, engines, "model.voices", "+._-")?.to_owned()))
    };
    raw.voices.iter().map(voice).collect()
}

fn languages(source: &Source<'_>, raw: &RawModel, kind: ServiceKind) -> Result<Vec<String>, CatalogueError> {
    let language = |name: &Spanned<String>| {
        if kind != ServiceKind::Stt {
            let reason = format!("kind `{kind}` has no list of languages");
            return Err(source.error(name.span(), "model.languages", reason));
        }
        plain(source, name, "model.languages", "-").map(str::to_owned)
    };
    raw.languages.iter().map(language).collect()
}

fn supported_parameters(
    source: &Source<'_>,
    raw: &RawModel,
    kind: ServiceKind,
    capabilities: Option<&[Capability]>,
) -> Result<Vec<Parameter>, CatalogueError> {
    let Some(names) = &raw.supported_parameters else {
        let ollama = raw.engines.iter().any(|name| name.get_ref() == Engine::Ollama.name());
        let known = |parameter: &Parameter| {
            capabilities.is_none_or(|capabilities| parameter.is_of(capabilities))
                && !(ollama && parameter.is_unknown_to_ollama())
        };
        let mut usual = Parameter::usual(kind);
        usual.retain(known);
        return Ok(usual);
    };
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

/// Of an SPDX expression, or a name such as `Llama 3.2 Community License`.
fn licence_name(source: &Source<'_>, name: &Spanned<String>) -> Result<String, CatalogueError> {
    let text = name.get_ref();
    if text.is_empty()
        || text.len() > 150
        || !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic())
    {
        let reason = format!("`{text}` is not 1 to 150 visible ASCII characters");
        return Err(source.error(name.span(), "model.licence", reason));
    }
    Ok(text.clone())
}

fn model_file(
    source: &Source<'_>,
    file: &Spanned<RawFile>,
    entry_hub: Option<&HubReference>,
) -> Result<ModelFile, CatalogueError> {
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
    let named = raw.hub.as_ref().map(|path| plain(source, path, "model.file.hub", "/._-")).transpose()?;
    let hub = match (entry_hub, named, &raw.hub) {
        (None, Some(_), Some(path)) => {
            let reason = "needs `hub = { repository = … }` of the entry beside it";
            return Err(source.error(path.span(), "model.file.hub", reason));
        }
        (None, ..) => None,
        (Some(_), Some(path), _) => Some(path.to_owned()),
        // Without a word of its own: what the entry names, or the name below the model's own folder.
        (Some(hub), None, _) => hub
            .file
            .clone()
            .filter(|_| raw.role == "model")
            .or_else(|| Some(raw.name.split_once('/').map_or(&*raw.name, |(_, rest)| rest).to_owned())),
    };
    let url = |url: &Spanned<String>| {
        let text = url.get_ref();
        let good =
            text.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
        if good && text.len() <= 2000 && text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Ok(text.clone());
        }
        let reason = format!("`{text}` is no URL that begins with https://");
        Err(source.error(url.span(), "model.file.urls", reason))
    };
    let urls = raw.urls.iter().map(url).collect::<Result<_, _>>()?;
    Ok(ModelFile { role: raw.role.clone(), name: raw.name.clone(), sha256: digest.clone(), size, hub, urls })
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
        image: amount(&price.image, "image", matches!(kind, ServiceKind::Vision | ServiceKind::Image))?,
        minimum: amount(&price.minimum, "minimum", false)?,
        share_bp: price.share_bp.as_ref().map_or(DEFAULT_SHARE_BP, |share| *share.get_ref()),
        free: price.free,
    };
    row.validate().map_err(|e| source.error(raw.price.span(), "model.price", e.to_string()))?;
    Ok(row)
}
