//! Finding a seat, and waiting a little when there is none.

use std::time::Duration;

use cxmpute_market::route::Nobody;
use cxmpute_runtime::CancellationToken;
use cxmpute_wire::{Code, ServiceId};
use tokio::time::Instant;

use super::retry::Trail;
use crate::error::ApiError;
use crate::fleet::{Fleet, Seat, Wanted};

/// Changes that nobody announces (a breaker's time is over, a ping is answered) are seen at this rhythm.
const LOOK: Duration = Duration::from_millis(50);

/// Why no seat was found.
#[derive(Debug)]
pub enum NoSeat {
    /// The client left while waiting.
    Gone,
    /// Nobody was free in time.
    Nobody(ApiError),
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Seeker<'a> {
    /// Service.
    pub service: &'a ServiceId,
    /// Account that pays.
    pub payer: &'a cxmpute_wire::UserId,
    /// Whether its own nodes may serve.
    pub own_nodes: cxmpute_market::route::OwnNodes,
}

/// Finds a node for the next attempt, waiting until `deadline` at most.
///
/// # Errors
/// Nobody was free in time, or the client left.
pub async fn find_seat(
    fleet: &Fleet,
    seeker: Seeker<'_>,
    trail: &mut Trail,
    deadline: Instant,
    gone: &CancellationToken,
) -> Result<Seat, NoSeat> {
    let began = Instant::now();
    let mut place = None;
    loop {
        let changed = fleet.changed(seeker.service);
        let woken = changed.notified();
        tokio::pin!(woken);
        woken.as_mut().enable();
        let wanted = Wanted { payer: seeker.payer, own_nodes: seeker.own_nodes, tried: &trail.tried };
        let nobody = match fleet.take_seat(seeker.service, &wanted) {
            Ok(seat) => {
                if place.is_some() {
                    metrics::histogram!("cxmpute_queue_seconds").record(began.elapsed().as_secs_f64());
                }
                return Ok(seat);
            }
            Err(nobody) => nobody,
        };
        let hopeless = nobody == Nobody::OwnNodes || !fleet.is_hopeful(seeker.service);
        if hopeless || Instant::now() >= deadline {
            return Err(NoSeat::Nobody(refusal(fleet, seeker.service, nobody)));
        }
        if place.is_none() {
            place = fleet.queue(seeker.service);
            if place.is_none() {
                return Err(NoSeat::Nobody(busy("Too many requests wait for this model already.")));
            }
        }
        tokio::select! {
            biased;
            () = gone.cancelled() => return Err(NoSeat::Gone),
            () = woken => {}
            () = tokio::time::sleep_until(deadline.min(Instant::now() + LOOK)) => {}
        }
        if nobody == Nobody::Tried {
            trail.forgive_full();
        }
    }
}

fn refusal(fleet: &Fleet, service: &ServiceId, nobody: Nobody) -> ApiError {
    if nobody == Nobody::Capacity {
        return busy("All nodes that serve this model are busy.");
    }
    if nobody == Nobody::Ready
        && let Some(state) = fleet.loading(service)
    {
        let error = ApiError::new(Code::ModelLoading, "A node is loading this model; try again shortly.");
        return error.with("loading", serde_json::json!({ "state": state })).retry_after(5);
    }
    let message = match nobody {
        Nobody::OwnNodes => {
            "Only nodes of this account's owner serve this model, or none of them where only they may."
        }
        Nobody::Tried => "Every node that serves this model failed for this request.",
        _ => "No node serves this model at the moment.",
    };
    ApiError::no_provider(message).with("filter", nobody.filter())
}

fn busy(message: &'static str) -> ApiError {
    ApiError::new(Code::QueueFull, message).retry_after(1)
}
