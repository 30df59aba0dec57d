//! Servers that the owner already runs, found by themselves (NR29): what they say of themselves, and which of their models
//! a plan means. Pure; the asking is in [`super::discover`].

use std::path::PathBuf;

use cxmpute_wire::control::{DesiredService, EnginePresent};
use serde::Serialize;
use serde_json::Value;

/// Most models of one server that are looked at.
const MODELS: usize = 200;
/// Longest name of a model, in characters.
const NAME_CHARS: usize = 200;

/// What kind of server was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Ollama.
    Ollama,
    /// vLLM.
    Vllm,
    /// llama.cpp's server.
    LlamaServer,
}

/// A server that answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// What it is.
    pub kind: Kind,
    /// Host and port.
    pub address: String,
    /// Its version; empty when it says none.
    pub version: String,
    /// What it has.
    pub models: Vec<FoundModel>,
}

/// A model of a found server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct FoundModel {
    /// Its name in requests to the server.
    pub name: String,
    /// What else it is called: a repository, a file without its ending.
    pub also: Vec<String>,
    /// Hash of what describes the model, where the server has such a thing; it changes with the weights.
    #[serde(skip)]
    pub tag: Option<String>,
    /// SHA-256 of its weights, where the server says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The file of its weights, where the server says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Memory of accelerators that it takes now, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gpu_memory: Option<u64>,
    /// Requests that the server works on at a time, where it says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slots: Option<u16>,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Ollama, Self::Vllm, Self::LlamaServer];

    /// Its name in the catalogue.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ollama => "ollama",
            Self::Vllm => "vllm",
            Self::LlamaServer => "llama-server",
        }
    }

    /// Requests at a time where neither the server nor the owner says anything.
    #[must_use]
    pub const fn slots(self) -> u16 {
        match self {
            Self::Ollama | Self::LlamaServer => 1,
            Self::Vllm => 8,
        }
    }
}

impl Found {
    /// As the plan is told: an engine of the owner's, which serves what it has and nothing else.
    #[must_use]
    pub fn present(&self) -> EnginePresent {
        let mut models: Vec<String> = self
            .models
            .iter()
            .flat_map(|model| [&model.name].into_iter().chain(&model.also))
            .cloned()
            .collect();
        models.sort();
        models.dedup();
        let version = format!("{} {}", self.kind.name(), self.version);
        EnginePresent { name: "external".to_owned(), version: version.trim().to_owned(), models }
    }

    /// Its models that a plan means: by the names of the catalogue, and where that pins the weights, only those whose weights
    /// are the same or can be compared by their file.
    #[must_use]
    pub fn models_for(&self, desired: &DesiredService) -> Vec<&FoundModel> {
        let engine = self.kind.name();
        if !desired.engines.iter().any(|name| name == engine || name == "external") {
            return Vec::new();
        }
        let hub = desired.hub.as_ref().map(|hub| hub.repository.as_str());
        let wanted = [Some(desired.model.as_str()), desired.ollama.as_deref(), hub];
        let means = |name: &str| wanted.iter().flatten().any(|wanted| plain(wanted) == plain(name));
        let pinned = pinned(desired);
        let fits = |model: &&FoundModel| match (pinned, &model.digest) {
            (None, _) => true,
            (Some(pinned), Some(digest)) => pinned.eq_ignore_ascii_case(digest),
            (Some(_), None) => model.file.is_some(),
        };
        let named = |model: &&FoundModel| means(&model.name) || model.also.iter().any(|name| means(name));
        self.models.iter().filter(named).filter(fits).collect()
    }
}

/// The hash that the catalogue pins for a model's weights.
#[must_use]
pub fn pinned(desired: &DesiredService) -> Option<&str> {
    desired.files.iter().find(|file| file.role == "model")?.sha256.as_deref()
}

/// Ollama adds the tag that it takes when there is none.
fn plain(name: &str) -> &str {
    name.strip_suffix(":latest").unwrap_or(name)
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|text| !text.is_empty()).map(|text| text.chars().take(NAME_CHARS).collect())
}

/// What Ollama has, from `/api/tags`, and what of it is loaded, from `/api/ps`.
#[must_use]
pub fn of_ollama(tags: &Value, loaded: &Value) -> Vec<FoundModel> {
    let list = tags["models"].as_array().into_iter().flatten();
    let memory = |name: &str| {
        let running = loaded["models"].as_array()?.iter().find(|model| model["name"] == name)?;
        running["size_vram"].as_u64()
    };
    list.take(MODELS)
        // What runs at somebody else's is not this machine's.
        .filter(|model| model.get("remote_host").is_none_or(|host| text(host).is_none()))
        .filter_map(|model| {
            let name = text(&model["name"])?;
            let gpu_memory = memory(&name);
            Some(FoundModel { name, tag: text(&model["digest"]), gpu_memory, ..FoundModel::default() })
        })
        .collect()
}

/// The hash of the weights in Ollama's `/api/show`: its blobs are named by it.
#[must_use]
pub fn weights_of_ollama(shown: &Value) -> Option<String> {
    let file = shown["modelfile"].as_str()?;
    let from = file.lines().find_map(|line| line.strip_prefix("FROM "))?;
    let (_, hash) = from.trim().rsplit_once("sha256-")?;
    (hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| hash.to_ascii_lowercase())
}

/// What vLLM has, from `/v1/models`; nothing where the server is none.
#[must_use]
pub fn of_vllm(models: &Value) -> Vec<FoundModel> {
    listed(models, "vllm")
        .filter_map(|model| {
            let name = text(&model["id"])?;
            let also = text(&model["root"]).filter(|root| *root != name).into_iter().collect();
            Some(FoundModel { name, also, ..FoundModel::default() })
        })
        .collect()
}

/// What llama.cpp's server has, from `/v1/models` and `/props`; nothing where the server is none.
#[must_use]
pub fn of_llama_server(models: &Value, props: &Value) -> Vec<FoundModel> {
    let file = text(&props["model_path"]).map(PathBuf::from);
    let slots = props["total_slots"].as_u64().and_then(|slots| u16::try_from(slots).ok());
    listed(models, "llamacpp")
        .filter_map(|model| {
            let name = text(&model["id"])?;
            let stem = file.as_ref().and_then(|file| Some(file.file_stem()?.to_str()?.to_owned()));
            let aliases = model["aliases"].as_array().into_iter().flatten().filter_map(text);
            let mut also: Vec<String> = aliases.chain(stem).filter(|other| *other != name).collect();
            also.sort();
            also.dedup();
            Some(FoundModel { name, also, file: file.clone(), slots, ..FoundModel::default() })
        })
        .collect()
}

fn listed<'a>(models: &'a Value, owner: &'a str) -> impl Iterator<Item = &'a Value> {
    let list = models["data"].as_array().into_iter().flatten();
    list.filter(move |model| model["owned_by"] == owner).take(MODELS)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn planned(files: &Value) -> DesiredService {
        serde_json::from_value(json!({
            "service_id": "llm:llama3.2:1b", "kind": "llm", "model": "llama3.2:1b", "engines": ["ollama", "vllm"],
            "files": files, "ollama": "llama3.2:1b", "hub": {"repository": "meta-llama/Llama-3.2-1B-Instruct"},
        }))
        .unwrap()
    }

    fn found(kind: Kind, models: Vec<FoundModel>) -> Found {
        Found { kind, address: "127.0.0.1:1".into(), version: "1".into(), models }
    }

    #[test]
    fn each_server_is_read_by_its_own_words() {
        let tags = json!({"models": [{"name": "llama3.2:1b", "digest": "abc"}, {"name": "far", "remote_host": "https://x"}, {}]});
        let ps = json!({"models": [{"name": "llama3.2:1b", "size_vram": 5}]});
        let models = of_ollama(&tags, &ps);
        assert_eq!((models.len(), models[0].gpu_memory, models[0].tag.as_deref()), (1, Some(5), Some("abc")));
        let hash = "a".repeat(64);
        let shown = |from: &str| json!({"modelfile": format!("# by ollama\nFROM {from}\nTEMPLATE x")});
        assert_eq!(weights_of_ollama(&shown(&format!("/m/blobs/sha256-{hash}"))), Some(hash));
        for other in ["llama3.2:1b", "/m/blobs/sha256-12"] {
            assert_eq!(weights_of_ollama(&shown(other)), None);
        }
        let listed =
            json!({"data": [{"id": "chat", "owned_by": "vllm", "root": "meta-llama/Llama-3.2-1B-Instruct"}]});
        assert_eq!(of_vllm(&listed)[0].also, ["meta-llama/Llama-3.2-1B-Instruct"]);
        assert_eq!(of_llama_server(&listed, &json!({})), []);
        let listed = json!({"data": [{"id": "a", "owned_by": "llamacpp", "aliases": ["a", "b"]}]});
        let models = of_llama_server(&listed, &json!({"model_path": "/m/tiny.gguf", "total_slots": 3}));
        assert_eq!((models[0].also.join(" "), models[0].slots), ("b tiny".to_owned(), Some(3)));
        assert_eq!(
            (of_vllm(&listed), of_vllm(&json!([])), of_ollama(&json!(1), &json!(2))),
            (vec![], vec![], vec![])
        );
    }

    #[test]
    fn a_plan_gets_the_model_that_it_means_and_no_other() {
        let model = |name: &str| FoundModel { name: name.into(), ..FoundModel::default() };
        let ollama = found(Kind::Ollama, vec![model("mistral:latest"), model("llama3.2:1b")]);
        let first = |found: &Found, plan: &DesiredService| found.models_for(plan).first().copied().cloned();
        assert_eq!(first(&ollama, &planned(&json!([]))).unwrap().name, "llama3.2:1b");
        assert_eq!(first(&found(Kind::Ollama, vec![model("llama3.2:3b")]), &planned(&json!([]))), None);
        let mut mistral = planned(&json!([]));
        (mistral.model, mistral.ollama) = ("mistral".into(), Some("mistral".into()));
        assert_eq!(first(&ollama, &mistral).unwrap().name, "mistral:latest");
        let hub = FoundModel { also: vec!["meta-llama/Llama-3.2-1B-Instruct".into()], ..model("chat") };
        assert_eq!(first(&found(Kind::Vllm, vec![hub.clone()]), &planned(&json!([]))).unwrap().name, "chat");
        assert_eq!(
            first(&found(Kind::LlamaServer, vec![hub]), &planned(&json!([]))),
            None,
            "not in the plan"
        );
        assert_eq!(ollama.present().models, ["llama3.2:1b", "mistral:latest"]);
    }

    #[test]
    fn pinned_weights_have_to_be_the_same() {
        let pinned = planned(&json!([{"role": "model", "name": "a.gguf", "sha256": "AB"}]));
        let with = |digest: Option<&str>, file: Option<&str>| {
            let model = FoundModel {
                name: "llama3.2:1b".into(),
                digest: digest.map(str::to_owned),
                file: file.map(PathBuf::from),
                ..FoundModel::default()
            };
            !found(Kind::Ollama, vec![model]).models_for(&pinned).is_empty()
        };
        assert!(with(Some("ab"), None) && with(None, Some("/m/a.gguf")));
        assert!(!with(Some("cd"), None) && !with(None, None));
    }
}
