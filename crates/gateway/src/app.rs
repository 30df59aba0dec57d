//! The gateway as one value: built from a configuration, used by every handler, stopped in order.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_market::catalogue::Catalogue;
use cxmpute_runtime::exit::{self, ExitError};
use cxmpute_runtime::{Clock, Tasks, random};
use cxmpute_store::{Db, DbError};
use cxmpute_wire::UserId;
use sha2::{Digest as _, Sha256};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::auth::{KeyRing, Pepper};
use crate::config::Config;
use crate::counters::Counters;
use crate::fleet::{Fleet, FleetParts};
use crate::larder::Larder;
use crate::listen;
use crate::media::Desk;
use crate::meter::{Meter, MeterConfig};
use crate::rates::RateTable;
use crate::room::Room;
use crate::router::RouteIndex;
#[cfg(feature = "sabotage")]
use crate::sabotage::Sabotage;
use crate::seals::SealBook;
use crate::telemetry::Telemetry;
use crate::trace::Traces;
use crate::work;

/// After the connections are gone, what is still queued for the store gets this long.
const LAST_WRITES: Duration = Duration::from_secs(10);

/// Everything that lives as long as the process.
pub struct App {
    /// As read and checked.
    pub config: Config,
    /// The store.
    pub db: Db,
    /// Holds and settlements.
    pub meter: Meter,
    /// Attached nodes.
    pub fleet: Fleet,
    /// Models and prices.
    pub catalogue: Arc<Catalogue>,
    /// Model files for nodes.
    pub larder: Arc<Larder>,
    /// Tokenizers.
    pub counters: Counters,
    /// Takes sound and pictures apart.
    pub media: Desk,
    /// Time.
    pub clock: Clock,
    /// Owner of connections and of all tasks that end with them.
    pub tasks: Tasks,
    /// Owner of the tasks that must outlive the connections: the meter's writer.
    pub late_tasks: Tasks,
    /// Keys that were checked lately.
    pub keys: KeyRing,
    /// What keys, accounts and addresses have used lately.
    pub rates: RateTable,
    /// Room for large bodies.
    pub(crate) room: Room,
    /// Measures.
    pub telemetry: Telemetry,
    /// Traces, where a collector is configured.
    pub traces: Option<Traces>,
    /// Rows of the route table by request.
    pub routes: RouteIndex,
    /// Makes [`Self::cache_salt`]; new with every start.
    salt_key: [u8; 32],
    /// Set for `server.tls = "files"`.
    pub tls: Option<TlsAcceptor>,
    /// The known-bad variant under test.
    #[cfg(feature = "sabotage")]
    pub sabotage: Option<Sabotage>,
}

/// What tests give an app instead of the defaults.
#[derive(Clone)]
pub struct Parts {
    /// Time.
    pub clock: Clock,
    /// Owner of the app's tasks.
    pub tasks: Tasks,
    /// The known-bad variant under test.
    #[cfg(feature = "sabotage")]
    pub sabotage: Option<Sabotage>,
}

impl Default for Parts {
    fn default() -> Self {
        Self {
            clock: Clock::system(),
            tasks: Tasks::new(),
            #[cfg(feature = "sabotage")]
            sabotage: None,
        }
    }
}

impl App {
    /// Wires everything together: store (with recovery of what a former process left), catalogue, tokenizers, meter,
    /// fleet and periodic work. Nothing listens yet.
    ///
    /// # Errors
    /// One sentence with the way out, as [`ExitError`] with the documented exit code where there is one.
    pub async fn build(config: Config, parts: Parts) -> anyhow::Result<Arc<Self>> {
        config.check()?;
        #[cfg(feature = "sabotage")]
        let config = {
            let mut config = config;
            config.server.trusts_everybody = parts.sabotage == Some(Sabotage::TrustAll);
            config
        };
        let tls = listen::load_tls(&config.server)?;
        let catalogue = Arc::new(crate::catalogue::load(&config.catalogue)?);
        let seals = SealBook::load(&config.catalogue, &catalogue)?;
        let models_dir = config.catalogue.models_dir.clone();
        if let Some(directory) = models_dir.as_ref().filter(|directory| !directory.is_dir()) {
            return Err(ExitError::new(
                exit::MODEL_MISSING,
                format!(
                    "The model directory {} (catalogue.models_dir) does not exist; create it or correct the key.",
                    directory.display()
                ),
            )
            .into());
        }
        let (db, pepper) = open_store(&config).await?;
        let Parts { clock, tasks, .. } = &parts;
        let (clock, tasks) = (clock.clone(), tasks.clone());
        let late_tasks = Tasks::new();
        let prices: Vec<_> = catalogue.entries().iter().map(|entry| &*entry.price).collect();
        db.record_prices(&prices, clock.now()).await.map_err(unusable)?;
        db.set_default_limits(&config.limits.key(), &config.limits.account()).await.map_err(unusable)?;
        let meter = Meter::start(
            db.clone(),
            clock.clone(),
            &late_tasks,
            MeterConfig {
                replica: config.store.replica.clone(),
                #[cfg(feature = "sabotage")]
                sabotage: parts.sabotage,
                ..MeterConfig::default()
            },
        )
        .await
        .map_err(unusable)?;
        let counters = Counters::new(models_dir);
        let larder = Arc::new(Larder::new(&config.catalogue, &catalogue));
        let fleet = Fleet::start(FleetParts {
            db: db.clone(),
            catalogue: catalogue.clone(),
            counters: counters.clone(),
            clock: clock.clone(),
            tasks: tasks.clone(),
            relay: config.relay.clone(),
            replica: config.store.replica.clone(),
            downloads: config.catalogue.hub_downloads,
            larder: larder.clone(),
            seals,
            #[cfg(feature = "sabotage")]
            sabotage: parts.sabotage,
        });
        // The metrics of the traces need the recorder.
        let telemetry = Telemetry::install();
        let traces = Traces::start(&config, &clock, &tasks, &late_tasks)
            .map_err(|error| ExitError::new(exit::CONFIG, format!("traces.ca_file: {error}.")))?;
        let app = Arc::new(Self {
            keys: KeyRing::new(db.clone(), pepper, clock.clone()),
            rates: RateTable::new(&config.limits, clock.clone()),
            room: Room::new(config.server.bodies_mib << 20),
            telemetry,
            traces,
            routes: RouteIndex::new(),
            salt_key: random::bytes(),
            media: Desk::new(&config, &clock),
            #[cfg(feature = "sabotage")]
            sabotage: parts.sabotage,
            config,
            db,
            meter,
            fleet,
            catalogue,
            larder,
            counters,
            clock,
            tasks,
            late_tasks,
            tls,
        });
        app.name_missing_tokenizers();
        work::start(&app);
        app.stop_with_the_writer();
        Ok(app)
    }

    /// A word for an account that engines keep their caches apart by: it says nothing about the account, and is another
    /// after the next start.
    #[must_use]
    pub fn cache_salt(&self, user: &UserId) -> String {
        let digest = Sha256::new().chain_update(self.salt_key).chain_update(user.as_str()).finalize();
        data_encoding::HEXLOWER.encode(&digest[..16])
    }

    /// Without the meter's writer (its place was taken by another process, or it failed) nothing may be sold; when the
    /// store is damaged, nothing that runs is waited for (MR53).
    fn stop_with_the_writer(&self) {
        let (ended, damaged) = (self.late_tasks.soft(), self.late_tasks.hard());
        let (soft, hard) = (self.tasks.soft(), self.tasks.hard());
        self.late_tasks.spawn("writer-watch", async move {
            tokio::select! {
                biased;
                () = damaged.cancelled() => hard.cancel(),
                () = ended.cancelled() => {}
            }
            soft.cancel();
        });
    }

    /// Says which models cannot be counted by tokens.
    fn name_missing_tokenizers(&self) {
        let missing = self.counters.missing(&self.catalogue);
        if !missing.is_empty() {
            tracing::info!(models = ?missing, "no tokenizer in catalogue.models_dir; these models are not counted by tokens");
        }
    }

    /// Stops in order: no new connections, running answers until `server.drain_ms` (or the hard stop), then the last
    /// writes, then the store. Returns the names of the tasks that had to be dropped.
    pub async fn stop(&self) -> Vec<&'static str> {
        let mut dropped = self.tasks.stop(self.config.server.drain()).await;
        let late = self.late_tasks.stop(LAST_WRITES).await;
        if late.is_empty() {
            self.meter.release().await;
        }
        dropped.extend(late);
        self.db.close().await;
        dropped
    }
}

/// The listening sockets of a gateway.
pub struct Listeners {
    /// The API.
    pub api: TcpListener,
    /// Metrics and probes, unless switched off.
    pub metrics: Option<TcpListener>,
}

impl Listeners {
    /// Opens the configured addresses.
    pub async fn bind(config: &Config) -> Result<Self, ExitError> {
        let api = listen::bind(config.server.bind, "server.bind").await?;
        let metrics =
            match config.metrics.address().map_err(|message| ExitError::new(exit::CONFIG, message))? {
                Some(address) => Some(listen::bind(address, "metrics.bind").await?),
                None => None,
            };
        Ok(Self { api, metrics })
    }

    /// Where the API is reached on this machine.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.api.local_addr()
    }
}

/// Serves until the soft stop of the app's tasks. Call [`App::stop`] afterwards.
pub async fn serve(app: Arc<App>, listeners: Listeners) {
    if let Some(listener) = listeners.metrics {
        app.tasks.spawn_critical("metrics-accept", listen::serve_metrics(app.clone(), listener));
    }
    listen::serve(app, listeners.api).await;
}

/// Opens the store and the pepper, for the server and for commands beside it.
pub async fn open_store(config: &Config) -> anyhow::Result<(Db, Pepper)> {
    prepare_directory(&config.store.data_dir)?;
    let db = Db::open(&config.store.url()).await.map_err(unusable)?;
    let pepper = Pepper::load_or_create(&config.store.pepper_file())?;
    Ok((db, pepper))
}

fn prepare_directory(directory: &Path) -> Result<(), ExitError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| {
        ExitError::caused(
            exit::DIR_UNWRITABLE,
            format!(
                "The data directory {} (store.data_dir) cannot be made; choose another or change the owner of its parent.",
                directory.display()
            ),
            error,
        )
    })
}

/// Gives the store's complaint at start its exit code.
fn unusable(error: DbError) -> ExitError {
    let code = match &error {
        DbError::Unwritable { .. } => exit::DIR_UNWRITABLE,
        DbError::BadAddress { .. } | DbError::PriceChanged { .. } => exit::CONFIG,
        _ => exit::DATABASE,
    };
    let message = match &error {
        DbError::Unavailable(_) => {
            "The database does not answer; is it running, and is store.url right?".to_owned()
        }
        other => {
            let text = other.to_string();
            match text.strip_prefix("the ") {
                Some(rest) => format!("The {rest}."),
                None => format!("{text}."),
            }
        }
    };
    ExitError::caused(code, message, error)
}
