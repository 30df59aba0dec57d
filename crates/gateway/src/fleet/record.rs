//! What the store is told about the fleet. A store that is away never stops the fleet: the next change writes the
//! whole again.

use std::time::Duration;

use cxmpute_store::{Db, DbError, ServiceRow};
use cxmpute_wire::control::{Heartbeat, ObservedService, ServiceState};
use cxmpute_wire::{ProvisionId, Timestamp};
use tokio::time::Instant;

/// A node that says something else all the time costs one write in this time.
const EVERY: Duration = Duration::from_secs(1);
/// Services of a node that are stored, and characters of what it says about one; no honest node has more.
const SERVICES: usize = 256;
const DETAIL: usize = 500;

/// The stored name of a service's state: the wire's.
#[must_use]
pub(super) fn state_name(state: ServiceState) -> String {
    match serde_json::to_value(state) {
        Ok(serde_json::Value::String(name)) => name,
        _ => "absent".to_owned(),
    }
}

/// What of a heartbeat is worth a row: everything but the load, which changes with every request. And when the next row may
/// be written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Remembered {
    text: String,
    written: Option<Instant>,
    owed: bool,
}

impl Remembered {
    /// There is a heartbeat that was not compared yet.
    pub fn owe(&mut self) {
        self.owed = true;
    }

    /// When it should be, if there is one.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        self.owed.then(|| self.written.map_or(now, |written| written + EVERY))
    }

    /// Takes what is to be written; true when it differs from what was written last.
    fn take(&mut self, text: &str, now: Instant) -> bool {
        self.owed = false;
        let differs = self.text != text;
        if differs {
            self.written = Some(now);
        }
        differs
    }
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
        .take(SERVICES)
        .map(|service| ServiceRow {
            service: service.service_id.clone(),
            generation: heartbeat.observed_generation,
            state: state_name(service.state),
            detail: detail(service).map(|detail| detail.chars().take(DETAIL).collect()),
        })
        .collect();
    let text = observed_text(heartbeat);
    if !last.take(&text, Instant::now()) {
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
    services.truncate(SERVICES);
    for service in &mut services {
        service.in_flight = 0;
        if let Some(detail) = &mut service.detail
            && let Some((end, _)) = detail.char_indices().nth(DETAIL)
        {
            detail.truncate(end);
        }
    }
    serde_json::to_string(&services).unwrap_or_else(|_| "[]".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_says_something_else_all_the_time_is_written_once_in_a_second() {
        let start = Instant::now();
        let (mut remembered, mut writes) = (Remembered::default(), 0);
        for beat in 0..10_000_u64 {
            let now = start + Duration::from_millis(beat);
            remembered.owe();
            if remembered.due(now).is_some_and(|due| due <= now) {
                writes += u64::from(remembered.take(&format!("beat {beat}"), now));
            }
        }
        assert_eq!(writes, 10);
        let end = start + Duration::from_secs(11);
        assert!(remembered.due(end).is_some_and(|due| due <= end), "the last word is written, too");
        assert!(remembered.take("the last", end));
        assert_eq!(remembered.due(end), None);
        remembered.text = "the last".to_owned();
        remembered.owe();
        assert!(!remembered.take("the last", end), "what is the same is not written again");
    }
}
