//! The provider program's configuration: defaults < TOML file < `CXMPUTE_*` < flags. The seed's
//! `ZANSOC_CONFIG_PATH` and `ZANSOC_DATA_DIR` are accepted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use cxmpute_runtime::config::{Sources, env_var, load};
use cxmpute_runtime::telemetry::LogConfig;
use cxmpute_wire::control::{EnginePresent, ServiceWishes};
use cxmpute_wire::{MicroCredits, ServiceId};
use serde::{Deserialize, Serialize};

use crate::owner::OwnerSection;

use crate::scrape::ScrapeSection;

/// Everything an owner can set.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Key, state, sockets and engine logs live below it.
    pub data_dir: PathBuf,
    /// Name of the device for people; empty means the host's name.
    pub name: String,
    /// The control plane.
    pub api: ApiSection,
    /// Where the device stands.
    pub location: LocationSection,
    /// Model files.
    pub models: ModelsSection,
    /// The built-in engine.
    pub engine: EngineSection,
    /// Engine servers of others.
    pub engines: EnginesSection,
    /// Where servers that the owner already runs are looked for.
    pub discover: DiscoverSection,
    /// What the owner lets the node serve.
    pub services: ServicesSection,
    /// Fetching pages for others; off by default.
    pub scrape: ScrapeSection,
    /// Engines in containers; off by default.
    pub docker: DockerSection,
    /// When the machine works for others.
    pub owner: OwnerSection,
    /// Servers the owner already runs.
    pub external: Vec<External>,
    /// Logs.
    pub log: LogConfig,
}

/// Where a gateway on the same machine listens by default.
const LOCAL_GATEWAY: &str = "http://127.0.0.1:8080";

/// `[api]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiSection {
    /// `https://HOST[:PORT]`; `http://` only for the loopback. Empty: the one this device is enrolled with.
    pub url: String,
    /// PEM file of an authority to trust beside the public ones.
    pub ca_file: Option<PathBuf>,
    /// Public key of the catalogue's seals; the first one that seals a plan when absent.
    pub catalogue_key: Option<String>,
}

/// `[location]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct LocationSection {
    /// Country.
    pub country: String,
    /// State or province.
    pub state: Option<String>,
    /// City.
    pub city: Option<String>,
}

/// `[models]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelsSection {
    /// Directory of the model files; `models` below the data directory when absent.
    pub dir: Option<PathBuf>,
    /// Whether the node fetches what is not here.
    pub download: bool,
    /// Directories in which files are looked for first; what is there is linked, never changed. Ollama's store is one.
    pub search: Vec<PathBuf>,
    /// Mirrors that are asked first: `BASE` (with `BASE/blobs/sha256-…` below it), URLs with `{sha256}` or `{name}`, or
    /// `file://` directories.
    pub mirrors: Vec<String>,
    /// The hub in Hugging Face's layout; none when empty.
    pub hub: String,
    /// File with the owner's token of the hub.
    pub hub_token_file: Option<PathBuf>,
    /// Files that are fetched at the same time.
    pub parallel: u16,
    /// Free disk beyond what is fetched, in MiB; at least 5 % of that.
    pub margin_mb: u64,
    /// A source that brings less than 64 KiB in this time is left for another, in milliseconds.
    pub stall_ms: u64,
    /// After so many KiB what came is safe on the disk; a crash costs no more.
    pub piece_kb: u64,
}

impl Default for ModelsSection {
    fn default() -> Self {
        Self {
            dir: None,
            download: true,
            search: Vec::new(),
            mirrors: Vec::new(),
            hub: "https://huggingface.co".to_owned(),
            hub_token_file: None,
            parallel: 5,
            margin_mb: 1024,
            stall_ms: 30_000,
            piece_kb: 16 * 1024,
        }
    }
}

/// `[engine]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineSection {
    /// Path of `cxmpute-engine`; the one beside this program when absent.
    pub program: Option<PathBuf>,
    /// Answers generated at the same time, per service.
    pub slots: u16,
    /// Requests that may wait for a slot, per service.
    pub queue: u16,
    /// Most tokens per second of each slot.
    pub pace: Option<f64>,
}

impl Default for EngineSection {
    fn default() -> Self {
        Self { program: None, slots: 8, queue: 64, pace: None }
    }
}

/// `[docker]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DockerSection {
    /// Whether images that the operator of the network pins may run here, on the owner's Docker. Whoever may speak to
    /// Docker's daemon is as good as root: an owner says so knowingly.
    pub enabled: bool,
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The file with the owner's logins at registries, as Docker's command keeps it; `config.json` in `$DOCKER_CONFIG` or in
    /// `~/.docker` when absent.
    pub config: Option<PathBuf>,
}

impl Default for DockerSection {
    fn default() -> Self {
        Self { enabled: false, socket: "/var/run/docker.sock".into(), config: None }
    }
}

/// `[engines]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct EnginesSection {
    /// Engines to take before others that could serve the same, such as `["llama-server"]`; else the plan's order.
    pub prefer: Vec<String>,
    /// Path of llama.cpp's `llama-server`; the one beside this program or on the path when absent.
    pub llama_server: Option<PathBuf>,
    /// Path of `vllm`; the one beside this program or on the path when absent.
    pub vllm: Option<PathBuf>,
    /// Files and directories that engines may read beside their model and what belongs to the system, such as libraries
    /// that their programs load from elsewhere.
    pub readable: Vec<PathBuf>,
    /// Address of the owner's Ray cluster (`HOST:PORT`): vLLM then spreads a model over its machines.
    pub ray_address: Option<String>,
    /// Machines of that cluster over which one model is spread.
    pub ray_machines: u16,
}

/// `[discover]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiscoverSection {
    /// Whether servers that the owner already runs are looked for, and serve what they have.
    pub enabled: bool,
    /// Addresses (`HOST:PORT`) at which Ollama may answer.
    pub ollama: Vec<String>,
    /// Addresses at which vLLM may answer.
    pub vllm: Vec<String>,
    /// Addresses at which llama.cpp's server may answer.
    pub llama_server: Vec<String>,
    /// Requests that a found server takes at a time; what it says itself, or a careful number, when absent.
    pub slots: Option<u16>,
    /// Seconds between two looks.
    pub every_s: u64,
}

impl DiscoverSection {
    /// Time between two looks.
    #[must_use]
    pub fn every(&self) -> Duration {
        Duration::from_secs(self.every_s.max(1))
    }
}

impl Default for DiscoverSection {
    fn default() -> Self {
        let at = |port: u16| vec![format!("127.0.0.1:{port}")];
        Self {
            enabled: true,
            ollama: at(11434),
            vllm: at(8000),
            llama_server: at(8080),
            slots: None,
            every_s: 60,
        }
    }
}

/// `[services]`
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServicesSection {
    /// Only these, such as `llm:cxm-tiny`, `cxm-tiny` or the kind `tts`; all when empty.
    pub allow: Vec<String>,
    /// Never these.
    pub deny: Vec<String>,
    /// Least prices of services, models or kinds, in micro-credits per 10^6 units: for less the machine is not asked. What
    /// names a service counts more than its model, and that more than its kind.
    pub least_price: BTreeMap<String, MicroCredits>,
}

impl ServicesSection {
    /// Whether the owner lets the node serve this.
    #[must_use]
    pub fn allows(&self, service: &ServiceId) -> bool {
        let is = |name: &String| {
            name == service.as_str() || Some(&**name) == service.model() || name == service.kind().as_str()
        };
        !self.deny.iter().any(is) && (self.allow.is_empty() || self.allow.iter().any(is))
    }

    /// The same, for the control plane's plan.
    #[must_use]
    pub fn wishes(&self) -> ServiceWishes {
        let Self { allow, deny, least_price } = self.clone();
        ServiceWishes { allow, deny, least_price }
    }
}

/// `[[external]]`: an OpenAI-compatible server that the owner runs.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// What it serves, such as `llm:llama3.2:1b`.
    pub service: String,
    /// Its address up to and with `/v1`, such as `http://127.0.0.1:11434/v1`.
    pub base_url: String,
    /// The server's own name of the model; the service's model when absent.
    #[serde(default)]
    pub model: Option<String>,
    /// File with its API key.
    #[serde(default)]
    pub api_key_file: Option<PathBuf>,
    /// Requests it takes at a time; 4 when absent.
    #[serde(default)]
    pub slots: Option<u16>,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            data_dir: default_data_dir(),
            name: String::new(),
            api: ApiSection::default(),
            location: LocationSection::default(),
            models: ModelsSection::default(),
            engine: EngineSection::default(),
            engines: EnginesSection::default(),
            discover: DiscoverSection::default(),
            services: ServicesSection::default(),
            scrape: ScrapeSection::default(),
            docker: DockerSection::default(),
            owner: OwnerSection::default(),
            external: Vec::new(),
            log: LogConfig::default(),
        }
    }
}

impl NodeConfig {
    /// The owner's own servers as one engine, with the services that they serve.
    #[must_use]
    pub fn external_engine(&self) -> Option<EnginePresent> {
        let models: Vec<String> = self.external.iter().map(|external| external.service.clone()).collect();
        let name = "external".to_owned();
        (!models.is_empty()).then(|| EnginePresent { name, version: String::new(), models })
    }

    /// Reads the configuration from all its layers.
    ///
    /// # Errors
    /// A value is wrong; the error names its source, key, value and what is allowed.
    pub fn read(file: Option<PathBuf>, mut flags: toml::Table) -> Result<Self> {
        let file = file
            .or_else(|| env_var("CXMPUTE_CONFIG_PATH").map(PathBuf::from))
            .or_else(|| env_var("ZANSOC_CONFIG_PATH").map(PathBuf::from));
        // The alias ranks as the environment does: below flags, above the file.
        if env_var("CXMPUTE_DATA_DIR").is_none()
            && let Some(dir) = env_var("ZANSOC_DATA_DIR")
        {
            flags.entry("data_dir").or_insert(toml::Value::String(dir));
        }
        let mut config: Self = load(Sources { file, env_prefix: "CXMPUTE".into(), flags })?;
        // Sockets and logs must not move when the directory of the process does.
        config.data_dir = std::path::absolute(&config.data_dir).context("key `data_dir`")?;
        if config.api.url.is_empty() {
            let enrolled = crate::identity::read_state(&config.data_dir)?.api_url;
            config.api.url = enrolled.unwrap_or_else(|| LOCAL_GATEWAY.to_owned());
        }
        for external in &config.external {
            external.service.parse::<ServiceId>().context("key `external.service`")?;
        }
        for name in config.services.allow.iter().chain(&config.services.deny) {
            name.parse::<ServiceId>().context("keys `services.allow` and `services.deny`")?;
        }
        for (name, price) in &config.services.least_price {
            anyhow::ensure!(price.0 >= 0, "key `services.least_price.{name}`: {price} is below 0");
        }
        Ok(config)
    }

    /// Where the model files are.
    #[must_use]
    pub fn models_dir(&self) -> PathBuf {
        self.models.dir.clone().unwrap_or_else(|| self.data_dir.join("models"))
    }

    /// Where the logs of the engines are.
    #[must_use]
    pub fn logs_dir(&self) -> PathBuf {
        self.data_dir.join("logs")
    }

    /// The device's name.
    #[must_use]
    pub fn device_name(&self) -> String {
        if self.name.is_empty() {
            std::fs::read_to_string("/proc/sys/kernel/hostname")
                .map_or_else(|_| "node".into(), |s| s.trim().into())
        } else {
            self.name.clone()
        }
    }

    /// This program itself, which is also the engine that fetches pages.
    #[must_use]
    pub fn own_program() -> PathBuf {
        let own = std::env::current_exe().unwrap_or_default();
        let named = |path: &Path| path.file_name().is_some_and(|name| name == "cxmpute-provider");
        if named(&own) {
            return own;
        }
        // Embedded in another program: beside it, as the engine program is.
        let beside = own.parent().map(|dir| dir.join("cxmpute-provider")).filter(|path| path.exists());
        beside.unwrap_or_else(|| PathBuf::from("cxmpute-provider"))
    }

    /// The engine program: as configured, else beside this program, else on the path.
    #[must_use]
    pub fn engine_program(&self) -> PathBuf {
        self.engine
            .program
            .clone()
            .or_else(|| crate::engines::find_program(None, "cxmpute-engine"))
            .unwrap_or_else(|| PathBuf::from("cxmpute-engine"))
    }
}

fn default_data_dir() -> PathBuf {
    let home = || Some(Path::new(&env_var("HOME")?).join(".local/share"));
    env_var("XDG_DATA_HOME")
        .map(PathBuf::from)
        .or_else(home)
        .unwrap_or_else(|| PathBuf::from("."))
        .join("cxmpute-provider")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_owner_decides_what_is_served() {
        let service = "llm:a".parse().unwrap();
        let list = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect();
        assert!(ServicesSection::default().allows(&service));
        let of = |allow: &[&str], deny: &[&str]| ServicesSection {
            allow: list(allow),
            deny: list(deny),
            ..ServicesSection::default()
        };
        assert!(!of(&["llm:b"], &[]).allows(&service));
        assert!(!of(&["llm:a"], &["llm:a"]).allows(&service));
        assert!(of(&["llm"], &["b"]).allows(&service));
        assert!(!of(&[], &["a"]).allows(&service));
        let config = NodeConfig {
            external: vec![External { service: "llm:a".to_owned(), ..External::default() }],
            services: of(&[], &["tts"]),
            ..NodeConfig::default()
        };
        let engine = config.external_engine().unwrap();
        assert_eq!((engine.name.as_str(), engine.models), ("external", list(&["llm:a"])));
        assert_eq!(config.services.wishes().deny, list(&["tts"]));
        assert_eq!(NodeConfig::default().external_engine(), None);
    }

    #[test]
    fn a_wrong_value_names_file_key_and_value() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, "[engine]\nslots = \"many\"\n").unwrap();
        let error = format!("{:#}", NodeConfig::read(Some(file.clone()), toml::Table::new()).unwrap_err());
        assert!(
            error.contains("node.toml") && error.contains("engine.slots") && error.contains("many"),
            "{error}"
        );
        std::fs::write(&file, "[engnie]\nslots = 2\n").unwrap();
        let error = format!("{:#}", NodeConfig::read(Some(file), toml::Table::new()).unwrap_err());
        assert!(error.contains("engnie") && error.contains("engine"), "{error}");
    }

    #[test]
    fn least_prices_are_told_to_the_plan() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("node.toml");
        std::fs::write(&file, "[services.least_price]\nllm = 200_000\n\"llama3.2:1b\" = 1\n").unwrap();
        let told = NodeConfig::read(Some(file.clone()), toml::Table::new()).unwrap().services.wishes();
        let prices: Vec<(&str, i64)> =
            told.least_price.iter().map(|(name, price)| (name.as_str(), price.0)).collect();
        assert_eq!(prices, [("llama3.2:1b", 1), ("llm", 200_000)]);
        std::fs::write(&file, "[services.least_price]\nllm = -1\n").unwrap();
        let error = format!("{:#}", NodeConfig::read(Some(file), toml::Table::new()).unwrap_err());
        assert!(error.contains("services.least_price.llm"), "{error}");
    }
}
