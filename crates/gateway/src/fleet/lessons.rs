//! What an end for lack of memory teaches the plan: the service is planned with more on that provision, or not at all (NR37).
//! It counts against nobody.

use std::time::Duration;

use cxmpute_market::assign::{FLOOR_HOLDS, raised};
use cxmpute_store::{Db, DbError};
use cxmpute_wire::control::{DesiredService, Heartbeat};
use cxmpute_wire::{Code, ProvisionId, Timestamp};
use tokio::time::Instant;

/// A node whose services end for lack of memory all the time costs one look in this time.
const EVERY: Duration = Duration::from_secs(1);

/// When a node's heartbeats may teach something again.
#[derive(Debug, Default)]
pub(super) struct Lessons {
    next: Option<Instant>,
}

impl Lessons {
    /// Whether a heartbeat is to be learned from now.
    pub fn due(&mut self, heartbeat: &Heartbeat, now: Instant) -> bool {
        let says = heartbeat.services.iter().any(|service| service.code == Some(Code::OutOfMemory));
        let due = says && self.next.is_none_or(|next| now >= next);
        if due {
            self.next = Some(now + EVERY);
        }
        due
    }
}

/// Floors that were learned before this moment are forgotten.
#[must_use]
pub fn floors_since(now: Timestamp) -> Timestamp {
    Timestamp(now.0.saturating_sub_unsigned(FLOOR_HOLDS.0))
}

/// Notes what the services of a heartbeat ran out of memory with; whether anything new was learned. Only what the plan of
/// that very generation gave them says anything: what a newer one gives has not been tried.
pub(super) async fn learn(
    db: &Db,
    id: &ProvisionId,
    heartbeat: &Heartbeat,
    now: Timestamp,
) -> Result<bool, DbError> {
    let killed = heartbeat.services.iter().filter(|service| service.code == Some(Code::OutOfMemory));
    let killed: Vec<_> = killed.map(|service| &service.service_id).collect();
    let Some(row) = db.find_provision(id.as_str()).await? else { return Ok(false) };
    if row.desired_generation != heartbeat.observed_generation {
        return Ok(false);
    }
    let given: Vec<DesiredService> = serde_json::from_str(&row.desired).unwrap_or_default();
    let mut learned = false;
    for service in given.iter().filter(|service| killed.contains(&&service.service_id)) {
        let memory = raised(service.memory_claim);
        if db.raise_floor(id, &service.service_id, memory, floors_since(now), now).await? {
            tracing::info!(provision = %id, service = %service.service_id, claim_mib = service.memory_claim.0 >> 20,
                floor_mib = memory.0 >> 20, "it ran out of memory and is planned with more there");
            learned = true;
        }
    }
    Ok(learned)
}
