//! The files of one service: found where they are, fetched where they are not, and put together under the names of the plan.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cxmpute_runtime::{Clock, Secret};
use cxmpute_tunnel::Signer;
use cxmpute_wire::control::{DesiredFile, DesiredService, Progress, ServiceState};
use cxmpute_wire::{Bytes, Timestamp};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use url::Url;

use super::client::Client;
use super::digest::Digest;
use super::error::DeliveryError;
use super::gate::Gate;
use super::hashes::Hashes;
use super::meter::Meter;
use super::names;
use super::partial::Claim;
use super::room;
use super::seals::Seals;
use super::shelf::{BLOBS, Lease, Shelf, View};
use super::source::Bases;
use crate::config::{ModelsSection, NodeConfig};
use crate::diagnose;
use crate::owner::Caps;

/// Pieces of files that nobody asked for in this time are deleted.
const PIECES_KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// Brings the files of services. Cloning shares everything.
#[derive(Clone, Debug)]
pub struct Models {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub shelf: Shelf,
    pub hashes: Hashes,
    pub client: Result<Client, String>,
    seals: Result<Seals, String>,
    pub bases: Bases,
    pub gate: Gate,
    /// Directories of the owner beside the models directory.
    search: Vec<PathBuf>,
    /// Files that are fetched at the same time.
    pub slots: Semaphore,
    pub piece_bytes: u64,
    margin_bytes: u64,
    download: bool,
    caps: Caps,
    pub clock: Clock,
    /// Sources that have failed for a file, until when they are left alone.
    pub bars: Mutex<HashMap<(Digest, Url), Bar>>,
    /// Files that came out wrong from several sources together: each is asked for all of it now.
    pub unmixed: Mutex<HashSet<Digest>>,
    /// One service at a time decides what fits.
    admission: tokio::sync::Mutex<()>,
}

/// Why a source is left alone.
#[derive(Clone, Debug)]
pub(super) struct Bar {
    pub until: Duration,
    pub why: String,
    /// It gave something else than the file.
    pub wrong: bool,
}

/// The files of a service are here, and stay while this is held.
#[derive(Debug)]
pub struct Placed {
    /// The directory below which they have the names of the plan.
    pub folder: PathBuf,
    _leases: Vec<Lease>,
    _view: Option<View>,
}

/// Told how far a service is.
pub type Tell = Arc<dyn Fn(ServiceState, Progress) + Send + Sync>;

/// How the report of one service is made.
#[derive(Clone)]
pub(super) struct Report {
    tell: Tell,
    meter: Arc<Mutex<Meter>>,
    clock: Clock,
}

impl Report {
    /// Says in which state it is.
    pub fn say(&self, state: ServiceState) {
        let progress = self.meter.lock().progress(self.clock.mono());
        (self.tell)(state, progress);
    }

    /// Notes bytes that are here already.
    pub fn found(&self, bytes: u64) {
        self.meter.lock().found(bytes);
    }

    /// Notes bytes that are not here after all.
    pub fn lost(&self, bytes: u64) {
        self.meter.lock().lost(bytes);
    }

    /// A source is asked.
    pub fn asks(&self, source: &str) {
        self.meter.lock().asks(source);
        self.say(ServiceState::Downloading);
    }

    /// Notes bytes that came.
    pub fn came(&self, bytes: u64, source: &str) {
        self.meter.lock().came(bytes, source, self.clock.mono());
        self.say(ServiceState::Downloading);
    }
}

/// A file with what the plan pins.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    pub file: &'a DesiredFile,
    pub digest: Digest,
    pub size: u64,
}

/// Where a file was found.
#[derive(Debug)]
pub(super) enum Found {
    /// Under its own name below the models directory.
    InPlace,
    /// Among what the node fetched.
    Blob(Lease),
    /// In another file of the owner.
    Elsewhere(PathBuf),
}

impl Models {
    /// As the owner configured it. Nothing is touched before a service asks; `signer` signs for the control plane.
    #[must_use]
    pub fn new(config: &NodeConfig, signer: Option<Signer>, clock: Clock) -> Self {
        let models = &config.models;
        let bases = Bases {
            mirrors: models.mirrors.iter().filter(|mirror| !is_local(mirror)).cloned().collect(),
            hub: models.hub.clone(),
            api: config.api.url.clone(),
        };
        let client = client(config, &bases, signer);
        if let Err(why) = &client {
            tracing::warn!(why, "no model can be fetched");
        }
        let seals = Seals::open(&config.data_dir, &config.api.url, config.api.catalogue_key.as_deref());
        let inner = Inner {
            seals: seals.map_err(|error| format!("what was seen of the catalogue cannot be read: {error}")),
            shelf: Shelf::new(config.models_dir()),
            hashes: Hashes::open(&config.data_dir),
            client,
            bases,
            search: search_folders(models),
            gate: Gate::default(),
            slots: Semaphore::new(usize::from(models.parallel.max(1))),
            piece_bytes: models.piece_kb.max(1).saturating_mul(1024),
            margin_bytes: models.margin_mb.saturating_mul(1 << 20),
            download: models.download,
            caps: config.owner.caps,
            clock,
            bars: Mutex::default(),
            unmixed: Mutex::default(),
            admission: tokio::sync::Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Brings the files of a service, or says why they cannot be here. May be dropped at any moment: what arrived stays, and
    /// the next call goes on there.
    ///
    /// # Errors
    /// A file cannot be had, or does not fit; nothing of a wrong one stays.
    pub async fn place(&self, desired: &DesiredService, tell: Tell) -> Result<Placed, DeliveryError> {
        let inner = &self.inner;
        let root = inner.shelf.root();
        let (own, asked) = (inner.clone(), desired.clone());
        let check = move || {
            let seals = own.seals.as_ref().map_err(|why| DeliveryError::Refused(why.clone()))?;
            seals.check(&asked).map_err(|error| DeliveryError::Refused(error.to_string()))
        };
        tokio::task::spawn_blocking(check).await.map_err(std::io::Error::other)??;
        let mut wanted = Vec::new();
        for file in &desired.files {
            let path = below(root, file)?;
            match pinned(file) {
                Some((digest, size)) => wanted.push(Wanted { file, digest, size }),
                // Nobody says which bytes are right: only the owner can know them.
                None if path.is_file() => {}
                None => return Err(DeliveryError::Missing(path.display().to_string())),
            }
        }
        let total = wanted.iter().map(|wanted| wanted.size).sum();
        let meter = Arc::new(Mutex::new(Meter::new(total)));
        let report = Report { tell, meter, clock: inner.clock.clone() };
        let mut found: Vec<Option<Found>> = Vec::new();
        for wanted in &wanted {
            let place = inner.locate(*wanted, &report).await?;
            if place.is_some() {
                report.found(wanted.size);
            }
            found.push(place);
        }
        let missing: Vec<usize> = (0..wanted.len()).filter(|n| found[*n].is_none()).collect();
        if !missing.is_empty() {
            for n in &missing {
                inner.check_fetchable(wanted[*n]).await?;
                inner.check_bars(wanted[*n])?;
            }
            let lacking: Vec<Wanted<'_>> = missing.iter().map(|n| wanted[*n]).collect();
            let claims = self.admit(&lacking).await?;
            report.say(ServiceState::Queued);
            let fetching =
                lacking.iter().zip(claims).map(|(wanted, claim)| inner.obtain(*wanted, claim, &report));
            for (n, lease) in missing.into_iter().zip(join_all(fetching).await) {
                found[n] = Some(Found::Blob(lease?));
            }
        }
        report.say(ServiceState::Verifying);
        self.assemble(desired, &wanted, found.into_iter().flatten().collect())
    }

    /// The sum of a file of the owner's, which is read once and again when it has changed.
    ///
    /// # Errors
    /// It cannot be read, or it changed while it was.
    pub async fn sum(&self, path: &Path) -> std::io::Result<Digest> {
        self.inner.hashes.sum(path, |_| {}).await
    }

    /// Room on the disk for all of these, and the right to fill them; `None` for what another service fills already.
    async fn admit(&self, lacking: &[Wanted<'_>]) -> Result<Vec<Option<Claim>>, DeliveryError> {
        let _turn = self.inner.admission.lock().await;
        let own = self.inner.clone();
        let lacking: Vec<(Digest, u64)> = lacking.iter().map(|wanted| (wanted.digest, wanted.size)).collect();
        tokio::task::spawn_blocking(move || own.make_room(&lacking)).await.map_err(std::io::Error::other)?
    }

    /// The directory in which all files have the names of the plan.
    fn assemble(
        &self,
        desired: &DesiredService,
        wanted: &[Wanted<'_>],
        found: Vec<Found>,
    ) -> Result<Placed, DeliveryError> {
        let shelf = &self.inner.shelf;
        let root = shelf.root();
        if found.iter().all(|place| matches!(place, Found::InPlace)) {
            return Ok(Placed { folder: root.to_owned(), _leases: Vec::new(), _view: None });
        }
        let (mut leases, mut files) = (Vec::new(), Vec::new());
        for (wanted, place) in wanted.iter().zip(found) {
            let path = match place {
                Found::InPlace => root.join(&wanted.file.name),
                Found::Elsewhere(path) => path,
                Found::Blob(lease) => {
                    let path = lease.path.clone();
                    leases.push(lease);
                    path
                }
            };
            files.push((wanted.file.name.as_str(), wanted.digest, path));
        }
        let bare = desired.files.iter().filter(|file| pinned(file).is_none());
        files.extend(bare.map(|file| (file.name.as_str(), Digest::of(b""), root.join(&file.name))));
        let named: Vec<(&str, Digest, &Path)> =
            files.iter().map(|(name, digest, path)| (*name, *digest, path.as_path())).collect();
        let view = shelf.view(&named)?;
        Ok(Placed { folder: view.folder.clone(), _leases: leases, _view: Some(view) })
    }

    /// What lets files come, or makes them wait.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.inner.gate
    }

    /// Takes what an earlier run left: views, lists of blobs that are gone, pieces that nobody wants any more.
    ///
    /// # Errors
    /// The disk fails.
    pub fn tidy(&self) -> std::io::Result<()> {
        let kept = i64::try_from(PIECES_KEPT.as_millis()).unwrap_or(i64::MAX);
        self.inner.shelf.tidy(Timestamp(self.inner.clock.now().0.saturating_sub(kept)))
    }
}

/// A mirror that is a directory of this machine.
fn is_local(mirror: &str) -> bool {
    mirror.starts_with("file://")
}

/// Directories in which files are looked for, beside the models directory.
pub(super) fn search_folders(models: &ModelsSection) -> Vec<PathBuf> {
    let local = models.mirrors.iter().filter(|mirror| is_local(mirror));
    let local = local.filter_map(|url| Url::parse(url).ok()?.to_file_path().ok());
    models.search.iter().cloned().chain(local).collect()
}

impl Inner {
    /// Looks for a file on this machine.
    async fn locate(&self, wanted: Wanted<'_>, report: &Report) -> Result<Option<Found>, DeliveryError> {
        let own = below(self.shelf.root(), wanted.file)?;
        // Of what cannot be read, it is as good as not there.
        if self.fits(&own, wanted, report).await.unwrap_or(false) {
            return Ok(Some(Found::InPlace));
        }
        if let Some(lease) = self.lease(wanted, report).await? {
            return Ok(Some(Found::Blob(lease)));
        }
        let blob = wanted.digest.file_name();
        let last = wanted.file.name.rsplit('/').next().unwrap_or_default();
        let inside = |folder: &PathBuf| {
            [
                folder.join(&wanted.file.name),
                folder.join(last),
                folder.join(&blob),
                folder.join(BLOBS).join(&blob),
            ]
        };
        let by_hand = (!self.shelf.is_own(wanted.digest)?).then(|| self.shelf.blob(wanted.digest));
        for path in by_hand.into_iter().chain(self.search.iter().flat_map(inside)) {
            if self.fits(&path, wanted, report).await.unwrap_or(false) {
                return Ok(Some(Found::Elsewhere(path)));
            }
        }
        Ok(None)
    }

    /// Takes hold of a blob, if it is there and still what it was.
    pub async fn lease(&self, wanted: Wanted<'_>, report: &Report) -> Result<Option<Lease>, DeliveryError> {
        let (shelf, digest, now) = (self.shelf.clone(), wanted.digest, self.clock.now());
        // It waits for the locks of others, and for the disk.
        let leased = tokio::task::spawn_blocking(move || shelf.lease(digest, now)).await;
        let Some(lease) = leased.map_err(std::io::Error::other)?? else { return Ok(None) };
        // Only bytes that were read and are others are a reason to delete it.
        if self.fits(&lease.path, wanted, report).await? {
            return Ok(Some(lease));
        }
        tracing::warn!(blob = %wanted.digest, "a blob has changed on the disk; it is deleted and fetched again");
        drop(lease);
        let shelf = self.shelf.clone();
        tokio::task::spawn_blocking(move || shelf.delete(digest)).await.map_err(std::io::Error::other)??;
        Ok(None)
    }

    /// Whether a path leads to the very file: its size first, then its sum.
    async fn fits(&self, path: &Path, wanted: Wanted<'_>, report: &Report) -> std::io::Result<bool> {
        let meta = std::fs::metadata(path)?;
        if !meta.is_file() || meta.len() != wanted.size {
            return Ok(false);
        }
        let telling = report.clone();
        let sum = self.hashes.sum(path, move |_| telling.say(ServiceState::Verifying)).await?;
        Ok(sum == wanted.digest)
    }

    /// Whether it makes sense to look for a file elsewhere.
    async fn check_fetchable(&self, wanted: Wanted<'_>) -> Result<(), DeliveryError> {
        let path = self.shelf.root().join(&wanted.file.name);
        if self.download && !self.bases.sources(wanted.file, wanted.digest).is_empty() {
            return super::format::check_name(&wanted.file.name).map_err(|error| DeliveryError::Format {
                file: wanted.file.name.clone(),
                why: error.to_string(),
            });
        }
        if !path.is_file() {
            return Err(DeliveryError::Missing(path.display().to_string()));
        }
        let found = match self.hashes.sum(&path, |_| {}).await {
            Ok(sum) => format!("{} has the hash {sum}, the catalogue pins {}", path.display(), wanted.digest),
            Err(error) => format!("{}: {error}", path.display()),
        };
        Err(DeliveryError::Wrong { file: wanted.file.name.clone(), why: found })
    }

    /// Sees that there is room for what is missing, deletes unused blobs for it, and takes it.
    fn make_room(&self, lacking: &[(Digest, u64)]) -> Result<Vec<Option<Claim>>, DeliveryError> {
        self.shelf.prepare()?;
        let folder = self.shelf.partial_folder();
        let fetch = lacking
            .iter()
            .map(|(digest, size)| size.saturating_sub(Claim::allocated(&folder, *digest)))
            .sum();
        let needs = room::needed(fetch, self.margin_bytes);
        if fetch > 0 && self.free()? < needs {
            let wanted: Vec<Digest> = lacking.iter().map(|(digest, _)| *digest).collect();
            self.shelf.drop_partials(&wanted)?;
            self.shelf.prune_views()?;
            let missing = needs.saturating_sub(self.free()?);
            for digest in room::evict(&self.shelf.kept()?, missing).unwrap_or_default() {
                if self.shelf.delete(digest)? {
                    tracing::info!(blob = %digest, "deleted: it is unused, and something else needs the room");
                }
            }
            let free = self.free()?;
            if free < needs {
                return Err(DeliveryError::DiskLow { needs: Bytes(needs), free: Bytes(free) });
            }
        }
        let claim = |(digest, size): &(Digest, u64)| {
            Claim::take(&folder, *digest, *size, self.piece_bytes)
                .map_err(|error| self.disk_error(error, needs))
        };
        lacking.iter().map(claim).collect()
    }

    /// What models may still take.
    fn free(&self) -> std::io::Result<u64> {
        let root = self.shelf.root();
        let (_, free) = diagnose::disk_room(root)?;
        let used = self.caps.disk_mib.map_or(Bytes(0), |_| diagnose::size_of(root));
        Ok(self.caps.disk_free(free, used).0)
    }

    /// A full disk is said as one.
    pub fn disk_error(&self, error: std::io::Error, needs: u64) -> DeliveryError {
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                DeliveryError::DiskLow { needs: Bytes(needs), free: Bytes(self.free().unwrap_or(0)) }
            }
            _ => DeliveryError::Disk(error),
        }
    }
}

/// The sum and the size that the plan names.
fn pinned(file: &DesiredFile) -> Option<(Digest, u64)> {
    Some((file.sha256.as_deref()?.parse().ok()?, file.size?.0))
}

fn below(root: &Path, file: &DesiredFile) -> Result<PathBuf, DeliveryError> {
    names::below(root, file).ok_or_else(|| DeliveryError::UnsafePath(file.name.clone()))
}

fn client(config: &NodeConfig, bases: &Bases, signer: Option<Signer>) -> Result<Client, String> {
    let models = &config.models;
    let read = |path: &PathBuf| std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
    let authorities = config.api.ca_file.as_ref().map(read).transpose()?;
    let token = models.hub_token_file.as_ref().map(read).transpose()?;
    let token = token.map(|token| Secret::new(String::from_utf8_lossy(&token).trim().to_owned()));
    let plain = |base: &String| base.replace("{sha256}", "x").replace("{name}", "x");
    let named = bases.mirrors.iter().chain([&bases.hub, &bases.api]).filter(|base| !base.is_empty());
    let origins: Result<Vec<Url>, String> =
        named.map(|base| Url::parse(&plain(base)).map_err(|error| format!("{base}: {error}"))).collect();
    let stall = Duration::from_millis(models.stall_ms.max(1));
    Client::new(&origins?, authorities.as_deref(), signer, token, stall)
}
