//! What the store is told about the fleet. A store that is away never stops the fleet: the next change writes the
//! whole again.

use cxmpute_store::{Db, DbError, ServiceRow};
use cxmpute_wire::control::{Heartbeat, ObservedService, ServiceState};
use cxmpute_wire::{ProvisionId, Timestamp};

/// The stored name of a service's state: the wire's.
#[must_use]
pub(super) fn state_name(state: ServiceState) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "absent".to_owned(),
    }
}

/// What of a heartbeat is worth a row: everything but the load, which changes with every request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Remembered {
    text: String,
}

/// Stores what a node runs, when it differs from what was stored last.
pub(super) async fn record_observed(
    db: &Db,
    id: &ProvisionId,
    heartbeat: &Heartbeat,
    last: &mut Remembered,
    now: Timestamp,
) -> Result<(), DbError> {
    let services: Vec<ServiceRow> = heartbeat
        .services
        .iter()
        .map(|service| ServiceRow {
            service: service.service_id.clone(),
            generation: heartbeat.observed_generation,
            state: state_name(service.state),
            detail: detail(service).map(|detail| detail.chars().take(500).collect()),
        })
        .collect();
    let text = observed_text(heartbeat);
    if last.text == text {
        return Ok(());
    }
    db.record_observed(id, heartbeat.observed_generation, &text, &services, now).await?;
    last.text = text;
    Ok(())
}

/// What people read of a service: how far its files are, else what the node says.
fn detail(service: &ObservedService) -> Option<String> {
    service.progress.as_ref().map(ToString::to_string).or_else(|| service.detail.clone())
}

fn observed_text(heartbeat: &Heartbeat) -> String {
    let mut services = heartbeat.services.clone();
    for service in &mut services {
        service.in_flight = 0;
    }
    serde_json::to_string(&services).unwrap_or_else(|_| "[]".to_owned())
}
