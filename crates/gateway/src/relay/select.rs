//! Finding a seat, and waiting a little when there is none.

use std::time::Duration;

use cxmpute_market::catalogue::ModelEntry;
use cxmpute_market::route::{self, Nobody};
use cxmpute_market::wish::Wishes;
use cxmpute_runtime::CancellationToken;
use cxmpute_wire::{Code, ServiceId, UserId};
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

/// Who asks for which service.
#[derive(Debug, Clone, Copy)]
pub struct Seeker<'a> {
    /// Service.
    pub service: &'a ServiceId,
    /// Who asks for what.
    pub seeker: route::Seeker<'a>,
}

impl<'a> Seeker<'a> {
    /// Who asks for a model on whose behalf.
    #[must_use]
    pub fn new(model: &'a ModelEntry, payer: &'a UserId, wishes: &'a Wishes) -> Self {
        Self { service: &model.service, seeker: route::Seeker { payer, wishes, price: &model.price } }
    }

    /// Refuses a request whose own wishes leave nobody, before anything is bound for it (GR19).
    ///
    /// # Errors
    /// The filter that left nobody.
    pub fn check(&self, fleet: &Fleet) -> Result<(), ApiError> {
        let wanted = Wanted { seeker: self.seeker, tried: &[] };
        match fleet.unfulfilled(self.service, &wanted) {
            Some(nobody) => Err(refusal(fleet, self.service, nobody)),
            None => Ok(()),
        }
    }
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
        let wanted = Wanted { seeker: seeker.seeker, tried: &trail.tried };
        let nobody = match fleet.take_seat(seeker.service, &wanted) {
            Ok(seat) => {
                if place.is_some() {
                    metrics::histogram!("cxmpute_queue_seconds").record(began.elapsed().as_secs_f64());
                }
                return Ok(seat);
            }
            Err(nobody) => nobody,
        };
        let hopeless = nobody.is_wish() || !fleet.is_hopeful(seeker.service);
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
        Nobody::MaxPrice => "This model costs more than provider.max_price allows.",
        Nobody::DataCollection | Nobody::Zdr => {
            "No node that serves this model is known to keep nothing of a request."
        }
        nobody if nobody.is_wish() => {
            "No node that serves this model fits the provider object of the request."
        }
        _ => "No node serves this model at the moment.",
    };
    ApiError::no_provider(message).with("filter", nobody.filter())
}

fn busy(message: &'static str) -> ApiError {
    ApiError::new(Code::QueueFull, message).retry_after(1)
}
