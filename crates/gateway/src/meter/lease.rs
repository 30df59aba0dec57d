//! The lease of this process among several replicas, and the sweep of those whose lease ended. On SQLite the
//! operating system's file lock is the lease, and there is nothing to do.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cxmpute_runtime::{Clock, Tasks};
use cxmpute_store::{Db, DbKind, Replica};

use super::Gauges;

/// A third of the lease: two renewals may fail before another replica takes over.
const RENEW_EVERY: Duration = Duration::from_secs(5);

pub(super) fn start(db: &Db, clock: &Clock, replica: &Replica, gauges: &Arc<Gauges>, tasks: &Tasks) {
    if db.kind() == DbKind::Sqlite {
        return;
    }
    let (db, clock, replica, gauges) = (db.clone(), clock.clone(), replica.clone(), gauges.clone());
    let stop = tasks.soft();
    tasks.spawn_critical("meter-lease", async move {
        while tokio::time::timeout(RENEW_EVERY, stop.cancelled()).await.is_err() {
            match db.renew_replica(&replica).await {
                Ok(true) => {}
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
