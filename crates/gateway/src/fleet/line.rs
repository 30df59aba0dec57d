//! The line of requests that wait for a node of one service. A seat that becomes free is handed to the one whose turn
//! it is (`market::queue`), so nobody races for it, nobody jumps the line, and no wake-up is lost.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cxmpute_market::price::PriceRow;
use cxmpute_market::queue::{Class, Offer, Place};
use cxmpute_market::route::{Nobody, Seeker};
use cxmpute_market::wish::Wishes;
use cxmpute_wire::{Epoch, ProvisionId, UserId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::pool::{Pool, Wanted};
use super::seat::Seat;

/// So many of those who wait are asked whether they can use a seat before the next event is waited for.
const ASKED: usize = 256;
/// What nobody announces (a breaker's time is over, a ping is answered) is looked for at most this often.
const LOOK: Duration = Duration::from_millis(25);

/// What a request waits for.
#[derive(Debug)]
pub struct Waiting {
    /// Who pays.
    pub payer: UserId,
    /// What is wished for.
    pub wishes: Arc<Wishes>,
    /// The model's price.
    pub price: Arc<PriceRow>,
    /// Nodes that failed for this request.
    pub tried: Vec<(ProvisionId, Option<Epoch>)>,
}

/// Who waits, as the line knows them.
#[derive(Debug)]
pub(super) struct Waiter {
    payer: UserId,
    wishes: Arc<Wishes>,
    price: Arc<PriceRow>,
    tried: Mutex<Vec<(ProvisionId, Option<Epoch>)>>,
    turn: Mutex<Option<oneshot::Sender<Turn>>>,
    why: Mutex<Nobody>,
}

/// What the end of waiting brings.
#[derive(Debug)]
pub enum Turn {
    /// A booked place on a node.
    Seat(Seat),
    /// It took too long.
    Late,
    /// The line is full, and others were worth more.
    Displaced,
}

/// A place in the line, given up when dropped.
#[derive(Debug)]
pub struct Ticket {
    pool: Arc<Pool>,
    waiter: Arc<Waiter>,
    place: Place,
    turn: oneshot::Receiver<Turn>,
}

impl Ticket {
    /// Waits for the end of waiting.
    pub async fn turn(&mut self) -> Turn {
        (&mut self.turn).await.unwrap_or(Turn::Displaced)
    }

    /// Why there was no seat the last time that somebody looked.
    #[must_use]
    pub fn why(&self) -> Nobody {
        *self.waiter.why.lock()
    }

    /// Says which nodes are out of the question now.
    pub fn retry(&self, tried: &[(ProvisionId, Option<Epoch>)]) {
        *self.waiter.tried.lock() = tried.to_vec();
        self.pool.pump();
    }

    /// Looks for what nobody announces.
    pub fn look(&self) {
        self.pool.look();
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // A seat that was handed over meanwhile is in the channel and goes back when that is dropped.
        let left = self.pool.line.lock().leave(self.place);
        drop(left);
    }
}

impl Waiter {
    fn end(&self, turn: Turn) {
        if let Some(sender) = self.turn.lock().take() {
            // Nobody may be listening any more; a seat then goes back and on to the next.
            let _ = sender.send(turn);
        }
    }
}

impl Pool {
    /// Takes a seat at once, unless others wait already.
    pub(super) fn take_first(self: &Arc<Self>, wanted: &Wanted<'_>) -> Result<Seat, Nobody> {
        if self.line.lock().is_empty() { self.take(wanted) } else { Err(Nobody::Capacity) }
    }

    /// Whether a request would get into the line.
    pub(super) fn admits(&self, payer: &UserId, class: Class) -> bool {
        self.line.lock().admits(payer, class, self.clock.mono())
    }

    /// Joins the line; `None` when it is full.
    pub(super) fn join(self: &Arc<Self>, waiting: Waiting, class: Class) -> Option<Ticket> {
        let (sender, turn) = oneshot::channel();
        let waiter = Arc::new(Waiter {
            payer: waiting.payer,
            wishes: waiting.wishes,
            price: waiting.price,
            tried: Mutex::new(waiting.tried),
            turn: Mutex::new(Some(sender)),
            why: Mutex::new(Nobody::Capacity),
        });
        let joined = self.line.lock().join(&waiter.payer, class, waiter.clone(), self.clock.mono()).ok()?;
        for late in joined.late {
            late.end(Turn::Late);
        }
        if let Some(displaced) = joined.displaced {
            displaced.end(Turn::Displaced);
        }
        let ticket = Ticket { pool: self.clone(), waiter, place: joined.place, turn };
        // What became free between the last look and now.
        self.pump();
        Some(ticket)
    }

    /// Hands free seats to those whose turn it is. One caller at a time does it; the others leave a mark, which makes
    /// that one look again, so no event is lost and a seat that comes back in the middle of it is no recursion.
    pub(super) fn pump(self: &Arc<Self>) {
        if self.pumps.fetch_add(1, Ordering::AcqRel) > 0 {
            return;
        }
        let mut seen = 1;
        loop {
            self.serve();
            match self.pumps.compare_exchange(seen, 0, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(more) => seen = more,
            }
        }
    }

    /// As [`Pool::pump`], but not more often than makes sense without an event.
    fn look(self: &Arc<Self>) {
        let now = self.clock.mono();
        {
            let mut looked = self.looked.lock();
            if now.saturating_sub(*looked) < LOOK {
                return;
            }
            *looked = now;
        }
        self.pump();
    }

    fn serve(self: &Arc<Self>) {
        loop {
            let mut line = self.line.lock();
            if line.is_empty() {
                return;
            }
            let old = line.expire(self.clock.mono());
            let (mut seat, mut asked) = (None, 0);
            let taker = line.offer(|waiter| {
                asked += 1;
                let tried = waiter.tried.lock();
                let seeker = Seeker { payer: &waiter.payer, wishes: &waiter.wishes, price: &waiter.price };
                match self.take(&Wanted { seeker, tried: &tried }) {
                    Ok(taken) => {
                        seat = Some(taken);
                        Offer::Taken
                    }
                    Err(nobody) => {
                        *waiter.why.lock() = nobody;
                        if asked >= ASKED || !self.has_room() { Offer::Stop } else { Offer::Pass }
                    }
                }
            });
            drop(line);
            for waiter in old {
                waiter.end(Turn::Late);
            }
            match (taker, seat) {
                (Some(waiter), Some(seat)) => waiter.end(Turn::Seat(seat)),
                _ => return,
            }
        }
    }
}
