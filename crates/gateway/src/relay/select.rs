//! Finding a seat, and waiting in the line when there is none.

use std::sync::Arc;
use std::time::Duration;

use cxmpute_market::catalogue::ModelEntry;
use cxmpute_market::queue::Class;
use cxmpute_market::route::{self, Nobody};
use cxmpute_market::wish::Wishes;
use cxmpute_runtime::{CancellationToken, random};
use cxmpute_wire::{Code, ServiceId, UserId};
use tokio::time::Instant;

use super::retry::Trail;
use crate::error::ApiError;
use crate::fleet::{Fleet, Seat, Turn, Waiting, Wanted};

/// Changes that nobody announces (a breaker's time is over, a ping is answered) are seen at this rhythm.
const LOOK: Duration = Duration::from_millis(50);

/// Why no seat was found.
#[derive(Debug)]
pub enum NoSeat {
    /// The client left while waiting.
    Gone,
    /// This process stops now.
    Draining,
    /// Nobody was free in time.
    Nobody(ApiError),
}

/// Who asks for which model.
#[derive(Debug, Clone, Copy)]
pub struct Seeker<'a> {
    model: &'a Arc<ModelEntry>,
    payer: &'a UserId,
    wishes: &'a Arc<Wishes>,
    /// Another model can serve when this one has no node.
    has_alternative: bool,
}

/// What ends the waiting.
#[derive(Debug, Clone, Copy)]
pub struct Until<'a> {
    /// The request's time in the line.
    pub deadline: Instant,
    /// The client.
    pub gone: &'a CancellationToken,
    /// The process.
    pub hard: &'a CancellationToken,
}

impl<'a> Seeker<'a> {
    /// Who asks for a model, with which wishes.
    #[must_use]
    pub const fn new(model: &'a Arc<ModelEntry>, payer: &'a UserId, wishes: &'a Arc<Wishes>) -> Self {
        Self { model, payer, wishes, has_alternative: false }
    }

    /// Whether another model can serve when this one has no node: then only load is waited for.
    #[must_use]
    pub const fn with_alternative(self, has_alternative: bool) -> Self {
        Self { has_alternative, ..self }
    }

    fn service(&self) -> &'a ServiceId {
        &self.model.service
    }

    fn seeker(&self) -> route::Seeker<'a> {
        route::Seeker { payer: self.payer, wishes: self.wishes, price: &self.model.price }
    }

    /// What the request is worth when not all can be kept. The ledger does not tell granted money from paid money once
    /// it can be spent, so only what costs nothing comes last (GR36).
    fn class(&self) -> Class {
        if self.model.price.free { Class::Free } else { Class::Paid }
    }

    /// Refuses early and cheaply, before anything is bound: when the process has too much to do, when the request's own
    /// wishes leave nobody (GR19), and when the line is full.
    ///
    /// # Errors
    /// The refusal.
    pub fn check(&self, fleet: &Fleet, admissions: usize) -> Result<(), ApiError> {
        if fleet.overload(admissions, self.class()).is_some() {
            return Err(overloaded());
        }
        let wanted = Wanted { seeker: self.seeker(), tried: &[] };
        if let Some(nobody) = fleet.unfulfilled(self.service(), &wanted) {
            return Err(refusal(fleet, self.service(), nobody));
        }
        if fleet.admits(self.service(), self.payer, self.class()) { Ok(()) } else { Err(line_is_full()) }
    }

    /// Whether waiting can bring a node, for this reason of not having one.
    fn may_wait(&self, fleet: &Fleet, nobody: Nobody) -> bool {
        let only_load = nobody == Nobody::Capacity || !self.has_alternative;
        !nobody.is_wish() && only_load && fleet.is_hopeful(self.service())
    }
}

/// Finds a node for the next attempt, waiting until the deadline at most.
///
/// # Errors
/// Nobody was free in time, the client left, or the process stops.
pub async fn find_seat(
    fleet: &Fleet,
    seeker: Seeker<'_>,
    trail: &mut Trail,
    until: Until<'_>,
) -> Result<Seat, NoSeat> {
    let wanted = Wanted { seeker: seeker.seeker(), tried: &trail.tried };
    let nobody = match fleet.take_seat(seeker.service(), &wanted) {
        Ok(seat) => return Ok(seat),
        Err(nobody) => nobody,
    };
    let refuse = |nobody| Err(NoSeat::Nobody(refusal(fleet, seeker.service(), nobody)));
    // Whoever notices that the time is over, this task or the line, the client is told the same: what stands in the way of
    // this very request. What the line saw last may be old, or that somebody else was first.
    let too_late = |trail: &mut Trail| {
        super::forward::count_late("queue");
        trail.forgive_full();
        let wanted = Wanted { seeker: seeker.seeker(), tried: &trail.tried };
        refuse(fleet.why_not(seeker.service(), &wanted))
    };
    if !seeker.may_wait(fleet, nobody) {
        return refuse(nobody);
    }
    if Instant::now() >= until.deadline {
        return too_late(trail);
    }
    let began = Instant::now();
    let waiting = Waiting {
        payer: seeker.payer.clone(),
        wishes: seeker.wishes.clone(),
        price: seeker.model.price.clone(),
        tried: trail.tried.clone(),
    };
    let Some(mut ticket) = fleet.join(seeker.service(), waiting, seeker.class()) else {
        return Err(NoSeat::Nobody(line_is_full()));
    };
    loop {
        let look = until.deadline.min(Instant::now() + LOOK);
        tokio::select! {
            biased;
            () = until.gone.cancelled() => return Err(NoSeat::Gone),
            () = until.hard.cancelled() => return Err(NoSeat::Draining),
            turn = ticket.turn() => {
                metrics::histogram!("cxmpute_queue_seconds").record(began.elapsed().as_secs_f64());
                return match turn {
                    Turn::Seat(seat) => Ok(seat),
                    Turn::Late => too_late(trail),
                    Turn::Displaced => Err(NoSeat::Nobody(line_is_full())),
                };
            }
            () = tokio::time::sleep_until(look) => {}
        }
        if Instant::now() >= until.deadline {
            return too_late(trail);
        }
        let why = ticket.why();
        if !seeker.may_wait(fleet, why) {
            return refuse(why);
        }
        if why == Nobody::Tried && trail.forgive_full() {
            ticket.retry(&trail.tried);
        } else {
            ticket.look();
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

fn line_is_full() -> ApiError {
    metrics::counter!("cxmpute_queue_refusals_total").increment(1);
    busy("Too many requests wait for this model already.")
}

/// The process itself has too much to do.
pub fn overloaded() -> ApiError {
    busy("This gateway has more to do than it can; try again in a moment.")
}

/// 429 with a time to come back that differs between callers, so that they do not all come back at once.
fn busy(message: &'static str) -> ApiError {
    let [chance] = random::bytes::<1>();
    ApiError::new(Code::QueueFull, message).retry_after(1 + u64::from(chance % 3))
}
