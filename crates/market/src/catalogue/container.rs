//! Checks the image of an entry: pinned by digest, with one door, within the limits that the plan can count.

use std::ops::Range;

use cxmpute_wire::ServiceKind;
use cxmpute_wire::control::{ContainerImage, ReadyCheck};

use super::entry::megabytes;
use super::raw::{RawContainer, RawModel, Source};
use super::{CatalogueError, Engine};

/// Processes and threads of an image that says nothing.
const DEFAULT_PIDS: i64 = 512;
/// Size of `/tmp` and of `/dev/shm` of an image that says nothing.
const DEFAULT_TMPFS_MB: i64 = 64;

pub(super) fn check(
    source: &Source<'_>,
    model: &RawModel,
    span: &Range<usize>,
) -> Result<Option<ContainerImage>, CatalogueError> {
    let named = model.engines.iter().find(|name| name.get_ref() == Engine::Docker.name());
    let raw = match (&model.container, named) {
        (Some(raw), Some(_)) => raw,
        (None, None) => return Ok(None),
        (None, Some(name)) => {
            let reason = "`docker` needs `[model.container]` beside it, with the image that it runs";
            return Err(source.error(name.span(), "model.engines", reason));
        }
        (Some(raw), None) => {
            let reason = "needs `docker` among `engines`";
            return Err(source.error(raw.span(), "model.container", reason));
        }
    };
    if model.kind.get_ref() == ServiceKind::Scrape.as_str() {
        let reason = "a container has no network to fetch pages from";
        return Err(source.error(raw.span(), "model.container", reason));
    }
    if model.memory_mb == 0 {
        let reason = "is required for `docker`: it is the limit that the container gets";
        return Err(source.error(span.clone(), "model.memory_mb", reason));
    }
    if model.file.is_empty() && (model.hub.is_some() || model.ollama.is_some()) {
        let reason = "a container has no network to fetch the model: pin its files with `[[model.file]]`, or bring it in \
                      the image and leave `hub` and `ollama` out";
        return Err(source.error(raw.span(), "model.container", reason));
    }
    let container = read(source, raw.get_ref())?;
    if container.gpu && model.vram_mb == 0 {
        let reason = "needs `vram_mb` in the entry: only what the plan reserved is handed in";
        let at = raw.get_ref().gpu.as_ref().map_or_else(|| raw.span(), toml::Spanned::span);
        return Err(source.error(at, "model.container.gpu", reason));
    }
    let asks = |word: &str| container.command.iter().any(|argument| argument.contains(word));
    if asks("{model_file}") && !model.file.iter().any(|file| file.get_ref().role == "model") {
        let reason = "names `{model_file}`, and the entry has no file with the role `model`";
        return Err(source.error(raw.get_ref().command.span(), "model.container.command", reason));
    }
    Ok(Some(container))
}

fn read(source: &Source<'_>, raw: &RawContainer) -> Result<ContainerImage, CatalogueError> {
    let number = |value: &Option<toml::Spanned<i64>>, key: &str, default: i64| match value {
        Some(value) => source.number(value, key, 1),
        None => Ok(default.unsigned_abs()),
    };
    let ready = ReadyCheck::default();
    let container = ContainerImage {
        image: raw.image.get_ref().clone(),
        command: raw.command.get_ref().clone(),
        environment: raw.environment.as_ref().map(|map| map.get_ref().clone()).unwrap_or_default(),
        millicpus: raw.cpus.as_ref().map(|count| thousandths(*count.get_ref())),
        pids: u32::try_from(number(&raw.pids, "model.container.pids", DEFAULT_PIDS)?).unwrap_or(u32::MAX),
        tmp: megabytes(number(&raw.tmp_mb, "model.container.tmp_mb", DEFAULT_TMPFS_MB)?),
        shared_memory: megabytes(number(&raw.shm_mb, "model.container.shm_mb", DEFAULT_TMPFS_MB)?),
        gpu: raw.gpu.as_ref().is_some_and(|gpu| *gpu.get_ref()),
        ready: match raw.ready.as_ref().map(toml::Spanned::get_ref) {
            Some(given) => ReadyCheck {
                path: given.path.clone().unwrap_or(ready.path),
                status: given.status.unwrap_or(ready.status),
                body: given.body.clone(),
            },
            None => ready,
        },
        paths: raw.paths.as_ref().map(|paths| paths.get_ref().clone()).unwrap_or_default(),
    };
    container.check().map_err(|fault| {
        let span = match fault.key {
            "command" => raw.command.span(),
            "environment" => raw.environment.as_ref().map_or(0..0, toml::Spanned::span),
            "cpus" => raw.cpus.as_ref().map_or(0..0, toml::Spanned::span),
            "pids" => raw.pids.as_ref().map_or(0..0, toml::Spanned::span),
            "paths" => raw.paths.as_ref().map_or(0..0, toml::Spanned::span),
            key if key.starts_with("ready") => raw.ready.as_ref().map_or(0..0, toml::Spanned::span),
            _ => raw.image.span(),
        };
        source.error(span, format!("model.container.{}", fault.key), fault.reason)
    })?;
    Ok(container)
}

/// Thousandths of a processor; what is no sensible number becomes 0, which is refused.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the range is checked first")]
fn thousandths(count: f64) -> u32 {
    if count.is_finite() && (0.0..=1_000_000.0).contains(&count) {
        (count * 1000.0).round() as u32
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use crate::catalogue::{Catalogue, Engine};

    const GOOD: &str = r#"
[[model]]
id = "m"
kind = "llm"
context_length = 128
max_completion_tokens = 64
engines = ["docker", "external"]
memory_mb = 512
price = { version = 1, prompt = 10, completion = 20 }

[model.container]
image = "registry.example:5000/llm/server@sha256:0000000000000000000000000000000000000000000000000000000000000001"
command = ["/server", "--socket={socket}", "--name", "{model}"]
cpus = 1.5
ready = { path = "/healthz", body = "awake" }
"#;

    #[test]
    fn an_operator_adds_an_image_by_its_digest() {
        let catalogue = Catalogue::parse(GOOD, "own.toml").unwrap();
        let entry = catalogue.resolve("m").unwrap();
        let container = entry.container.as_ref().unwrap();
        assert!(container.digest().ends_with("01") && container.image.starts_with("registry.example:5000/"));
        assert_eq!((container.millicpus, container.pids, container.tmp.0), (Some(1500), 512, 64 << 20));
        assert_eq!((container.ready.path.as_str(), container.ready.status), ("/healthz", 200));
        assert!(entry.is_servable(Engine::Docker, false, false), "nothing but the image is needed");
    }

    /// Each fault is named with its line and key.
    #[test]
    fn faults_of_an_image_name_line_and_key() {
        let digest = "@sha256:0000000000000000000000000000000000000000000000000000000000000001";
        let faults: [(&str, &str, usize, &str); 13] = [
            (digest, ":latest", 12, "model.container.image"),
            ("registry.example:5000/", "", 12, "model.container.image"),
            ("{socket}", "/tmp/s", 13, "model.container.command"),
            ("{model}", "{modle}", 13, "model.container.command"),
            ("{model}", "{model_file}", 13, "model.container.command"),
            ("cpus = 1.5", "cpus = -1", 14, "model.container.cpus"),
            ("cpus = 1.5", "pids = 0", 14, "model.container.pids"),
            ("cpus = 1.5", "gpu = true", 14, "model.container.gpu"),
            ("cpus = 1.5", "environment = { \"LD PRELOAD\" = \"x\" }", 14, "model.container.environment"),
            ("\"/healthz\"", "\"healthz\"", 15, "model.container.ready.path"),
            ("[\"docker\", \"external\"]", "[\"external\"]", 11, "model.container"),
            ("memory_mb = 512\n", "", 2, "model.memory_mb"),
            ("memory_mb = 512", "memory_mb = 512\nollama = \"x\"", 12, "model.container"),
        ];
        for (good, bad, line, key) in faults {
            let error = Catalogue::parse(&GOOD.replacen(good, bad, 1), "own.toml").unwrap_err();
            assert_eq!((error.line, error.key.as_str()), (line, key), "{bad}: {error}");
        }
        let (without, _) = GOOD.split_once("[model.container]").unwrap();
        let error = Catalogue::parse(without, "own.toml").unwrap_err();
        assert_eq!((error.line, error.key.as_str()), (7, "model.engines"));
        let pages =
            GOOD.replacen("kind = \"llm\"", "kind = \"scrape\"", 1).replacen("prompt", "url = 1, prompt", 1);
        assert!(Catalogue::parse(&pages, "own.toml").unwrap_err().reason.contains("no network"));
        let unknown = GOOD.replacen("cpus", "privileged = true\ncpus", 1);
        assert_eq!(Catalogue::parse(&unknown, "own.toml").unwrap_err().key, "syntax");
    }

    #[test]
    fn nothing_that_ships_names_an_image() {
        assert!(Catalogue::shipped().unwrap().entries().iter().all(|entry| entry.container.is_none()));
    }
}
