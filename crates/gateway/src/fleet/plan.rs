//! The plan of the whole fleet: once a minute, and soon after a node is lost. It reads what is online and what was
//! asked for, plans on a thread of its own, and wakes those nodes of this replica whose services would change.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cxmpute_market::assign::{Board, Demand, Floor, Need, Offer, plan};
use cxmpute_store::{DbError, ProvisionRow, ProvisionState};
use cxmpute_wire::{Bytes, Millis, ProvisionId, ServiceId, Timestamp};

use super::lessons::floors_since;
use super::offer::offer_of;
use super::registry::Fleet;

/// Rhythm of the plan.
const EVERY: Duration = Duration::from_secs(60);
/// What a replica counted is believed for so long after it was written.
pub const DEMAND_HOLDS: Millis = Millis(150_000);

/// Who would run something else.
struct Moved {
    provision: ProvisionId,
    /// A service that runs would end.
    ends: bool,
}

impl Fleet {
    /// Plans until the soft stop. While the store is away the last plan holds.
    pub(super) async fn keep_planned(self) {
        let soft = self.parts().tasks.soft();
        let mut told = false;
        loop {
            if let Err(error) = self.plan_fleet(&mut told).await {
                tracing::debug!(%error, "the fleet was not planned");
            }
            tokio::select! {
                () = soft.cancelled() => return,
                () = self.planning_wanted() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    async fn plan_fleet(&self, told: &mut bool) -> Result<(), DbError> {
        let parts = self.parts();
        let (db, now) = (&parts.db, parts.clock.now());
        let own = self.asked();
        // Where nobody asks, nothing is written.
        if *told || !own.is_empty() {
            db.set_demand(&parts.replica, &own, now).await?;
            *told = !own.is_empty();
        }
        let demand = db.demand(Timestamp(now.0.saturating_sub_unsigned(DEMAND_HOLDS.0))).await?;
        let rows = db.list_provisions(None).await?;
        let mut floors = db.floors(floors_since(now)).await?;
        let free: HashMap<ProvisionId, Bytes> = self
            .nodes()
            .into_iter()
            .filter_map(|node| Some((node.session.provision_id.clone(), node.disk_free()?)))
            .collect();
        let (needs, downloads) = (self.needs(), parts.downloads);
        let planned = tokio::task::spawn_blocking(move || {
            let offers = online(&rows, &free, &mut floors);
            plan_all(&needs, &offers, &demand, downloads, now)
        });
        let Ok((board, moved)) = planned.await else { return Ok(()) };
        *self.board().lock() = board;
        for Moved { provision, ends } in moved {
            let Some(node) = self.attached(&provision) else { continue };
            node.may_switch.fetch_or(ends, Ordering::AcqRel);
            node.replan.notify_one();
        }
        Ok(())
    }
}

fn online(
    rows: &[ProvisionRow],
    free: &HashMap<ProvisionId, Bytes>,
    floors: &mut HashMap<ProvisionId, Vec<Floor>>,
) -> Vec<Offer> {
    let online = rows.iter().filter(|row| row.state == ProvisionState::Online);
    let offer = |row: &ProvisionRow| {
        let offer = offer_of(row, floors.remove(&row.id).unwrap_or_default());
        let disk_free = free.get(&row.id).copied().unwrap_or(offer.disk_free);
        Offer { disk_free, ..offer }
    };
    online.map(offer).collect()
}

fn plan_all(
    needs: &[Need],
    offers: &[Offer],
    demand: &HashMap<ServiceId, Demand>,
    downloads: bool,
    now: Timestamp,
) -> (Board, Vec<Moved>) {
    let mut board = Board::new(needs, downloads);
    board.ask(demand);
    for offer in offers {
        board.put(offer);
    }
    let plans = plan(needs, offers, demand, downloads, now);
    let moved = offers.iter().zip(plans).filter(|(offer, plan)| !plan.is_of(&offer.running));
    let moved = moved.map(|(offer, plan)| {
        let stays = |service: &ServiceId| plan.services.iter().any(|planned| planned.service == *service);
        Moved {
            provision: offer.provision.clone(),
            ends: offer.running.iter().any(|old| !stays(&old.service)),
        }
    });
    let moved = moved.collect();
    (board, moved)
}
