//! The arithmetic of the ledger: accounts, postings that sum to zero, and what each end of a request costs whom
//! (MR6, MR7, section 6 of the money rules).

use cxmpute_wire::{MicroCredits, UserId};
use serde::{Deserialize, Serialize};

use crate::count::payable;
use crate::price::{PriceError, PriceRow, Units, cost, split};

/// What an account is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum AccountKind {
    /// Money the user can spend.
    UserAvailable,
    /// Money bound by running requests.
    UserHeld,
    /// Granted money, spent first, never paid out.
    UserPromo,
    /// Earned, not matured.
    ProviderPending,
    /// Matured, can be paid out.
    ProviderPayable,
    /// Earned from promo money; never paid out.
    ProviderPromo,
    /// The platform's part.
    PlatformFee,
    /// What the platform pays for its own faults.
    PlatformLoss,
    /// Where promo money comes from.
    PromoFund,
    /// The world outside.
    External,
}

impl AccountKind {
    /// The accounts that every user has.
    pub const OF_USERS: [Self; 6] = [
        Self::UserAvailable,
        Self::UserHeld,
        Self::UserPromo,
        Self::ProviderPending,
        Self::ProviderPayable,
        Self::ProviderPromo,
    ];
    /// The accounts that exist once.
    pub const OF_SYSTEM: [Self; 4] = [Self::PlatformFee, Self::PlatformLoss, Self::PromoFund, Self::External];

    /// The stored name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UserAvailable => "user_available",
            Self::UserHeld => "user_held",
            Self::UserPromo => "user_promo",
            Self::ProviderPending => "provider_pending",
            Self::ProviderPayable => "provider_payable",
            Self::ProviderPromo => "provider_promo",
            Self::PlatformFee => "platform_fee",
            Self::PlatformLoss => "platform_loss",
            Self::PromoFund => "promo_fund",
            Self::External => "external",
        }
    }

    /// Only these three may go below zero (MR8).
    #[must_use]
    pub const fn may_be_negative(self) -> bool {
        matches!(self, Self::External | Self::PromoFund | Self::PlatformLoss)
    }
}

/// One account: `OWNER:KIND`, where the owner is an account id or `system`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Account {
    id: String,
    kind: AccountKind,
}

impl Account {
    /// The owner's name of accounts that exist once.
    pub const SYSTEM: &'static str = "system";

    /// An account of a user.
    #[must_use]
    pub fn of(owner: &UserId, kind: AccountKind) -> Self {
        Self { id: format!("{owner}:{}", kind.as_str()), kind }
    }

    /// An account of the platform.
    #[must_use]
    pub fn system(kind: AccountKind) -> Self {
        Self { id: format!("{}:{}", Self::SYSTEM, kind.as_str()), kind }
    }

    /// The stored id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> AccountKind {
        self.kind
    }
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.id)
    }
}

/// One line of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posting {
    /// Whose balance moves.
    pub account: Account,
    /// By how much.
    pub amount: MicroCredits,
}

/// Postings that sum to zero, without empty lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Postings(Vec<Posting>);

/// Why postings are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// They do not sum to zero.
    #[error("postings sum to {0}, not to zero")]
    Unbalanced(i128),
    /// An amount that must not be negative is.
    #[error("an amount is negative")]
    Negative,
}

impl Postings {
    /// Checks the sum and drops empty lines.
    ///
    /// # Errors
    /// The sum is not zero.
    pub fn new(lines: impl IntoIterator<Item = (Account, MicroCredits)>) -> Result<Self, LedgerError> {
        let lines: Vec<Posting> = lines
            .into_iter()
            .filter(|(_, amount)| amount.0 != 0)
            .map(|(account, amount)| Posting { account, amount })
            .collect();
        let sum: i128 = lines.iter().map(|line| i128::from(line.amount.0)).sum();
        if sum == 0 { Ok(Self(lines)) } else { Err(LedgerError::Unbalanced(sum)) }
    }

    /// The lines.
    #[must_use]
    pub fn lines(&self) -> &[Posting] {
        &self.0
    }
}

/// A hold, or its extension, by `amount`.
///
/// # Errors
/// The amount is negative.
pub fn hold_postings(user: &UserId, amount: MicroCredits) -> Result<Postings, LedgerError> {
    if amount.0 < 0 {
        return Err(LedgerError::Negative);
    }
    Postings::new([
        (Account::of(user, AccountKind::UserAvailable), MicroCredits(-amount.0)),
        (Account::of(user, AccountKind::UserHeld), amount),
    ])
}

/// A resolved hold: what was bound leaves `user_held`, the rest comes back, the charge is divided.
///
/// # Errors
/// The bill does not add up (its fields were not made by [`bill`]).
pub fn settle_postings(
    user: &UserId,
    provider: Option<&UserId>,
    held: MicroCredits,
    bill: &Bill,
) -> Result<Postings, LedgerError> {
    let mut lines = vec![
        (Account::of(user, AccountKind::UserHeld), MicroCredits(-held.0)),
        (Account::of(user, AccountKind::UserAvailable), bill.refund),
        (Account::system(AccountKind::PlatformFee), bill.platform_fee),
        (Account::system(AccountKind::PlatformLoss), MicroCredits(-bill.platform_loss.0)),
    ];
    if let Some(provider) = provider {
        lines.push((Account::of(provider, AccountKind::ProviderPending), bill.provider_reward));
    }
    Postings::new(lines)
}

/// How a request ended: the rows of the abort table, one name each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// Refused before a node accepted it.
    Refused,
    /// The client left before a node accepted it.
    ClientGoneBeforeAccept,
    /// The client left after a node accepted it, after any number of tokens (also none).
    ClientGone,
    /// The client read too slowly and was cut; paid like [`End::ClientGone`].
    StalledReader,
    /// Every attempt failed before the first content.
    ProviderFailed,
    /// The node failed after content, and nobody continued.
    ProviderLost,
    /// A fault of the gateway while the answer was relayed.
    GatewayFault,
    /// The gateway's process died; the units are those of the last checkpoint.
    GatewayDied,
    /// An attempt that a retry replaced.
    RetryLoser,
    /// An attempt that lost a race we started.
    HedgeLoser,
    /// The engine ended with an error, or without a finish reason, or empty.
    EngineFailed,
    /// A regular end, also one with zero completion tokens.
    Finished,
    /// The hold was used up and could not be extended: delivered tokens are paid.
    CreditsExhausted,
}

impl End {
    /// Every end.
    pub const ALL: [Self; 13] = [
        Self::Refused,
        Self::ClientGoneBeforeAccept,
        Self::ClientGone,
        Self::StalledReader,
        Self::ProviderFailed,
        Self::ProviderLost,
        Self::GatewayFault,
        Self::GatewayDied,
        Self::RetryLoser,
        Self::HedgeLoser,
        Self::EngineFailed,
        Self::Finished,
        Self::CreditsExhausted,
    ];

    /// The stored name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::ClientGoneBeforeAccept => "client_gone_before_accept",
            Self::ClientGone => "client_gone",
            Self::StalledReader => "stalled_reader",
            Self::ProviderFailed => "provider_failed",
            Self::ProviderLost => "provider_lost",
            Self::GatewayFault => "gateway_fault",
            Self::GatewayDied => "gateway_died",
            Self::RetryLoser => "retry_loser",
            Self::HedgeLoser => "hedge_loser",
            Self::EngineFailed => "engine_failed",
            Self::Finished => "finished",
            Self::CreditsExhausted => "credits_exhausted",
        }
    }

    /// The end with this stored name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|end| end.as_str() == name)
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Who pays the provider.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Funding {
    /// The user's charge.
    Charge,
    /// The platform, for a fault of its own.
    PlatformLoss,
}

/// What a request's end means: units to charge and units to pay, `None` where the table says 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolution {
    /// Units the user pays.
    pub user_units: Option<Units>,
    /// Units the provider is paid for.
    pub provider_units: Option<Units>,
    /// Where the provider's pay comes from.
    pub funding: Funding,
}

/// The abort table. `counted` is the gateway's count of what was handed to the client (for
/// [`End::GatewayDied`]: of the last checkpoint), `claimed` the node's claim.
#[must_use]
pub fn resolve(end: End, counted: &Units, claimed: Option<&Units>) -> Resolution {
    let nothing = Resolution { user_units: None, provider_units: None, funding: Funding::Charge };
    let delivered = Resolution {
        user_units: Some(*counted),
        provider_units: Some(payable(counted, claimed)),
        funding: Funding::Charge,
    };
    match end {
        End::Refused
        | End::ClientGoneBeforeAccept
        | End::ProviderFailed
        | End::ProviderLost
        | End::RetryLoser
        | End::EngineFailed => nothing,
        End::ClientGone | End::StalledReader | End::Finished | End::CreditsExhausted => delivered,
        // Only delivered text proves that there was an answer to pay for.
        End::GatewayDied if counted.delivered() => delivered,
        End::GatewayDied => nothing,
        End::GatewayFault | End::HedgeLoser => {
            Resolution { user_units: None, funding: Funding::PlatformLoss, ..delivered }
        }
    }
}

/// The money of one resolved hold. All amounts are zero or more, and
/// `posted + platform_loss = provider_reward + platform_fee`, `posted + refund = held`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bill {
    /// What the user pays.
    pub posted: MicroCredits,
    /// What comes back of the hold.
    pub refund: MicroCredits,
    /// What the provider earns.
    pub provider_reward: MicroCredits,
    /// What the platform keeps.
    pub platform_fee: MicroCredits,
    /// What the platform pays for its own faults.
    pub platform_loss: MicroCredits,
}

/// Turns a resolution into money. The user never pays more than was held, and the provider never earns more than its
/// share of that, whoever pays it: what is counted beyond the hold was never bound, and paying for it would make money
/// (MR15, MR42). Own traffic (`same_owner`) earns nothing (MR48).
///
/// # Errors
/// The price is not usable, or a cost does not fit.
pub fn bill(
    price: &PriceRow,
    held: MicroCredits,
    resolution: &Resolution,
    same_owner: bool,
) -> Result<Bill, PriceError> {
    let price_of = |units: Option<Units>| units.map_or(Ok(MicroCredits::ZERO), |units| cost(price, &units));
    let posted = price_of(resolution.user_units)?.min(held);
    let funds = match resolution.funding {
        Funding::Charge => posted,
        Funding::PlatformLoss => held,
    };
    let served = price_of(resolution.provider_units)?.min(funds);
    let provider_reward =
        if same_owner { MicroCredits::ZERO } else { split(served, price.share_bp).provider };
    let platform_loss = match resolution.funding {
        Funding::Charge => MicroCredits::ZERO,
        Funding::PlatformLoss => provider_reward,
    };
    let platform_fee = posted.saturating_add(platform_loss).saturating_sub(provider_reward);
    let refund = held.saturating_sub(posted);
    Ok(Bill { posted, refund, provider_reward, platform_fee, platform_loss })
}

#[cfg(test)]
mod tests;
