//! Binding money for a request before anything is sent anywhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cxmpute_market::price::PriceRow;
use cxmpute_store::{DbKind, LedgerOp, LedgerReply, NewHold, SpendCap};
use cxmpute_wire::{KeyId, MicroCredits, RequestId, ServiceId, Timestamp, UserId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::job::Job;
use super::{Hold, Inner, Meter, MeterError};

/// A request that wants to run.
#[derive(Debug, Clone)]
pub struct Admission {
    /// Made at the edge (MR35).
    pub request_id: RequestId,
    /// Who pays.
    pub user_id: UserId,
    /// With which key; its budget is checked in the same transaction.
    pub key_id: KeyId,
    /// Route, such as `chat/completions`.
    pub route: String,
    /// Catalogue id of the model.
    pub model: String,
    /// Service that is asked for.
    pub service: ServiceId,
    /// Pinned for this request (MR5).
    pub price: Arc<PriceRow>,
    /// How much to bind.
    pub amount: MicroCredits,
    /// Whether the client reads a stream.
    pub streamed: bool,
    /// `X-Title`.
    pub title: Option<String>,
    /// `Referer`.
    pub referer: Option<String>,
    /// When the request came in.
    pub created_at: Timestamp,
}

/// Why a request, or an extension, was not admitted. Nothing is bound then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// The account cannot pay.
    #[error("{required} micro-credits are needed, {available} are available")]
    Insufficient {
        /// Needed.
        required: MicroCredits,
        /// There.
        available: MicroCredits,
    },
    /// A spend limit of the key or the account is in the way.
    #[error("{required} micro-credits are needed, {available} are left of the limit {}", cap.as_str())]
    Budget {
        /// Needed.
        required: MicroCredits,
        /// Left of the limit.
        available: MicroCredits,
        /// Which one.
        cap: SpendCap,
    },
    /// The account is suspended.
    #[error("the account is suspended")]
    Suspended,
    /// The key was revoked.
    #[error("the key is revoked")]
    KeyRevoked,
    /// The store is away, or its queue is full: 503 with `Retry-After`.
    #[error("the store did not take the admission")]
    StoreUnavailable(#[source] MeterError),
}

impl AdmitError {
    /// Whether money that is bound elsewhere would help.
    pub(super) fn is_lack_of_money(&self) -> bool {
        matches!(self, Self::Insufficient { .. } | Self::Budget { .. })
    }

    /// The refusal behind a writer's reply; `None` when it was no refusal.
    pub(super) fn from_reply(reply: LedgerReply, required: MicroCredits) -> Option<Self> {
        Some(match reply {
            LedgerReply::Done => return None,
            LedgerReply::Insufficient { available } => Self::Insufficient { required, available },
            LedgerReply::Budget { remaining, cap } => Self::Budget { required, available: remaining, cap },
            LedgerReply::Suspended => Self::Suspended,
            LedgerReply::KeyRevoked => Self::KeyRevoked,
            LedgerReply::Resolved(_)
            | LedgerReply::AlreadyResolved(_)
            | LedgerReply::Taken { .. }
            | LedgerReply::HeldDiffers { .. }
            | LedgerReply::NotHeld => Self::StoreUnavailable(MeterError::Refused),
        })
    }
}

impl Meter {
    /// Binds the money of a request: out of an allowance that was taken beforehand, else durably. Account, key and budget
    /// are checked by the statements that take the money; no cache decides (MR12). Nobody is refused for lack of money
    /// that lies in an allowance.
    ///
    /// When the caller's future is dropped while it waits, the hold is given back by the writer.
    ///
    /// # Errors
    /// The refusal; nothing is bound then.
    pub async fn admit(&self, admission: Admission) -> Result<Hold, AdmitError> {
        let inner = &self.inner;
        if !self.is_open() {
            return Err(AdmitError::StoreUnavailable(MeterError::StoreUnavailable));
        }
        if admission.amount.0 < 0 || admission.price.validate().is_err() {
            return Err(AdmitError::StoreUnavailable(MeterError::Refused));
        }
        let required = admission.amount;
        let drawn = inner.allowances.draw(&admission.user_id, &admission.key_id, required);
        let admitted = self.reservation(admission);
        if let Some(draw) = drawn {
            return Ok(Hold::new(inner.clone(), admitted, Some(draw)).admitted());
        }
        let mut asked_back = false;
        loop {
            let hold = Hold::new(inner.clone(), admitted.clone(), None);
            let op = self.operation(admitted.clone()).await?;
            let (reply, answer) = oneshot::channel();
            inner.send_admission(Job::admit(op, reply, hold.resolver()))?;
            match answer.await {
                Ok(Ok(reply)) => match AdmitError::from_reply(reply, required) {
                    None => return Ok(hold.admitted()),
                    Some(refused) if asked_back || !refused.is_lack_of_money() => return Err(refused),
                    Some(refused) => {
                        // Seldom, and large: kept out of every request.
                        if !Box::pin(inner.recall(&admitted.user_id)).await {
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

    fn reservation(&self, admission: Admission) -> Arc<NewHold> {
        Arc::new(NewHold {
            request_id: admission.request_id,
            user_id: admission.user_id,
            key_id: admission.key_id,
            amount: admission.amount,
            price: admission.price,
            replica: self.inner.replica_name.clone(),
            epoch: self.inner.replica.epoch,
            route: admission.route,
            model: admission.model,
            service: admission.service,
            streamed: admission.streamed,
            title: admission.title,
            referer: admission.referer,
            created_at: admission.created_at,
        })
    }

    #[cfg_attr(
        not(feature = "sabotage"),
        expect(clippy::unused_async, reason = "the sabotaged variant awaits")
    )]
    async fn operation(&self, hold: Arc<NewHold>) -> Result<LedgerOp, AdmitError> {
        #[cfg(feature = "sabotage")]
        if self.inner.sabotaged(crate::sabotage::Sabotage::CheckThenDebit) {
            let balance = self
                .inner
                .db
                .balance(&hold.user_id)
                .await
                .map_err(|_| AdmitError::StoreUnavailable(MeterError::StoreUnavailable))?;
            return Ok(LedgerOp::AdmitUnguarded(hold, balance.available));
        }
        Ok(LedgerOp::Admit(hold))
    }
}

/// How long a request waits for money that others took beforehand.
const RECALL_WAIT: Duration = Duration::from_millis(500);
/// Between looks whether it came back.
const RECALL_LOOK: Duration = Duration::from_millis(10);

impl Inner {
    /// Asks for all allowances of an account and waits for them. False when there cannot have been one since the refusal;
    /// else it is worth another try, because money may have come back.
    pub(super) async fn recall(&self, user: &UserId) -> bool {
        let until = Instant::now() + RECALL_WAIT;
        if self.db.kind() == DbKind::Sqlite {
            // This process is the only one that takes any, so nobody else is asked.
            if !self.allowances.concern(user) {
                return false;
            }
            self.allowances.close_user(user);
            while self.allowances.number_of(user) > 0 && Instant::now() < until {
                tokio::time::sleep(RECALL_LOOK).await;
            }
            return true;
        }
        self.allowances.close_user(user);
        // Who has none, as nearly all who cannot pay, costs a read.
        let mut left = self.db.count_allowances(user).await;
        if matches!(left, Ok(1..)) {
            left = self.db.recall_allowances(user).await;
        }
        while matches!(left, Ok(1..)) && Instant::now() < until {
            tokio::time::sleep(RECALL_LOOK).await;
            left = self.db.count_allowances(user).await;
        }
        true
    }

    /// Queues an admission, unless too many wait.
    pub(super) fn send_admission(&self, job: Job) -> Result<(), AdmitError> {
        if self.gauges.waiting.fetch_add(1, Ordering::Relaxed) >= self.config.queue {
            self.gauges.waiting.fetch_sub(1, Ordering::Relaxed);
            return Err(AdmitError::StoreUnavailable(MeterError::QueueFull));
        }
        self.jobs.send(job).map_err(|_| {
            self.gauges.waiting.fetch_sub(1, Ordering::Relaxed);
            AdmitError::StoreUnavailable(MeterError::StoreUnavailable)
        })
    }
}
