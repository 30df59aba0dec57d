//! One world in this process: a gateway on port 0, a store of its own, stand-in nodes and clients. Clean or sabotaged.

mod boot;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cxmpute_egress::judge::Network;
use cxmpute_gateway::App;
use cxmpute_gateway::config::{Config, TracesConfig};
use cxmpute_store::KeyKind;
use cxmpute_wire::{MicroCredits, ProvisionId, UserId};
use serde_json::Value;

pub use boot::fresh_postgres;

use crate::client::{Client, Reply};
use crate::ground::until;
use crate::money::Money;
use crate::proxy::Proxy;
use crate::settings::{Setting, Store};
use crate::stand_in::{Identity, StandIn};
use crate::verdict::Verdict;

/// A chat model of the world's catalogue with prices per token, a long context and the tiny model's tokenizer.
pub const CHAT_MODEL: &str = "stage";
/// A chat model whose every request is held at, and costs, exactly [`FIXED_COST`].
pub const FIXED_MODEL: &str = "fixed";
/// An embeddings model with the tiny model's tokenizer.
pub const EMBEDDINGS_MODEL: &str = "points";
/// Micro-credits of one request of [`FIXED_MODEL`]: its minimum charge, far above its units.
pub const FIXED_COST: i64 = 1_000;

/// Says texts, in a world with services.
pub const SPEECH_MODEL: &str = "speaker";
/// Writes recordings down.
pub const LISTENING_MODEL: &str = "listener";
/// Reads pictures.
pub const READING_MODEL: &str = "reader";
/// Looks at pictures and talks.
pub const SEEING_MODEL: &str = "watcher";
/// Draws pictures.
pub const DRAWING_MODEL: &str = "painter";
/// Fetches pages.
pub const PAGES_MODEL: &str = "scrape";

/// Models of every world's catalogue; a stand-in serves them all.
const MODELS: usize = 3;
/// Models beyond them, in a world with services.
const SERVICES: usize = 6;

/// Patience with a node that comes up. No rule says how soon it must; a starved machine needs long.
const UP_WITHIN: Duration = Duration::from_secs(120);

/// How long a world may take to come to rest.
const REST_WITHIN: Duration = Duration::from_secs(30);

/// A world to be.
#[derive(Debug)]
pub struct Plan {
    setting: Setting,
    config: Config,
    services: bool,
    more: String,
}

impl Plan {
    /// Nodes also say texts, write recordings down, read pictures and fetch pages.
    #[must_use]
    pub fn services(mut self) -> Self {
        self.services = true;
        self
    }

    /// Entries beside the usual ones, for nodes that a test starts itself.
    #[must_use]
    pub fn also(mut self, catalogue: String) -> Self {
        self.more = catalogue;
        self
    }

    /// Pictures may be fetched from this address of the test's own.
    #[must_use]
    pub fn pictures_from(mut self, address: &str) -> Self {
        self.config.media.allow.extend(address.parse::<cxmpute_egress::judge::Permission>());
        self
    }

    /// Cuts a reader that takes nothing for this long.
    #[must_use]
    pub fn write_stall(mut self, after: Duration) -> Self {
        self.config.server.write_stall_ms = millis(after);
        self
    }

    /// All timers against slow clients.
    #[must_use]
    pub fn slow_client_timers(mut self, timer: Duration) -> Self {
        self.config.server.head_ms = millis(timer);
        self.config.server.body_grace_ms = millis(timer);
        self.config.server.keep_alive_ms = millis(timer);
        self.config.server.write_stall_ms = millis(timer);
        self
    }

    /// Wrong keys of one address per minute.
    #[must_use]
    pub fn failed_keys(mut self, most: u64) -> Self {
        self.config.limits.failed_keys_per_minute = most;
        self
    }

    /// A proxy whose word about addresses counts.
    #[must_use]
    pub fn trust(mut self, proxy: &str) -> Self {
        self.config.server.trusted_proxies.extend(proxy.parse::<Network>());
        self
    }

    /// Short deadlines for nodes: to the first token, between tokens, and for embeddings as a whole.
    #[must_use]
    pub fn node_deadlines(mut self, first_token: Duration, gap: Duration, embeddings: Duration) -> Self {
        self.config.relay.first_token_ms = millis(first_token);
        self.config.relay.gap_ms = millis(gap);
        self.config.relay.embeddings_total_ms = millis(embeddings);
        self
    }

    /// Traces.
    #[must_use]
    pub fn traces(mut self, change: impl FnOnce(&mut TracesConfig)) -> Self {
        change(&mut self.config.traces);
        self
    }

    /// A page of metrics at this address.
    #[must_use]
    pub fn metrics(mut self, address: SocketAddr) -> Self {
        self.config.metrics.bind = address.to_string();
        self
    }

    /// The rhythm in which tunnels are asked for a sign of life, and the silence after which one is dead.
    #[must_use]
    pub fn tunnel_limits(mut self, ping: Duration, dead: Duration) -> Self {
        self.config.relay.ping_ms = millis(ping);
        self.config.relay.dead_ms = millis(dead);
        self
    }

    /// How long the head of a stream is held back for its first token; also the rhythm of comments in silence.
    #[must_use]
    pub fn headers_held(mut self, span: Duration) -> Self {
        self.config.relay.headers_held_ms = millis(span);
        self
    }

    /// How long a request waits for a node.
    #[must_use]
    pub fn queue(mut self, span: Duration) -> Self {
        self.config.relay.queue_ms = millis(span);
        self
    }

    /// Short deadlines of the relay, so that what misses them is seen soon: for the acceptance, for the first token, and
    /// for the time that a breaker stays open.
    #[must_use]
    pub fn relay_deadlines(mut self, accept: Duration, first_token: Duration, open: Duration) -> Self {
        self.config.relay.accept_ms = millis(accept);
        self.config.relay.first_token_ms = millis(first_token);
        self.config.relay.breaker_open_ms = millis(open);
        self
    }

    /// Brings it up.
    ///
    /// # Errors
    /// The store or the gateway does not start.
    pub async fn start(mut self) -> Result<World> {
        let folder = tempfile::tempdir()?;
        let url = match self.setting.store {
            Store::Sqlite => format!("sqlite:{}", folder.path().join("cxmpute.db").display()),
            Store::Postgres => boot::fresh_postgres()?,
        };
        boot::lay_out(&mut self.config, folder.path(), url, self.services, &self.more)?;
        let (app, address) = boot::serve(self.config, self.setting.bad).await?;
        let money = Money::new(app.db.clone(), app.catalogue.clone(), &crate::house::models_dir())?;
        let models = MODELS + if self.services { SERVICES } else { 0 };
        Ok(World { address, money, app, folder, models, bad: self.setting.bad.is_some() })
    }
}

/// The lines of an entry that pin the tiny model's file, from which its tokens are counted.
///
/// # Errors
/// The file is missing.
pub fn tiny_file() -> Result<String> {
    boot::tiny_file()
}

/// A running world. [`World::finish`] judges what it leaves behind.
pub struct World {
    /// Where the gateway listens.
    pub address: SocketAddr,
    /// Its ledger and prices.
    pub money: Money,
    app: Arc<App>,
    folder: tempfile::TempDir,
    models: usize,
    bad: bool,
}

/// An account with a key.
#[derive(Clone, Debug)]
pub struct Account {
    /// The account.
    pub user_id: UserId,
    /// A client with a key of it.
    pub client: Client,
}

impl World {
    /// The plan of a world with the given setting.
    #[must_use]
    pub fn plan(setting: Setting) -> Plan {
        let mut config = Config::default();
        config.metrics.bind = "off".to_owned();
        // Hundreds of clients of a test share one address.
        config.server.connections_per_address = 0;
        config.server.drain_ms = 5_000;
        Plan { setting, config, services: false, more: String::new() }
    }

    /// Creates an account with so much money and a key.
    ///
    /// # Errors
    /// The store failed.
    pub async fn account(&self, email: &str, money: MicroCredits) -> Result<Account> {
        let (user_id, key) = boot::account(&self.app, email, money).await?;
        Ok(Account { user_id, client: Client { lenient: self.bad, ..Client::with_key(self.address, &key) } })
    }

    /// A single-use enrolment grant of an owner.
    ///
    /// # Errors
    /// The store failed.
    pub async fn grant(&self, owner: &UserId) -> Result<String> {
        boot::grant(&self.app, owner).await
    }

    /// A provider key of an account, as the routes of the first seed take it.
    ///
    /// # Errors
    /// The store failed.
    pub async fn provider_key(&self, owner: &UserId) -> Result<String> {
        boot::key(&self.app, owner, KeyKind::Provider).await
    }

    /// Enrols and starts a stand-in node with an owner of its own, and waits until it gets work.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn stand_in(&self, name: &str) -> Result<StandIn> {
        self.stand_in_as(&Identity::fresh(), name).await
    }

    /// The same with a given key; a key that is enrolled already only opens another tunnel.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn stand_in_as(&self, identity: &Identity, name: &str) -> Result<StandIn> {
        self.stand_in_at(self.address, identity, name).await
    }

    /// A stand-in whose tunnel goes through a proxy in front of the gateway.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn stand_in_through(&self, proxy: &Proxy, name: &str) -> Result<StandIn> {
        self.stand_in_at(proxy.address, &Identity::fresh(), name).await
    }

    async fn stand_in_at(&self, address: SocketAddr, identity: &Identity, name: &str) -> Result<StandIn> {
        if self.app.db.find_provision(identity.provision_id().as_str()).await?.is_none() {
            let owner = self
                .account(&format!("{name}-{}@example.org", identity.provision_id()), MicroCredits(0))
                .await?;
            let answer = self
                .enrol(identity, &identity.provision_id(), Some(&self.grant(&owner.user_id).await?))
                .await?;
            ensure!(answer.status < 300, "enrolment of {name}: {} {}", answer.status, answer.json());
        }
        let node = StandIn::start(address, identity).await?;
        until("the stand-in to be routable", UP_WITHIN, async || {
            Ok((node.routable() >= self.models).then_some(()))
        })
        .await?;
        Ok(node)
    }

    /// Sends a signed enrolment.
    ///
    /// # Errors
    /// The gateway cannot be reached.
    pub async fn enrol(&self, identity: &Identity, id: &ProvisionId, grant: Option<&str>) -> Result<Reply> {
        let answer = identity.enrol(self.address, id, "stand-in", grant).await?;
        Ok(Reply { status: answer.status.as_u16(), headers: Vec::new(), body: answer.body.to_vec() })
    }

    /// A provision as it is stored, for comparison.
    ///
    /// # Errors
    /// The store failed, or there is none.
    pub async fn provision(&self, id: &ProvisionId) -> Result<String> {
        let row = self.app.db.find_provision(id.as_str()).await?.context("no such provision")?;
        Ok(format!("{} of {} with {:?}", row.id, row.owner, row.public_key))
    }

    /// The cost that `GET /generation` tells, in micro-credits.
    ///
    /// # Errors
    /// It tells none.
    pub fn cost_of(&self, generation: &Value) -> Result<i64> {
        generation["total_cost_micro"].as_i64().with_context(|| format!("no cost in {generation}"))
    }

    /// What so many tokens of [`CHAT_MODEL`] cost.
    ///
    /// # Errors
    /// Never in a world with its catalogue.
    pub fn price(&self, prompt: u64, completion: u64) -> Result<i64> {
        self.money.price(CHAT_MODEL, prompt, completion)
    }

    /// The provider's share of a cost.
    ///
    /// # Errors
    /// Never in a world with its catalogue.
    pub fn share(&self, cost: i64) -> Result<i64> {
        self.money.share(CHAT_MODEL, cost)
    }

    /// Judges what is left: every hold resolved, the ledger explained, nothing running after the stop.
    ///
    /// # Errors
    /// The store failed.
    pub async fn finish(self, verdict: &mut Verdict) -> Result<()> {
        let resolved = until("every hold to be resolved", REST_WITHIN, async || {
            Ok((self.money.open_holds().await? == 0).then_some(()))
        })
        .await;
        verdict.check("no hold is left", resolved.is_ok(), format!("{resolved:?}"));
        let complaint = self.money.complaint().await?;
        verdict.check("the ledger explains every credit", complaint.is_none(), format!("{complaint:?}"));
        let dropped = self.app.stop().await;
        verdict.check("no task had to be dropped", dropped.is_empty(), format!("{dropped:?}"));
        drop(self.folder);
        Ok(())
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
