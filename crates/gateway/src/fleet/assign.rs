//! Carries the plan of `market::assign` out for one provision: plans, publishes the desired state.

use std::sync::atomic::Ordering;
use std::time::Duration;

use cxmpute_market::assign::{Floor, Planned};
use cxmpute_market::catalogue::{Catalogue, Delivery, ModelEntry, ModelFile};
use cxmpute_store::{DbError, ProvisionRow, ProvisionState};
use cxmpute_wire::ProvisionId;
use cxmpute_wire::control::{Desired, DesiredFile, DesiredService, GpuShare, HubModel, Policy};

use super::lessons::floors_since;
use super::offer::offer_of;
use super::registry::Fleet;
use crate::larder::Larder;
use crate::seals::SealBook;

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
            ProvisionState::Suspended | ProvisionState::Retired => {
                self.board().lock().take(&row.id);
                Vec::new()
            }
            ProvisionState::Enrolled
            | ProvisionState::Online
            | ProvisionState::Offline
            | ProvisionState::Ended => {
                let mut floors = parts.db.floors(floors_since(parts.clock.now())).await?;
                self.place(&row, floors.remove(&row.id).unwrap_or_default())
            }
        };
        let text = serde_json::to_string(&services).unwrap_or_else(|_| "[]".to_owned());
        let generation = match text == row.desired {
            true => Some(row.desired_generation),
            false => parts.db.set_desired(&row.id, &text, parts.clock.now()).await?,
        };
        Ok(generation.map(|generation| Desired { generation, services, policy: Policy::default() }))
    }

    /// The plan for one provision, beside what all others run.
    fn place(&self, row: &ProvisionRow, floors: Vec<Floor>) -> Vec<DesiredService> {
        let mut offer = offer_of(row, floors);
        let node = self.attached(&row.id);
        if let Some(free) = node.as_ref().and_then(|node| node.disk_free()) {
            offer.disk_free = free;
        }
        let may_switch = node.is_some_and(|node| node.may_switch.swap(false, Ordering::AcqRel));
        let parts = self.parts();
        let plan = {
            let mut board = self.board().lock();
            let plan = board.place(&offer, parts.clock.now(), may_switch);
            if row.state != ProvisionState::Online {
                // Nobody is served by it.
                board.take(&row.id);
            }
            plan
        };
        let seals = parts.seals.as_ref();
        let services = plan.services.iter();
        services.filter_map(|planned| desired(planned, &parts.catalogue, &parts.larder, seals)).collect()
    }

    /// Plans the services of a provision that has been away for long anew: its own desired state is emptied, so that
    /// nothing counts on it, and the others are planned again.
    pub(super) async fn replan_without(&self, away: &ProvisionId, since: Duration) {
        let parts = self.parts();
        tracing::info!(provision = %away, seconds = since.as_secs(), "the services of a lost node are planned anew");
        metrics::counter!("cxmpute_replans_total").increment(1);
        if let Err(error) = parts.db.set_desired(away, "[]", parts.clock.now()).await {
            tracing::warn!(%error, "the plan of a lost node was not stored");
        }
        self.board().lock().take(away);
        self.plan_soon();
    }
}

fn desired(
    planned: &Planned,
    catalogue: &Catalogue,
    larder: &Larder,
    seals: Option<&SealBook>,
) -> Option<DesiredService> {
    let entry: &ModelEntry = catalogue.by_service(&planned.service)?;
    let hub_of = |file: &ModelFile| {
        let (hub, path) = (entry.hub.as_ref()?, file.hub.as_ref()?);
        let [revision, file] = [hub.revision.clone(), Some(path.clone())];
        Some(Box::new(HubModel { repository: hub.repository.clone(), revision, file }))
    };
    let file = |file: &ModelFile| DesiredFile {
        role: file.role.clone(),
        name: file.name.clone(),
        sha256: Some(file.sha256.clone()),
        size: Some(file.size),
        urls: larder.urls(file),
        hub: hub_of(file),
    };
    let gpus = planned.claim.gpus.iter().map(|part| GpuShare { index: part.index, memory: part.memory });
    let library = entry.delivery() == Delivery::Library;
    Some(DesiredService {
        service_id: entry.service.clone(),
        kind: entry.kind,
        model: entry.id.clone(),
        engines: entry.engines.iter().map(|engine| engine.name().to_owned()).collect(),
        files: entry.files.iter().map(file).collect(),
        context_length: Some(entry.context_length.0).filter(|context| *context > 0),
        slots: 0,
        memory_claim: planned.claim.memory,
        gpus: gpus.collect(),
        since: Some(planned.since),
        ollama: entry.ollama.clone().filter(|_| library),
        hub: entry.hub.as_ref().filter(|_| library).map(|hub| {
            Box::new(HubModel {
                repository: hub.repository.clone(),
                revision: hub.revision.clone(),
                file: hub.file.clone(),
            })
        }),
        seal: seals.and_then(|seals| seals.of(&entry.service)).map(Box::new),
        container: entry.container.as_deref().cloned().map(Box::new),
    })
}
