//! A hold as a guard: it is settled or voided exactly once, also when its owner panics or is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU8, Ordering};
use std::time::Duration;

use cxmpute_market::ledger::End;
use cxmpute_market::price::{PriceRow, Units};
use cxmpute_store::{AttemptRecord, LedgerOp, LedgerReply, MoveHold, NewHold, Note, ResolveHold, Settled};
use cxmpute_wire::{MicroCredits, Millis, ProvisionId, RequestId, ServiceId, UserId};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::allowance::Draw;
use super::job::Job;
use super::{AdmitError, Inner};

/// A running stream is written down at the latest after this time …
const CHECKPOINT_EVERY: Duration = Duration::from_secs(2);
/// … or after this many more units (MR26).
const CHECKPOINT_UNITS: u64 = 256;

/// How a request ended and what was counted.
#[derive(Debug, Clone)]
pub struct Settlement {
    /// The row of the abort table.
    pub end: End,
    /// The gateway's count of what was handed to the client.
    pub counted: Units,
    /// The node's claim.
    pub claimed: Option<Units>,
    /// Who served it.
    pub provision_id: Option<ProvisionId>,
    /// That provision's owner.
    pub provider: Option<UserId>,
    /// As given to the client.
    pub finish_reason: Option<String>,
    /// All attempts.
    pub attempts: Vec<AttemptRecord>,
    /// Until the first content.
    pub first_token: Option<Millis>,
    /// In all.
    pub latency: Option<Millis>,
}

/// Why a settlement is not durable yet, or will not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MeterError {
    /// The store is away. The settlement stays in memory and is tried again; the answer must not look complete.
    #[error("the store is away")]
    StoreUnavailable,
    /// Somebody else resolved the hold: this process was thought dead.
    #[error("the hold was resolved by another process")]
    AlreadyResolved,
    /// Too many admissions wait already.
    #[error("too many requests wait for the store")]
    QueueFull,
    /// The ledger refused the settlement; the hold stays open and shows in the ledger check.
    #[error("the ledger refused the settlement")]
    Refused,
}

/// Where the writer's reply to a settlement comes.
type Answer = oneshot::Receiver<Result<LedgerReply, MeterError>>;
/// That reply, unless the writer is gone.
type Told = Result<Result<LedgerReply, MeterError>, oneshot::error::RecvError>;

/// What is noted of a running request, shared with the writer so that only the newest state is written.
pub(super) struct Progress {
    pub(super) note: Mutex<Note>,
    pub(super) queued: AtomicBool,
    /// How far the end of the request is; once it is on its way, nothing needs to be noted any more.
    end: AtomicU8,
    written: Mutex<(u64, Duration)>,
    /// The allowance out of which it was admitted, and what was admitted.
    pub(super) draw: Option<(Draw, Arc<NewHold>)>,
}

impl Progress {
    /// Whether the note says no more than who accepted the request.
    pub(super) fn can_wait(&self) -> bool {
        self.note.lock().checkpoint.is_none()
    }

    /// Whether the store knows nothing of the request yet.
    pub(super) fn is_in_memory(&self) -> bool {
        self.draw.as_ref().is_some_and(|(draw, _)| draw.in_memory())
    }

    /// Whether the end of the request is on its way.
    pub(super) fn has_ended(&self) -> bool {
        self.end.load(Ordering::Acquire) != RUNNING
    }

    fn moves(&self, from: u8, to: u8) -> bool {
        self.end.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The writer gives the end to the store now; false when it was withdrawn before.
    pub(super) fn take_up(&self) -> bool {
        self.moves(QUEUED, WRITING) || self.end.load(Ordering::Acquire) != WITHDRAWN
    }

    /// The store kept nothing of the end: it waits again.
    pub(super) fn put_down(&self) {
        self.moves(WRITING, QUEUED);
    }

    /// Nobody waits for the answer any more; false when the store has it already.
    fn withdraw(&self) -> bool {
        self.moves(QUEUED, WITHDRAWN)
    }
}

/// The request runs.
const RUNNING: u8 = 0;
/// Its end waits for the writer.
const QUEUED: u8 = 1;
/// The writer has given it to the store, or does not know what became of that.
const WRITING: u8 = 2;
/// Nobody waits for its answer any more, and nothing of that was delivered.
const WITHDRAWN: u8 = 3;

/// The longest that a late settlement is waited for while the store has it: longer than the store lets one of its own
/// statements take.
const WITH_THE_STORE: Duration = Duration::from_secs(11);
/// Between looks whether a settlement that is late can be withdrawn.
const LOOK: Duration = Duration::from_millis(20);

/// Bound money of one request.
pub struct Hold {
    inner: Arc<Inner>,
    terms: Terms,
    progress: Arc<Progress>,
    /// False before the admission is durable and after the hold was resolved: then dropping it does nothing.
    armed: bool,
}

/// What a settlement needs to know of the admission.
struct Terms {
    /// What was admitted, with the price that is pinned now.
    hold: Arc<NewHold>,
    /// What is bound, and the number of extensions so far; held locked while an extension is on its way.
    bound: tokio::sync::Mutex<Bound>,
    /// The amount of `bound` for those who do not wait.
    amount: AtomicI64,
}

struct Bound {
    amount: MicroCredits,
    steps: i64,
}

impl Hold {
    pub(super) fn new(inner: Arc<Inner>, hold: Arc<NewHold>, draw: Option<Draw>) -> Self {
        let note = Note {
            request_id: hold.request_id.clone(),
            user_id: hold.user_id.clone(),
            epoch: inner.replica.epoch,
            provision_id: None,
            provider: None,
            attempt: 0,
            accepted_at: None,
            checkpoint: None,
        };
        let started = inner.clock.mono();
        Self {
            progress: Arc::new(Progress {
                note: Mutex::new(note),
                queued: AtomicBool::new(false),
                end: AtomicU8::new(RUNNING),
                written: Mutex::new((0, started)),
                draw: draw.map(|draw| (draw, hold.clone())),
            }),
            terms: Terms {
                bound: tokio::sync::Mutex::new(Bound { amount: hold.amount, steps: 0 }),
                amount: AtomicI64::new(hold.amount.0),
                hold,
            },
            inner,
            armed: false,
        }
    }

    /// The operation that gives the hold back, for the writer to use when nobody waits for the admission any more.
    pub(super) fn resolver(&self) -> ResolveHold {
        self.resolution(Settlement::none(End::ClientGoneBeforeAccept))
    }

    pub(super) fn admitted(mut self) -> Self {
        self.armed = true;
        self.inner.gauges.open.fetch_add(1, Ordering::Relaxed);
        if self.progress.draw.is_some() {
            self.inner.allowances.watch(&self.progress);
        }
        self
    }

    #[cfg(test)]
    pub(super) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// The request.
    #[must_use]
    pub fn request_id(&self) -> &RequestId {
        &self.terms.hold.request_id
    }

    /// How much is bound, extensions included.
    #[must_use]
    pub fn amount(&self) -> MicroCredits {
        MicroCredits(self.terms.amount.load(Ordering::Acquire))
    }

    /// The pinned price.
    #[must_use]
    pub fn price(&self) -> &Arc<PriceRow> {
        &self.terms.hold.price
    }

    /// Notes who accepted the request; not awaited. A later attempt replaces an earlier one.
    pub fn accepted(&self, provision: &ProvisionId, owner: &UserId, attempt: u32) {
        {
            let mut note = self.progress.note.lock();
            note.provision_id = Some(provision.clone());
            note.provider = Some(owner.clone());
            note.attempt = attempt;
            note.accepted_at = Some(self.inner.clock.now());
        }
        // It is written with the request's own hold, if it gets one.
        if !self.progress.is_in_memory() {
            self.queue_note();
        }
    }

    /// Notes what was delivered to the client so far. Cheap: call it as often as the count changes; it is written
    /// every 2 s or 256 units, and only its newest value.
    pub fn checkpoint(&self, units: Units) {
        self.progress.note.lock().checkpoint = Some(units);
        let delivered = units.completion.0.saturating_add(units.embedding.0);
        let delivered = delivered.saturating_add(units.characters).saturating_add(units.items());
        let now = self.inner.clock.mono();
        {
            let mut written = self.progress.written.lock();
            let due = delivered.saturating_sub(written.0) >= CHECKPOINT_UNITS
                || (delivered > written.0 && now.saturating_sub(written.1) >= CHECKPOINT_EVERY);
            if !due {
                return;
            }
            *written = (delivered, now);
        }
        self.queue_note();
    }

    fn queue_note(&self) {
        if !self.progress.queued.swap(true, Ordering::AcqRel) {
            // A writer that is gone cannot be told; recovery voids or settles the hold then.
            let _ = self.inner.jobs.send(Job::Note(self.progress.clone()));
        }
    }

    /// Binds more money, durably.
    ///
    /// # Errors
    /// The refusal; the hold is as before.
    pub async fn extend(&self, amount: MicroCredits) -> Result<(), AdmitError> {
        let mut bound = self.terms.bound.lock().await;
        let total = bound.amount.checked_add(amount).filter(|_| amount.0 >= 0);
        let total = total.ok_or(AdmitError::StoreUnavailable(MeterError::Refused))?;
        let mut asked_back = false;
        loop {
            let (reply, answer) = oneshot::channel();
            let op = LedgerOp::Extend {
                request_id: self.terms.hold.request_id.clone(),
                user_id: self.terms.hold.user_id.clone(),
                key_id: self.terms.hold.key_id.clone(),
                epoch: self.inner.replica.epoch,
                step: bound.steps + 1,
                amount,
                now: self.inner.clock.now(),
            };
            self.graduate();
            self.inner.send_admission(Job::extend(op, reply))?;
            match answer.await {
                Ok(Ok(reply)) => match AdmitError::from_reply(reply, amount) {
                    None => {
                        *bound = Bound { amount: total, steps: bound.steps + 1 };
                        self.terms.amount.store(total.0, Ordering::Release);
                        return Ok(());
                    }
                    Some(refused) if asked_back || !refused.is_lack_of_money() => return Err(refused),
                    Some(refused) => {
                        // Seldom, and large: kept out of every request.
                        if !Box::pin(self.inner.recall(&self.terms.hold.user_id)).await {
                            return Err(refused);
                        }
                        asked_back = true;
                    }
                },
                Ok(Err(error)) => return Err(AdmitError::StoreUnavailable(error)),
                Err(_) => return Err(AdmitError::StoreUnavailable(MeterError::StoreUnavailable)),
            }
        }
    }

    /// Sees to it that the store has a hold for what follows in the queue.
    fn graduate(&self) {
        if self.progress.draw.is_some() {
            let _ = self.inner.jobs.send(Job::Graduate(self.progress.clone()));
        }
    }

    /// Moves the hold to another model while nothing was delivered, before any node of it hears of the request: binds more where that model needs
    /// more, and pins its price, durably. What was bound before stays bound until the settlement.
    ///
    /// # Errors
    /// The refusal; the price is as before then.
    pub async fn move_to(
        &mut self,
        model: &str,
        service: &ServiceId,
        price: &Arc<PriceRow>,
        amount: MicroCredits,
    ) -> Result<(), AdmitError> {
        if price.validate().is_err() {
            return Err(AdmitError::StoreUnavailable(MeterError::Refused));
        }
        self.progress.note.lock().checkpoint = None;
        let more = amount.saturating_sub(self.amount());
        if more.0 > 0 {
            self.extend(more).await?;
        }
        let (reply, answer) = oneshot::channel();
        let op = LedgerOp::Move(Box::new(MoveHold {
            request_id: self.terms.hold.request_id.clone(),
            user_id: self.terms.hold.user_id.clone(),
            epoch: self.inner.replica.epoch,
            model: model.to_owned(),
            service: service.clone(),
            price: price.clone(),
        }));
        self.graduate();
        self.inner.send_admission(Job::extend(op, reply))?;
        match answer.await {
            Ok(Ok(LedgerReply::Done)) => {
                #[cfg(feature = "sabotage")]
                if self.inner.sabotaged(crate::sabotage::Sabotage::KeepFirstPrice) {
                    return Ok(());
                }
                let hold = Arc::make_mut(&mut self.terms.hold);
                model.clone_into(&mut hold.model);
                hold.service = service.clone();
                hold.price = price.clone();
                Ok(())
            }
            Ok(Ok(_)) => Err(AdmitError::StoreUnavailable(MeterError::Refused)),
            Ok(Err(error)) => Err(AdmitError::StoreUnavailable(error)),
            Err(_) => Err(AdmitError::StoreUnavailable(MeterError::StoreUnavailable)),
        }
    }

    /// Charges what the end of the request costs and gives the rest back. Returns only when that is durable (MR24).
    /// From the first poll on, the settlement happens also when the future is dropped (MR28).
    ///
    /// A whole answer that the store keeps waiting for too long is not delivered. It is withdrawn, so that it costs its
    /// user nothing, also when the client asks again.
    ///
    /// # Errors
    /// Not durable within the configured wait; see [`MeterError`].
    pub async fn settle(mut self, settlement: Settlement) -> Result<Settled, MeterError> {
        #[cfg(feature = "sabotage")]
        if let Some(early) = self.sabotage_settlement(&settlement).await {
            return early;
        }
        // An answer that the client gets only now, or not at all.
        let whole =
            !self.terms.hold.streamed && matches!(settlement.end, End::Finished | End::CreditsExhausted);
        let end = self.resolution(settlement);
        self.armed = false;
        let mut answer = self.resolve(end);
        let wait = self.inner.config.settle_wait;
        let told = match tokio::time::timeout(wait, &mut answer).await {
            Err(_) if whole => self.withdrawn(&mut answer).await,
            told => told.ok(),
        };
        match told {
            Some(Ok(Ok(LedgerReply::Resolved(settled)))) => Ok(settled),
            Some(Ok(Ok(LedgerReply::AlreadyResolved(_)))) => Err(MeterError::AlreadyResolved),
            Some(Ok(Ok(_))) => Err(MeterError::Refused),
            Some(Ok(Err(error))) => Err(error),
            Some(Err(_)) | None => Err(MeterError::StoreUnavailable),
        }
    }

    /// Withdraws a settlement that is late. While the store has it, its outcome is waited for.
    async fn withdrawn(&self, answer: &mut Answer) -> Option<Told> {
        let until = Instant::now() + WITH_THE_STORE;
        while !self.progress.withdraw() {
            match tokio::time::timeout(LOOK, &mut *answer).await {
                Ok(told) => return Some(told),
                Err(_) if Instant::now() >= until => break,
                Err(_) => {}
            }
        }
        None
    }

    /// Gives everything back. Returns only when that is durable.
    ///
    /// # Errors
    /// As [`Hold::settle`].
    pub async fn void(self, reason: End, attempts: Vec<AttemptRecord>) -> Result<(), MeterError> {
        self.settle(Settlement { attempts, ..Settlement::none(reason) }).await.map(drop)
    }

    fn resolution(&self, settlement: Settlement) -> ResolveHold {
        ResolveHold {
            hold: self.terms.hold.clone(),
            held: self.amount(),
            end: settlement.end,
            counted: settlement.counted,
            claimed: settlement.claimed,
            provision_id: settlement.provision_id,
            provider: settlement.provider,
            finish_reason: settlement.finish_reason,
            attempts: settlement.attempts,
            first_token: settlement.first_token,
            latency: settlement.latency,
            expired: false,
            now: self.inner.clock.now(),
        }
    }

    /// Queues the one resolution of this hold. The queue is not bounded here: there are never more resolutions than
    /// admitted holds.
    fn resolve(&self, end: ResolveHold) -> Answer {
        let (reply, answer) = oneshot::channel();
        self.progress.end.store(QUEUED, Ordering::Release);
        let _ = self.inner.jobs.send(Job::resolve(end, Some(reply), &self.progress));
        answer
    }

    /// C1: answers before anything is durable and writes a while later. L6: bills the failed attempts too.
    #[cfg(feature = "sabotage")]
    async fn sabotage_settlement(&mut self, settlement: &Settlement) -> Option<Result<Settled, MeterError>> {
        use crate::sabotage::Sabotage;
        let end = self.resolution(settlement.clone());
        if self.inner.sabotaged(Sabotage::DoneBeforeCommit) {
            let settled = end.bill().map(Settled::from).map_err(|_| MeterError::Refused);
            self.armed = false;
            let (jobs, progress) = (self.inner.jobs.clone(), self.progress.clone());
            self.inner.tasks.spawn("late-settlement", async move {
                tokio::time::sleep(Duration::from_millis(200)).await;
                let _ = jobs.send(Job::resolve(end, None, &progress));
            });
            return Some(settled);
        }
        if self.inner.sabotaged(Sabotage::BillEveryAttempt) {
            super::settle::bill_attempts(&self.inner.db, &end).await;
        }
        None
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hold")
            .field("request_id", &self.terms.hold.request_id)
            .field("amount", &self.amount())
            .finish_non_exhaustive()
    }
}

impl Settlement {
    /// An end at which nothing was delivered.
    #[must_use]
    pub fn none(end: End) -> Self {
        Self {
            end,
            counted: Units::default(),
            claimed: None,
            provision_id: None,
            provider: None,
            finish_reason: None,
            attempts: Vec::new(),
            first_token: None,
            latency: None,
        }
    }
}

impl Drop for Hold {
    /// A hold that nobody resolved (a panic, a forgotten path) is settled like after the death of the process: at
    /// the last checkpoint, or given back.
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        tracing::warn!(request_id = %self.terms.hold.request_id, "a hold was dropped without a settlement");
        self.progress.end.store(QUEUED, Ordering::Release);
        let note = self.progress.note.lock().clone();
        let end = self.resolution(Settlement {
            counted: note.checkpoint.unwrap_or_default(),
            provision_id: note.provision_id,
            provider: note.provider,
            ..Settlement::none(End::GatewayDied)
        });
        let _ = self.inner.jobs.send(Job::resolve(end, None, &self.progress));
    }
}
