//! Binding money for a request before anything is sent anywhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use cxmpute_market::price::PriceRow;
use cxmpute_store::{LedgerOp, LedgerReply, NewHold, SpendCap};
use cxmpute_wire::{KeyId, MicroCredits, RequestId, ServiceId, Timestamp, UserId};
use tokio::sync::oneshot;

use super::settle::Job;
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
            | LedgerReply::HeldDiffers { .. }
            | LedgerReply::NotHeld => Self::StoreUnavailable(MeterError::Refused),
        })
    }
}

impl Meter {
    /// Binds the money of a request, durably. Account, key and budget are checked by the statements that take the
    /// money; no cache decides (MR12).
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
        let admitted = self.reservation(admission);
        let hold = Hold::new(inner.clone(), admitted.clone());
        let op = self.operation(admitted).await?;
        let (reply, answer) = oneshot::channel();
        inner.send_admission(Job::admit(op, reply, hold.resolver()))?;
        match answer.await {
            Ok(Ok(reply)) => match AdmitError::from_reply(reply, required) {
                None => Ok(hold.admitted()),
                Some(refused) => Err(refused),
            },
            Ok(Err(error)) => Err(AdmitError::StoreUnavailable(error)),
            Err(_) => Err(AdmitError::StoreUnavailable(MeterError::StoreUnavailable)),
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

impl Inner {
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
