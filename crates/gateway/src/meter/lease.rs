//! The lease of this process among several replicas, and the sweep of those whose lease ended. On SQLite the
//! operating system's file lock is the lease, and there is nothing to do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cxmpute_runtime::{Clock, Tasks};
use cxmpute_store::{Db, DbError, DbKind, LEASE_MS, Replica};
use tokio::time::Instant;

use super::Gauges;
use super::allowance::Allowances;

/// As the store has it.
const LEASE: Duration = Duration::from_millis(LEASE_MS.unsigned_abs());

/// A third of the lease: two renewals may fail before another replica takes over.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// Allowances are looked after this often. What another process wants back is seen within two of these (DESIGN D4).
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Gives back what is recalled, unused or old.
pub(super) fn keep_allowances(db: &Db, replica: &Replica, allowances: &Arc<Allowances>, tasks: &Tasks) {
    let (db, replica, allowances) = (db.clone(), replica.clone(), allowances.clone());
    let stop = tasks.soft();
    tasks.spawn("meter-allowances", async move {
        while tokio::time::timeout(LOOK_EVERY, stop.cancelled()).await.is_err() {
            allowances.tidy();
            if allowances.is_empty() {
                continue;
            }
            match db.recalled_allowances(&replica).await {
                Ok(ids) if ids.is_empty() => {}
                Ok(ids) => allowances.close_ids(&ids),
                Err(error) => tracing::warn!(%error, "it is not known which allowances are wanted back"),
            }
        }
    });
}

/// `asked` is a moment before the lease began.
pub(super) fn start(
    db: &Db,
    clock: &Clock,
    replica: &Replica,
    (gauges, allowances): (&Arc<Gauges>, &Arc<Allowances>),
    asked: Instant,
    tasks: &Tasks,
) {
    if db.kind() == DbKind::Sqlite {
        return;
    }
    allowances.lease_until(asked + LEASE);
    let allowances = allowances.clone();
    let (db, clock, replica, gauges) = (db.clone(), clock.clone(), replica.clone(), gauges.clone());
    let stop = tasks.soft();
    tasks.spawn_critical("meter-lease", async move {
        while tokio::time::timeout(RENEW_EVERY, stop.cancelled()).await.is_err() {
            let asked = Instant::now();
            match db.renew_replica(&replica).await {
                Ok(true) => {
                    if let Err(error) = renewed(&db, &replica, &allowances, asked).await {
                        tracing::warn!(%error, "it is not known which allowances are left; none is drawn from");
                    }
                }
                Ok(false) => {
                    gauges.fenced.store(true, Ordering::Relaxed);
                    tracing::error!(replica = %replica.id, "a newer process has taken this one's place; stopping");
                    return;
                }
                Err(error) => tracing::warn!(%error, "the lease was not renewed"),
            }
            match db.recover(&replica, clock.now()).await {
                Ok(swept) if swept.settled.is_empty() && swept.voided.is_empty() => {}
                Ok(swept) => {
                    let (settled, voided) = (swept.settled.len(), swept.voided.len());
                    tracing::info!(settled, voided, "resolved the requests that a dead replica left open");
                }
                Err(error) => tracing::warn!(%error, "the holds of dead replicas were not swept"),
            }
        }
    });
}

/// After a renewal that was asked for at that moment. When the lease had ended before, others may have given back
/// allowances of this process: requests out of those would end without money behind them.
///
/// # Errors
/// The store failed; the lease counts as ended then.
pub(super) async fn renewed(
    db: &Db,
    replica: &Replica,
    allowances: &Allowances,
    asked: Instant,
) -> Result<(), DbError> {
    if allowances.lease_is_over(Instant::now()) {
        allowances.close_others(&db.held_allowances(replica).await?);
    }
    allowances.lease_until(asked + LEASE);
    Ok(())
}
