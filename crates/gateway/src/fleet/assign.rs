//! Carries the plan of `market::assign` out: reads what a provision is made of, plans, publishes the desired state.

use std::time::Duration;

use cxmpute_market::assign::{Need, Offer, plan};
use cxmpute_market::catalogue::{Catalogue, Engine, ModelEntry};
use cxmpute_store::{DbError, ProvisionRow, ProvisionState};
use cxmpute_wire::control::{Desired, DesiredFile, DesiredService, Diagnostics, Policy};
use cxmpute_wire::{Bytes, ProvisionId, ServiceId};

use super::registry::Fleet;

impl Fleet {
    /// Plans a provision's services anew and publishes the result; planning twice changes nothing. `None` when the
    /// provision is unknown.
    ///
    /// # Errors
    /// The store failed.
    pub async fn assign(&self, provision: &ProvisionId) -> Result<Option<Desired>, DbError> {
        let parts = self.parts();
        let Some(row) = parts.db.find_provision(provision.as_str()).await? else { return Ok(None) };
        let services = match row.state {
            ProvisionState::Suspended | ProvisionState::Retired => Vec::new(),
            ProvisionState::Enrolled
            | ProvisionState::Online
            | ProvisionState::Offline
            | ProvisionState::Ended => plan_row(&row, &parts.catalogue),
        };
        let text = serde_json::to_string(&services).unwrap_or_else(|_| "[]".to_owned());
        let generation = parts.db.set_desired(&row.id, &text, parts.clock.now()).await?;
        Ok(generation.map(|generation| Desired { generation, services, policy: Policy::default() }))
    }

    /// Plans the services of a provision that has been away for long anew: its own desired state is emptied, so that
    /// nothing counts on it, and everybody else is planned again.
    pub(super) async fn replan_without(&self, away: &ProvisionId, since: Duration) {
        let parts = self.parts();
        tracing::info!(provision = %away, seconds = since.as_secs(), "the services of a lost node are planned anew");
        metrics::counter!("cxmpute_replans_total").increment(1);
        if let Err(error) = parts.db.set_desired(away, "[]", parts.clock.now()).await {
            tracing::warn!(%error, "the plan of a lost node was not stored");
        }
        for node in self.nodes() {
            node.replan.notify_one();
        }
    }
}

/// The plan for a stored provision.
#[must_use]
pub(super) fn plan_row(row: &ProvisionRow, catalogue: &Catalogue) -> Vec<DesiredService> {
    let diagnostics: Diagnostics = serde_json::from_str(&row.diagnostics).unwrap_or_default();
    let running: Vec<DesiredService> = serde_json::from_str(&row.desired).unwrap_or_default();
    let running: Vec<ServiceId> = running.into_iter().map(|service| service.service_id).collect();
    let entries = catalogue.entries();
    let needs: Vec<Need> = entries.iter().map(|entry| need(entry)).collect();
    let planned = plan(&offer(&diagnostics), &needs, &running);
    planned
        .iter()
        .filter_map(|service| entries.iter().find(|entry| entry.service == *service))
        .map(|entry| desired(entry))
        .collect()
}

fn offer(diagnostics: &Diagnostics) -> Offer {
    // The total does not move with what happens to run at the moment; a plan must not flap.
    let accelerators: u64 = diagnostics.gpus.iter().map(|gpu| gpu.memory_total.get()).sum();
    let memory = diagnostics.memory.total.get().saturating_add(accelerators);
    Offer { memory: Bytes(memory), disk_free: diagnostics.disk.free, refused: Vec::new() }
}

fn need(entry: &ModelEntry) -> Need {
    Need {
        service: entry.service.clone(),
        memory: entry.memory,
        disk: entry.disk,
        wanted: entry.target > 0 && entry.engines.contains(&Engine::Builtin),
    }
}

fn desired(entry: &ModelEntry) -> DesiredService {
    let file = |file: &cxmpute_market::catalogue::ModelFile| DesiredFile {
        role: file.role.clone(),
        name: file.name.clone(),
        sha256: Some(file.sha256.clone()),
        size: Some(file.size),
    };
    DesiredService {
        service_id: entry.service.clone(),
        kind: entry.kind,
        model: entry.id.clone(),
        engines: entry.engines.iter().map(|engine| engine.name().to_owned()).collect(),
        files: entry.files.iter().map(file).collect(),
        context_length: Some(entry.context_length.0).filter(|context| *context > 0),
        slots: 0,
        memory_claim: entry.memory,
    }
}
