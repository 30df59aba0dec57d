//! The container image that serves a model: an operator's choice, named by digest, and what it may have of a machine.
//! The gateway checks it when it reads the catalogue, the node checks it again before it uses it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Bytes;

/// The words that stand for a value in the command of an image.
pub const PLACEHOLDERS: [&str; 7] =
    ["{model}", "{model_dir}", "{model_file}", "{socket}", "{slots}", "{context}", "{gpu_count}"];
/// Work that an image may take.
const WORK_PATHS: [&str; 7] = [
    "/chat/completions",
    "/completions",
    "/embeddings",
    "/audio/speech",
    "/audio/transcriptions",
    "/read",
    "/images/generations",
];
/// Longest argument or value.
const TEXT_LIMIT_CHARS: usize = 400;
/// Most arguments, and most variables.
const LIST_LIMIT: usize = 64;
/// Most processes and threads that an image may ask for.
const PIDS_LIMIT: u32 = 32_768;
/// Most processors that an image may ask for, in thousandths.
const MILLICPUS_LIMIT: u32 = 1_024_000;

/// An image and how a node runs it. Memory is not part of it: the plan's claim is the limit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerImage {
    /// `REGISTRY/REPOSITORY@sha256:…`.
    pub image: String,
    /// The whole argument vector, the program first; the image's own entry point is not used.
    pub command: Vec<String>,
    /// Variables beside the image's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Processor time in thousandths of a processor; all there are when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub millicpus: Option<u32>,
    /// Most processes and threads.
    pub pids: u32,
    /// Size of `/tmp`, which lies in memory and counts as such.
    pub tmp: Bytes,
    /// Size of `/dev/shm`, likewise.
    pub shared_memory: Bytes,
    /// Whether it gets the accelerators that the plan reserved.
    #[serde(default)]
    pub gpu: bool,
    /// When it takes work.
    #[serde(default)]
    pub ready: ReadyCheck,
    /// Work that it takes, as paths below `/v1` such as `/chat/completions`; all of its kind when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
}

/// What is asked for on an engine's socket, and what a ready engine answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadyCheck {
    /// An absolute path, such as `/health`.
    pub path: String,
    /// Status of the answer.
    pub status: u16,
    /// Text that the answer holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

impl Default for ReadyCheck {
    fn default() -> Self {
        Self { path: "/health".to_owned(), status: 200, body: None }
    }
}

/// What is wrong with an image's description.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {reason}")]
pub struct ContainerFault {
    /// The key at fault, as in the catalogue: `image`, `command` …
    pub key: &'static str,
    /// What is wrong and what would be right.
    pub reason: String,
}

impl ContainerImage {
    /// Looks for the first fault.
    ///
    /// # Errors
    /// A key and what is wrong with it.
    pub fn check(&self) -> Result<(), ContainerFault> {
        let fault = |key, reason| Err(ContainerFault { key, reason });
        if !is_pinned(&self.image) {
            let reason =
                format!("`{}` is not REGISTRY/REPOSITORY@sha256: and 64 hexadecimal digits", self.image);
            return fault("image", reason);
        }
        if self.command.is_empty() || self.command.len() > LIST_LIMIT {
            return fault(
                "command",
                format!("has {} arguments; 1 to {LIST_LIMIT} are allowed", self.command.len()),
            );
        }
        for argument in &self.command {
            if let Err(reason) = argument_is_good(argument) {
                return fault("command", reason);
            }
        }
        if !self.command.iter().any(|argument| argument.contains("{socket}")) {
            let reason = "has no `{socket}`: the unix socket there is the only way into the container";
            return fault("command", reason.to_owned());
        }
        if self.environment.len() > LIST_LIMIT {
            return fault("environment", format!("has more than {LIST_LIMIT} variables"));
        }
        for (name, value) in &self.environment {
            if let Err(reason) = variable_is_good(name, value) {
                return fault("environment", reason);
            }
        }
        if self.millicpus.is_some_and(|count| !(10..=MILLICPUS_LIMIT).contains(&count)) {
            return fault("cpus", format!("is not between 0.01 and {}", MILLICPUS_LIMIT / 1000));
        }
        if self.pids == 0 || self.pids > PIDS_LIMIT {
            return fault("pids", format!("{} is not between 1 and {PIDS_LIMIT}", self.pids));
        }
        let path = &self.ready.path;
        if !path.starts_with('/') || path.len() > 200 || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
            return fault("ready.path", format!("`{path}` is not an absolute path"));
        }
        if !(200..600).contains(&self.ready.status) {
            return fault("ready.status", format!("{} is not a status", self.ready.status));
        }
        if self.ready.body.as_ref().is_some_and(|body| body.is_empty() || body.len() > TEXT_LIMIT_CHARS) {
            return fault("ready.body", format!("is not a text of 1 to {TEXT_LIMIT_CHARS} characters"));
        }
        if let Some(path) = self.paths.iter().find(|path| !WORK_PATHS.contains(&path.as_str())) {
            return fault("paths", format!("`{path}` is not one of {}", WORK_PATHS.join(", ")));
        }
        Ok(())
    }

    /// The digest of the image, with `sha256:`.
    #[must_use]
    pub fn digest(&self) -> &str {
        self.image.split_once('@').map_or("", |(_, digest)| digest)
    }
}

/// Whether a reference names a registry, a repository and a digest, and nothing else.
fn is_pinned(reference: &str) -> bool {
    let Some((name, digest)) = reference.split_once("@sha256:") else { return false };
    let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let Some((registry, repository)) = name.split_once('/') else { return false };
    // Without a dot, a port or this word, Docker takes the first part for a folder of its own hub.
    let is_host = registry.contains(['.', ':']) || registry == "localhost";
    let host = |c: char| c.is_ascii_alphanumeric() || ".:-[]".contains(c);
    let part = |part: &str| {
        let inside = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        part.chars().all(inside) && edge(part.chars().next()) && edge(part.chars().next_back())
    };
    digest.len() == 64
        && digest.bytes().all(hexadecimal)
        && name.len() <= 200
        && is_host
        && registry.chars().all(host)
        && registry.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[')
        && repository.split('/').all(part)
}

/// Printable, not too long, and no unknown placeholder.
fn argument_is_good(argument: &str) -> Result<(), String> {
    if argument.is_empty()
        || argument.chars().count() > TEXT_LIMIT_CHARS
        || argument.chars().any(char::is_control)
    {
        return Err(format!("an argument is not 1 to {TEXT_LIMIT_CHARS} printable characters"));
    }
    let mut rest = argument;
    while let Some(at) = rest.find('{') {
        rest = &rest[at..];
        let end = rest.find('}').map_or(rest.len(), |end| end + 1);
        let word = &rest[..end];
        let inner = word.trim_matches(['{', '}']);
        let is_word =
            !inner.is_empty() && inner.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        // Braces around anything else are JSON or the like, and stay as they are.
        if is_word && !PLACEHOLDERS.contains(&word) {
            return Err(format!("`{word}` is not one of {}", PLACEHOLDERS.join(", ")));
        }
        rest = &rest[1..];
    }
    Ok(())
}

fn variable_is_good(name: &str, value: &str) -> Result<(), String> {
    let letters = |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_';
    let starts = name.bytes().next().is_some_and(|byte| byte.is_ascii_uppercase());
    if !starts || name.len() > 64 || !name.bytes().all(letters) {
        return Err(format!("`{name}` is not a name of capitals, digits and _"));
    }
    // These decide which accelerators a container sees; the plan does.
    if name.starts_with("NVIDIA_") || name.starts_with("CUDA_VISIBLE") {
        return Err(format!("`{name}` is the node's to set"));
    }
    if value.chars().count() > TEXT_LIMIT_CHARS || value.chars().any(char::is_control) {
        return Err(format!("the value of `{name}` is not at most {TEXT_LIMIT_CHARS} printable characters"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> ContainerImage {
        ContainerImage {
            image: format!("registry.example/vllm/server@sha256:{}", "0a".repeat(32)),
            command: ["/engine", "--socket", "{socket}", "--extra={\"a\": {}}"].map(str::to_owned).to_vec(),
            environment: BTreeMap::from([("HF_HUB_OFFLINE".to_owned(), "1".to_owned())]),
            millicpus: Some(1500),
            pids: 100,
            tmp: Bytes(1 << 20),
            shared_memory: Bytes(1 << 20),
            gpu: false,
            ready: ReadyCheck::default(),
            paths: Vec::new(),
        }
    }

    #[test]
    fn only_a_digest_at_a_registry_names_an_image() {
        assert_eq!(image().check(), Ok(()));
        let digest = "0a".repeat(32);
        for good in ["localhost/a", "127.0.0.1:5000/a/b-c", "ghcr.io/a/b_c.d"] {
            let image = ContainerImage { image: format!("{good}@sha256:{digest}"), ..image() };
            assert_eq!(image.check(), Ok(()), "{good}");
            assert_eq!(image.digest(), format!("sha256:{digest}"));
        }
        let bad = [
            "ghcr.io/a/b:latest".to_owned(),
            "ghcr.io/a/b".to_owned(),
            format!("vllm/server@sha256:{digest}"),
            format!("ghcr.io/a@sha256:{}", "0A".repeat(32)),
            format!("ghcr.io/a@sha256:{}", &digest[1..]),
            format!("ghcr.io/a b@sha256:{digest}"),
            format!("ghcr.io/../b@sha256:{digest}"),
            format!("ghcr.io/a:1@sha256:{digest}"),
            format!("-x.io/a@sha256:{digest}"),
            String::new(),
        ];
        for bad in bad {
            let fault = ContainerImage { image: bad.clone(), ..image() }.check().unwrap_err();
            assert_eq!(fault.key, "image", "{bad}");
        }
    }

    #[test]
    fn each_fault_names_its_key() {
        type Change = fn(&mut ContainerImage);
        let cases: [(&str, Change); 13] = [
            ("command", |image| image.command.clear()),
            ("command", |image| image.command.retain(|argument| !argument.contains("{socket}"))),
            ("command", |image| image.command.push("{modle}".into())),
            ("command", |image| image.command.push("a\0b".into())),
            ("environment", |image| drop(image.environment.insert("path".into(), "x".into()))),
            ("environment", |image| {
                drop(image.environment.insert("NVIDIA_VISIBLE_DEVICES".into(), "all".into()))
            }),
            ("environment", |image| drop(image.environment.insert("A".into(), "x\ny".into()))),
            ("cpus", |image| image.millicpus = Some(1)),
            ("pids", |image| image.pids = 0),
            ("ready.path", |image| image.ready.path = "health".into()),
            ("ready.status", |image| image.ready.status = 0),
            ("ready.body", |image| image.ready.body = Some(String::new())),
            ("paths", |image| image.paths = vec!["/admin".into()]),
        ];
        for (n, (key, change)) in cases.into_iter().enumerate() {
            let mut image = image();
            change(&mut image);
            assert_eq!(image.check().map_err(|fault| fault.key), Err(key), "case {n}");
        }
    }

    #[test]
    fn what_older_gateways_send_is_complete() {
        let text = serde_json::to_value(image()).unwrap();
        assert_eq!(serde_json::from_value::<ContainerImage>(text).unwrap(), image());
        let digest = "0a".repeat(32);
        let least = serde_json::json!({"image": format!("a.b/c@sha256:{digest}"), "command": ["/e", "{socket}"],
            "pids": 1, "tmp": 0, "shared_memory": 0});
        let least: ContainerImage = serde_json::from_value(least).unwrap();
        assert_eq!((least.check(), least.ready.path.as_str()), (Ok(()), "/health"));
    }
}
