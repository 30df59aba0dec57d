//! The ledger's rows: postings that nobody can change, balances that are projections of them, holds that resolve
//! exactly once.

mod allowance;
mod batch;
mod book;
mod check;
mod post;
mod recover;
mod resolve;
mod rows;

use std::sync::Arc;

use cxmpute_market::ledger::{Bill, End, Funding, bill, resolve};
use cxmpute_market::price::{PriceError, PriceRow, Units};
use cxmpute_wire::{
    Epoch, KeyId, MicroCredits, Millis, ProvisionId, RequestId, ServiceId, Timestamp, UserId,
};

use crate::limits::SpendCap;

pub use allowance::{Allowance, Charge, Graduation, Wish};
pub use batch::BatchError;
pub(crate) use batch::apply_batch;
pub use check::{LedgerReport, Offence};
pub use post::{Balance, Earnings, Entry, EntryKind, Posted};
pub use recover::Recovery;

/// A request that wants to bind money.
#[derive(Debug, Clone)]
pub struct NewHold {
    /// The request.
    pub request_id: RequestId,
    /// Who pays.
    pub user_id: UserId,
    /// With which key; its own budget is checked too.
    pub key_id: KeyId,
    /// How much.
    pub amount: MicroCredits,
    /// The price that holds for this request whatever changes later.
    pub price: Arc<PriceRow>,
    /// Replica that owns the hold.
    pub replica: Arc<str>,
    /// Its epoch.
    pub epoch: i64,
    /// Route, such as `chat/completions`.
    pub route: String,
    /// Catalogue id of the model.
    pub model: String,
    /// Service that is asked for.
    pub service: ServiceId,
    /// Whether the client reads a stream.
    pub streamed: bool,
    /// `X-Title`.
    pub title: Option<String>,
    /// `Referer`.
    pub referer: Option<String>,
    /// When the request came in.
    pub created_at: Timestamp,
}

/// Another model is to answer a request that no node has begun to answer: its price replaces the pinned one.
#[derive(Debug, Clone)]
pub struct MoveHold {
    /// The request.
    pub request_id: RequestId,
    /// Who pays.
    pub user_id: UserId,
    /// Owner's epoch.
    pub epoch: i64,
    /// Catalogue id of the model.
    pub model: String,
    /// Service that is asked for.
    pub service: ServiceId,
    /// The price that holds from now on.
    pub price: Arc<PriceRow>,
}

/// What is known of a running request beside its hold. Later notes replace earlier ones.
#[derive(Debug, Clone)]
pub struct Note {
    /// The request.
    pub request_id: RequestId,
    /// Who pays; notes are ordered by payer like everything else in a batch.
    pub user_id: UserId,
    /// Owner's epoch.
    pub epoch: i64,
    /// The provision that accepted it.
    pub provision_id: Option<ProvisionId>,
    /// That provision's owner.
    pub provider: Option<UserId>,
    /// Number of the attempt.
    pub attempt: u32,
    /// When it was accepted.
    pub accepted_at: Option<Timestamp>,
    /// What was delivered to the client so far.
    pub checkpoint: Option<Units>,
}

/// One attempt of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRecord {
    /// From 1.
    pub attempt: u32,
    /// Which provision.
    pub provision_id: ProvisionId,
    /// Epoch of its tunnel.
    pub epoch: Epoch,
    /// How it ended.
    pub outcome: End,
    /// Machine code of a failure.
    pub code: Option<String>,
    /// Until it was accepted.
    pub accept: Option<Millis>,
    /// Until the first content.
    pub first_token: Option<Millis>,
    /// In all.
    pub total: Option<Millis>,
}

/// The end of a request: everything that its one settlement writes.
#[derive(Debug, Clone)]
pub struct ResolveHold {
    /// What was admitted, with the price that is pinned now.
    pub hold: Arc<NewHold>,
    /// How much is held, extensions included.
    pub held: MicroCredits,
    /// How it ended.
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
    /// Resolved by the sweeper after the lease ended.
    pub expired: bool,
    /// Now.
    pub now: Timestamp,
}

impl ResolveHold {
    /// The money of this end.
    ///
    /// # Errors
    /// The price is not usable, or a cost does not fit.
    pub fn bill(&self) -> Result<Bill, PriceError> {
        let resolution = resolve(self.end, &self.counted, self.claimed.as_ref());
        let same_owner = self.provider.as_ref() == Some(&self.hold.user_id);
        // Without a provider there is nobody to pay: what is posted stays with the platform.
        bill(&self.hold.price, self.held, &resolution, same_owner || self.provider.is_none())
    }

    /// The state in which the hold ends.
    fn state(&self) -> &'static str {
        let resolution = resolve(self.end, &self.counted, self.claimed.as_ref());
        if resolution.user_units.is_some() || resolution.funding == Funding::PlatformLoss {
            "posted"
        } else if self.expired {
            "expired"
        } else {
            "voided"
        }
    }
}

/// What a settlement did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settled {
    /// What the user paid.
    pub cost: MicroCredits,
    /// What came back of the hold.
    pub refund: MicroCredits,
    /// What the provider earned.
    pub provider_reward: MicroCredits,
    /// What the platform kept.
    pub platform_fee: MicroCredits,
    /// What the platform paid.
    pub platform_loss: MicroCredits,
}

impl From<Bill> for Settled {
    fn from(bill: Bill) -> Self {
        Self {
            cost: bill.posted,
            refund: bill.refund,
            provider_reward: bill.provider_reward,
            platform_fee: bill.platform_fee,
            platform_loss: bill.platform_loss,
        }
    }
}

/// One thing the group-commit writer is asked to make durable.
#[derive(Debug, Clone)]
pub enum LedgerOp {
    /// Bind money for a request.
    Admit(Arc<NewHold>),
    /// Note where a request runs and how far it is.
    Note(Note),
    /// Bind more for a running request.
    Extend {
        /// The request.
        request_id: RequestId,
        /// Who pays.
        user_id: UserId,
        /// With which key.
        key_id: KeyId,
        /// Owner's epoch.
        epoch: i64,
        /// Its how many-th extension, from 1.
        step: i64,
        /// How much more.
        amount: MicroCredits,
        /// Now.
        now: Timestamp,
    },
    /// Pin another model and its price.
    Move(Box<MoveHold>),
    /// End a request.
    Resolve(Arc<ResolveHold>),
    /// Take money of an account and key beforehand.
    Take(Arc<Wish>),
    /// End a request that was admitted out of an allowance.
    Charge(Charge),
    /// Give a request that was admitted out of an allowance a hold of its own.
    Graduate(Graduation),
    /// Give back what is left of an allowance.
    Return(Arc<Allowance>, Timestamp),
    /// The known-bad admission of gate L1: `available` was read before, outside the transaction.
    #[cfg(feature = "sabotage")]
    AdmitUnguarded(Arc<NewHold>, MicroCredits),
}

impl LedgerOp {
    /// The request it is about, if it is about one.
    #[must_use]
    pub fn request_id(&self) -> Option<&RequestId> {
        Some(match self {
            Self::Admit(hold) => &hold.request_id,
            Self::Note(note) => &note.request_id,
            Self::Extend { request_id, .. } => request_id,
            Self::Move(to) => &to.request_id,
            Self::Resolve(end) => &end.hold.request_id,
            Self::Charge(charge) => &charge.end.hold.request_id,
            Self::Graduate(graduation) => &graduation.hold.request_id,
            Self::Take(_) | Self::Return(..) => return None,
            #[cfg(feature = "sabotage")]
            Self::AdmitUnguarded(hold, _) => &hold.request_id,
        })
    }

    /// Who pays; rows are locked in this order, so that two replicas never wait for each other.
    fn payer(&self) -> &UserId {
        match self {
            Self::Admit(hold) => &hold.user_id,
            Self::Note(note) => &note.user_id,
            Self::Extend { user_id, .. } => user_id,
            Self::Move(to) => &to.user_id,
            Self::Resolve(end) => &end.hold.user_id,
            Self::Charge(charge) => &charge.allowance.user_id,
            Self::Graduate(graduation) => &graduation.allowance.user_id,
            Self::Take(wish) => &wish.allowance.user_id,
            Self::Return(allowance, _) => &allowance.user_id,
            #[cfg(feature = "sabotage")]
            Self::AdmitUnguarded(hold, _) => &hold.user_id,
        }
    }

    /// The key of an admission; those of one key are admitted together.
    fn key(&self) -> Option<&KeyId> {
        match self {
            Self::Admit(hold) => Some(&hold.key_id),
            _ => None,
        }
    }

    /// Whether both are admissions of one account and key.
    fn is_admitted_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Admit(one), Self::Admit(other)) => {
                one.user_id == other.user_id && one.key_id == other.key_id
            }
            _ => false,
        }
    }

    /// Within one payer, money comes back before it is spent.
    fn rank(&self) -> u8 {
        match self {
            Self::Graduate(_) => 0,
            Self::Note(_) => 1,
            Self::Resolve(_) | Self::Charge(_) => 2,
            Self::Return(..) => 3,
            Self::Extend { .. } | Self::Move(_) => 4,
            Self::Admit(_) => 5,
            Self::Take(_) => 6,
            #[cfg(feature = "sabotage")]
            Self::AdmitUnguarded(..) => 5,
        }
    }
}

/// What became of one operation. A refusal of one never disturbs the others of its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LedgerReply {
    /// Bound, extended or noted.
    Done,
    /// Resolved by this operation.
    Resolved(Settled),
    /// Was resolved before; this is what happened then.
    AlreadyResolved(Settled),
    /// Taken beforehand.
    Taken {
        /// How much.
        amount: MicroCredits,
    },
    /// Not enough money; this much is available.
    Insufficient {
        /// Available now.
        available: MicroCredits,
    },
    /// A spend limit of the key or the account is in the way; this much of it is left.
    Budget {
        /// Left now.
        remaining: MicroCredits,
        /// Which one.
        cap: SpendCap,
    },
    /// The account is suspended.
    Suspended,
    /// The key is revoked or unknown.
    KeyRevoked,
    /// The hold is open, with another amount: an extension whose outcome was unknown has happened.
    HeldDiffers {
        /// What is held.
        held: MicroCredits,
    },
    /// The hold is unknown, or not in a state that allows this.
    NotHeld,
}
