//! The house as processes: `cxmpute serve`, `cxmpute-provider start` and what they start, on one machine.
//!
//! Used by the demo and by the gates that kill processes. Everything lives below one folder; dropping the house ends
//! every process it started.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::time::Instant;

use cxmpute_node::engines::tool::Program as Tool;

use crate::client::Client;
use crate::ground::until;
use crate::process::{self, Program};
use crate::settings;

/// The models of the demo: the tiny chat model of this repository, MiniLM where it was fetched.
pub const CHAT_MODEL: &str = "cxm-tiny";
/// The embeddings model.
pub const EMBEDDINGS_MODEL: &str = "all-minilm";
/// What fetches pages.
pub const SCRAPE_MODEL: &str = "scrape";

/// The services of the demo that need a program of this machine, and nothing else: program, then models.
pub const TOOLS: [(Tool, &[&str]); 3] = [
    (Tool::Espeak, &["espeak-ng"]),
    (Tool::Pocketsphinx, &["pocketsphinx", "pocketsphinx-digits"]),
    (Tool::Tesseract, &["tesseract"]),
];

/// How long a process may take to become ready on a loaded machine.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A gateway process and the folder of everything.
#[derive(Debug)]
pub struct House {
    /// Everything lives below it.
    pub folder: PathBuf,
    /// Where the API listens; the same after every restart.
    pub address: SocketAddr,
    /// Environment of the gateway and of the `cxmpute` commands.
    pub environment: Vec<(String, String)>,
    gateway: Option<Program>,
}

impl House {
    /// Lays the house out; nothing runs yet.
    ///
    /// # Errors
    /// The folder cannot be written or no port is free.
    pub fn plan(folder: &Path, bad: Option<&str>) -> Result<Self> {
        std::fs::create_dir_all(folder.join("gateway"))?;
        let address = free_address()?;
        let models = models_dir();
        let mut environment = vec![
            ("CXMPUTE_SERVER_BIND".to_owned(), address.to_string()),
            ("CXMPUTE_METRICS_BIND".to_owned(), free_address()?.to_string()),
            ("CXMPUTE_STORE_DATA_DIR".to_owned(), text(&folder.join("gateway"))),
            ("CXMPUTE_CATALOGUE_MODELS_DIR".to_owned(), text(&models)),
        ];
        if let Some(bad) = bad {
            environment.push(("CXMPUTE_SABOTAGE".to_owned(), bad.to_owned()));
        }
        Ok(Self { folder: folder.to_owned(), address, environment, gateway: None })
    }

    /// Sets one variable of the gateway's environment.
    pub fn set(&mut self, name: &str, value: &str) {
        self.environment.retain(|(have, _)| have != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    /// The value of one variable of the gateway's environment.
    #[must_use]
    pub fn setting(&self, name: &str) -> Option<&str> {
        self.environment.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// Starts the gateway and waits until it is ready; gives how long that took.
    ///
    /// # Errors
    /// It ended or was not ready in time; its log is part of the error.
    pub async fn start_gateway(&mut self) -> Result<Duration> {
        let begin = Instant::now();
        let environment = self.borrowed();
        let mut program = Program::start("cxmpute", &["serve"], &environment, &self.folder, "gateway")?;
        let client = Client::anonymous(self.address);
        let ready = until("the gateway to be ready", READY_WITHIN, async || {
            if !program.alive() {
                bail!("the gateway ended: {}", tail(&program.logged()));
            }
            Ok(client.call("GET", "/readyz", None).await.is_ok_and(|reply| reply.status == 200).then_some(()))
        })
        .await;
        if let Err(error) = ready {
            bail!("{error}: {}", tail(&program.logged()));
        }
        self.gateway = Some(program);
        Ok(begin.elapsed())
    }

    /// The gateway's process.
    ///
    /// # Errors
    /// It was not started.
    pub fn gateway(&mut self) -> Result<&mut Program> {
        self.gateway.as_mut().context("the gateway was not started")
    }

    /// `cxmpute ARGUMENTS --json`, read as JSON.
    ///
    /// # Errors
    /// The command failed or printed no JSON.
    pub fn command(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.push("--json");
        let printed = process::run("cxmpute", &all, &self.borrowed())?;
        serde_json::from_str(&printed).with_context(|| format!("cxmpute {arguments:?} printed {printed:?}"))
    }

    /// Creates an account, or finds the one that has the address.
    ///
    /// # Errors
    /// The command failed.
    pub fn create_user(&self, email: &str) -> Result<String> {
        field(&self.command(&["admin", "user", "create", email])?, "id")
    }

    /// Gives an account micro-credits.
    ///
    /// # Errors
    /// The command failed.
    pub fn grant_credits(&self, user: &str, micro_credits: i64) -> Result<()> {
        self.command(&[
            "admin",
            "credits",
            "grant",
            user,
            "--micro",
            &micro_credits.to_string(),
            "--reason",
            "e2e",
        ])
        .map(drop)
    }

    /// Makes an API key.
    ///
    /// # Errors
    /// The command failed.
    pub fn create_key(&self, user: &str) -> Result<String> {
        field(&self.command(&["keys", "create", user])?, "key")
    }

    /// Makes a single-use enrolment grant.
    ///
    /// # Errors
    /// The command failed.
    pub fn enrol_grant(&self, user: &str) -> Result<String> {
        field(&self.command(&["admin", "grant", "create", user])?, "grant")
    }

    /// `cxmpute admin ledger check`.
    ///
    /// # Errors
    /// The command failed, which it also does when the ledger does not add up.
    pub fn check_ledger(&self) -> Result<Value> {
        self.command(&["admin", "ledger", "check"])
    }

    /// Enrols a node in `folder/label` and starts it.
    ///
    /// # Errors
    /// One of the two commands failed.
    pub fn start_node(
        &self,
        label: &str,
        grant: Option<&str>,
        api: SocketAddr,
        extra: &[(&str, &str)],
    ) -> Result<Program> {
        let folder = text(&self.folder.join(label));
        std::fs::create_dir_all(&folder)?;
        let url = format!("http://{api}");
        let models = text(&models_dir());
        // The built-in engine is found beside the node's program; a node that has another engine needs none there.
        let mut environment = vec![
            ("CXMPUTE_API_URL", url.as_str()),
            ("CXMPUTE_DATA_DIR", folder.as_str()),
            ("CXMPUTE_NAME", label),
            ("CXMPUTE_MODELS_DIR", models.as_str()),
        ];
        environment.extend_from_slice(extra);
        if let Some(grant) = grant {
            let file = self.folder.join(format!("{label}.grant"));
            std::fs::write(&file, grant)?;
            process::run(
                "cxmpute-provider",
                &["enrol", "--grant-file", &text(&file), "--json"],
                &environment,
            )?;
            std::fs::remove_file(&file)?;
        }
        Program::start("cxmpute-provider", &["start", "--json"], &environment, &self.folder, label)
    }

    /// Waits until the model has a routable node.
    ///
    /// # Errors
    /// It has none in time.
    pub async fn routable(&self, model: &str, nodes: u64) -> Result<()> {
        let client = Client::anonymous(self.address);
        until(&format!("{nodes} routable nodes of {model}"), READY_WITHIN, async || {
            let reply = client.call("GET", &format!("/v1/models/{model}"), None).await?.json();
            let ready = reply["availability"]["nodes"].as_u64().unwrap_or_default() >= nodes
                && reply["availability"]["status"] == "ready";
            Ok(ready.then_some(()))
        })
        .await
    }

    /// The address of the gateway's database.
    #[must_use]
    pub fn database_url(&self) -> String {
        format!("sqlite:{}", self.folder.join("gateway/cxmpute.db").display())
    }

    /// Writes down where everything is, for [`House::recall`].
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn remember(&self) -> Result<()> {
        let text = serde_json::to_string(&(self.address, &self.environment))?;
        Ok(std::fs::write(self.folder.join("house.json"), text)?)
    }

    /// The house that another process keeps up in this folder.
    ///
    /// # Errors
    /// There is none.
    pub fn recall(folder: &Path) -> Result<Self> {
        let path = folder.join("house.json");
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("no demo runs in {}", folder.display()))?;
        let (address, environment) = serde_json::from_str(&text)?;
        Ok(Self { folder: folder.to_owned(), address, environment, gateway: None })
    }

    fn borrowed(&self) -> Vec<(&str, &str)> {
        self.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }
}

/// Where model files are: `CXMPUTE_MODELS_DIR`, else the cache that `scripts/fetch-models` fills.
#[must_use]
pub fn models_dir() -> PathBuf {
    settings::variable("CXMPUTE_MODELS_DIR").map_or_else(
        || {
            let cache = settings::variable("XDG_CACHE_HOME").map_or_else(
                || PathBuf::from(settings::variable("HOME").unwrap_or_default()).join(".cache"),
                PathBuf::from,
            );
            cache.join("cxmpute/models")
        },
        PathBuf::from,
    )
}

/// A loopback address that was free a moment ago.
///
/// # Errors
/// No port is free.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

fn field(value: &Value, name: &str) -> Result<String> {
    value[name].as_str().map(str::to_owned).with_context(|| format!("no `{name}` in {value}"))
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().rev().take(20).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
