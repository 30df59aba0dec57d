//! The money side of a request: [`Meter::admit`] gives a [`Hold`], the hold is settled or voided exactly once, and
//! both answers come only when they are durable. The relay knows nothing else of the ledger.

mod admission;
mod allowance;
mod hold;
mod job;
mod lease;
mod settle;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use cxmpute_runtime::{Clock, Tasks};
use cxmpute_store::ledger::Recovery;
use cxmpute_store::{Db, DbError, DbKind, Replica};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use admission::{Admission, AdmitError};
use allowance::Allowances;
pub use hold::{Hold, MeterError, Settlement};

#[cfg(feature = "sabotage")]
use crate::sabotage::Sabotage;
use job::Job;

/// How the meter works.
#[derive(Debug, Clone)]
pub struct MeterConfig {
    /// Name of this process among the replicas of one database; a process that takes over its name takes over its
    /// holds at once, the others wait for the lease to end.
    pub replica: String,
    /// Admissions that may wait for the writer; more are refused, because they would wait too long anyway.
    pub queue: usize,
    /// Operations per commit.
    pub batch: usize,
    /// How long a settlement may wait for the store before the answer ends with an error event. The settlement
    /// itself goes on.
    pub settle_wait: Duration,
    /// Requests of one key within two seconds from which on they are admitted out of an allowance; 0 for never.
    pub busy: u32,
    /// The known-bad variant under test.
    #[cfg(feature = "sabotage")]
    pub sabotage: Option<Sabotage>,
}

impl Default for MeterConfig {
    fn default() -> Self {
        Self {
            replica: "gateway".to_owned(),
            queue: 8192,
            batch: 512,
            settle_wait: Duration::from_secs(5),
            busy: 16,
            #[cfg(feature = "sabotage")]
            sabotage: None,
        }
    }
}

impl MeterConfig {
    /// From when on a key is busy. The known-bad admission of L1 is one that writes.
    fn busy_key(&self) -> u32 {
        #[cfg(feature = "sabotage")]
        if self.sabotage == Some(Sabotage::CheckThenDebit) {
            return 0;
        }
        self.busy
    }

    /// Whether allowances that others need are given back.
    #[cfg_attr(
        not(feature = "sabotage"),
        expect(clippy::unused_self, reason = "only the known-bad one does not")
    )]
    fn gives_back(&self) -> bool {
        #[cfg(feature = "sabotage")]
        if self.sabotage == Some(Sabotage::KeepAllowances) {
            return false;
        }
        true
    }
}

/// Holds and settlements of this process. Cloning shares it.
#[derive(Clone)]
pub struct Meter {
    inner: Arc<Inner>,
    recovery: Arc<Recovery>,
}

/// What holds and the meter share.
struct Inner {
    db: Db,
    clock: Clock,
    config: MeterConfig,
    /// For the hold's rows, without another copy per request.
    replica_name: Arc<str>,
    replica: Replica,
    jobs: mpsc::UnboundedSender<Job>,
    gauges: Arc<Gauges>,
    allowances: Arc<Allowances>,
    #[cfg(feature = "sabotage")]
    tasks: Tasks,
}

/// Figures that the writer and the callers keep together.
#[derive(Default)]
struct Gauges {
    /// Admissions in the queue.
    waiting: AtomicUsize,
    /// Holds that are not resolved durably.
    open: AtomicI64,
    /// Set while settlements wait for a store that is away: nothing new is admitted (MR57).
    away: AtomicBool,
    /// Set when a newer process has taken this one's place.
    fenced: AtomicBool,
    commits: AtomicU64,
    ops: AtomicU64,
    settlements: AtomicU64,
    failures: AtomicU64,
    /// What tests make of a batch that the store kept.
    #[cfg(test)]
    fault: parking_lot::Mutex<Option<tests::Fault>>,
}

/// Figures of the group-commit writer since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MeterStats {
    /// Durable commits.
    pub commits: u64,
    /// Operations in them.
    pub ops: u64,
    /// Requests resolved durably.
    pub settlements: u64,
    /// Batches that failed.
    pub failures: u64,
    /// Admissions that wait now.
    pub queue: usize,
    /// Holds that are open now.
    pub open_holds: i64,
    /// Whether settlements wait for a store that is away.
    pub away: bool,
}

impl Meter {
    /// Takes this process's place among the replicas, resolves what dead processes left, and starts the writer. The
    /// writer outlives the soft stop until every open hold is resolved.
    ///
    /// # Errors
    /// [`DbError::InUse`] when another process serves the same SQLite database; the store failed.
    pub async fn start(db: Db, clock: Clock, tasks: &Tasks, config: MeterConfig) -> Result<Self, DbError> {
        let asked = Instant::now();
        let replica = db.claim_replica(&config.replica).await?;
        let recovery = db.recover(&replica, clock.now()).await?;
        if !recovery.settled.is_empty() || !recovery.voided.is_empty() {
            let (settled, voided) = (recovery.settled.len(), recovery.voided.len());
            tracing::info!(settled, voided, "resolved the requests that a former process left open");
        }
        let gauges = Arc::new(Gauges::default());
        let (jobs, queue) = mpsc::unbounded_channel();
        let allowances = Allowances::new(&clock, config.busy_key(), &replica, jobs.downgrade());
        let parts = (gauges.clone(), allowances.clone());
        let writer = settle::Writer::new(db.clone(), parts, config.batch, queue, tasks);
        tasks.spawn_critical("meter-writer", writer.run());
        lease::start(&db, &clock, &replica, (&gauges, &allowances), asked, tasks);
        if config.gives_back() {
            lease::keep_allowances(&db, &replica, &allowances, tasks);
        }
        let inner = Inner {
            replica_name: replica.id.as_str().into(),
            db,
            clock,
            config,
            replica,
            jobs,
            gauges,
            allowances,
            #[cfg(feature = "sabotage")]
            tasks: tasks.clone(),
        };
        Ok(Self { inner: Arc::new(inner), recovery: Arc::new(recovery) })
    }

    /// What was resolved at the start.
    #[must_use]
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// Whether new paid work is admitted now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let gauges = &self.inner.gauges;
        !gauges.away.load(Ordering::Relaxed) && !gauges.fenced.load(Ordering::Relaxed)
    }

    /// Ends the lease of this process after the writer has ended, so that other replicas do not share rates with it until it
    /// runs out. One that left holds open keeps it to its end, as one that died does.
    pub async fn release(&self) {
        let inner = &self.inner;
        let gauges = &inner.gauges;
        let left = gauges.fenced.load(Ordering::Relaxed) || gauges.open.load(Ordering::Relaxed) != 0;
        if left || inner.db.kind() == DbKind::Sqlite {
            return;
        }
        if let Err(error) = inner.db.release_replica(&inner.replica).await {
            tracing::warn!(%error, "the lease was not given back; it ends by itself");
        }
    }

    /// Figures of the writer.
    #[must_use]
    pub fn stats(&self) -> MeterStats {
        let gauges = &self.inner.gauges;
        MeterStats {
            commits: gauges.commits.load(Ordering::Relaxed),
            ops: gauges.ops.load(Ordering::Relaxed),
            settlements: gauges.settlements.load(Ordering::Relaxed),
            failures: gauges.failures.load(Ordering::Relaxed),
            queue: gauges.waiting.load(Ordering::Relaxed),
            open_holds: gauges.open.load(Ordering::Relaxed),
            away: gauges.away.load(Ordering::Relaxed),
        }
    }
}

impl Inner {
    #[cfg(feature = "sabotage")]
    fn sabotaged(&self, variant: Sabotage) -> bool {
        self.config.sabotage == Some(variant)
    }
}

#[cfg(test)]
mod tests;
