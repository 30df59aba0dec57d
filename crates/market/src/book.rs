//! The ledger as a value: the reference that the stores are compared with, and the subject of the property tests.
//! Same events, same rules, no database.

use std::collections::{BTreeMap, BTreeSet};

use cxmpute_wire::{MicroCredits, UserId};

use crate::ledger::{Account, AccountKind, Bill, Postings, hold_postings, settle_postings};

/// Something that happens to money. Every event has a key of its own; a second event with the same key must change
/// nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Money comes in.
    Deposit {
        /// Business key.
        key: String,
        /// To whom.
        user: UserId,
        /// How much.
        amount: MicroCredits,
    },
    /// A request binds money.
    Reserve {
        /// The request.
        request: String,
        /// Who pays.
        user: UserId,
        /// How much.
        amount: MicroCredits,
    },
    /// A running request binds more.
    Extend {
        /// The request.
        request: String,
        /// Its how many-th extension, from 1.
        step: i64,
        /// How much more.
        amount: MicroCredits,
    },
    /// A request ends with a charge; the rest comes back.
    Post {
        /// The request.
        request: String,
        /// The charge; never applied when above what is held.
        charge: MicroCredits,
        /// Who served it.
        provider: UserId,
        /// The provider's share.
        share_bp: i64,
    },
    /// A request ends without a charge.
    Void {
        /// The request.
        request: String,
    },
    /// A request's lease ended; nothing was delivered.
    Expire {
        /// The request.
        request: String,
    },
    /// A part of a charge goes back to the user, out of the platform's fee.
    Refund {
        /// Business key.
        key: String,
        /// The request.
        request: String,
        /// How much.
        amount: MicroCredits,
    },
    /// A reward matures.
    Mature {
        /// Business key.
        key: String,
        /// Whose.
        provider: UserId,
        /// How much.
        amount: MicroCredits,
    },
    /// A matured reward is paid out.
    Payout {
        /// Business key.
        key: String,
        /// Whose.
        provider: UserId,
        /// How much.
        amount: MicroCredits,
    },
}

impl Event {
    /// The unique key under which the ledger knows the event. The three ways to resolve a hold share one key.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Deposit { key, .. } => format!("grant:{key}"),
            Self::Reserve { request, .. } => format!("hold:{request}"),
            Self::Extend { request, step, .. } => format!("extend:{request}:{step}"),
            Self::Post { request, .. } | Self::Void { request } | Self::Expire { request } => {
                format!("resolve:{request}")
            }
            Self::Refund { key, .. } => format!("refund:{key}"),
            Self::Mature { key, .. } => format!("mature:{key}"),
            Self::Payout { key, .. } => format!("payout:{key}"),
        }
    }
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It was entered.
    Entered,
    /// Its key was entered before; nothing changed.
    Duplicate,
    /// The rules forbid it now; nothing changed.
    Refused,
}

/// How far a hold is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldState {
    /// Money is bound.
    Held,
    /// Charged.
    Posted,
    /// Given back.
    Voided,
    /// Given back by the sweeper.
    Expired,
}

/// One hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldEntry {
    /// Who pays.
    pub user: UserId,
    /// How much is or was bound.
    pub amount: MicroCredits,
    /// How much was charged.
    pub posted: MicroCredits,
    /// How much of that went back.
    pub refunded: MicroCredits,
    /// How far it is.
    pub state: HoldState,
    /// Number of times it left `Held`; 1 at most.
    pub resolutions: u32,
}

/// Decides whether an event with this key was entered before. The right rule is [`Book::seen`]; tests pass a bad
/// one to prove that they notice.
pub type SeenRule = fn(&BTreeSet<String>, &str) -> bool;

/// The whole ledger in memory.
#[derive(Debug, Clone, Default)]
pub struct Book {
    balances: BTreeMap<Account, i64>,
    entered: BTreeSet<String>,
    journal: Vec<(String, Postings)>,
    holds: BTreeMap<String, HoldEntry>,
}

impl Book {
    /// The right rule for duplicates: a unique key.
    #[must_use]
    pub fn seen(entered: &BTreeSet<String>, key: &str) -> bool {
        entered.contains(key)
    }

    /// The balance of an account.
    #[must_use]
    pub fn balance(&self, account: &Account) -> MicroCredits {
        MicroCredits(self.balances.get(account).copied().unwrap_or(0))
    }

    /// The holds by request.
    #[must_use]
    pub fn holds(&self) -> &BTreeMap<String, HoldEntry> {
        &self.holds
    }

    /// All balances that are not zero, by account id.
    #[must_use]
    pub fn balances(&self) -> BTreeMap<String, i64> {
        self.balances
            .iter()
            .filter(|(_, amount)| **amount != 0)
            .map(|(account, amount)| (account.id().to_owned(), *amount))
            .collect()
    }

    /// Enters an event, at most once per key, or refuses it whole.
    pub fn apply(&mut self, event: &Event, seen: SeenRule) -> Applied {
        let key = event.key();
        if seen(&self.entered, &key) {
            return Applied::Duplicate;
        }
        let Some((postings, hold)) = self.plan(event) else {
            return Applied::Refused;
        };
        let Some(balances) = self.moved(&postings) else {
            return Applied::Refused;
        };
        self.balances.extend(balances);
        if let Some((request, entry)) = hold {
            self.holds.insert(request, entry);
        }
        self.entered.insert(key.clone());
        self.journal.push((key, postings));
        Applied::Entered
    }

    /// The balances after `postings`, unless one of them breaks its bound.
    fn moved(&self, postings: &Postings) -> Option<Vec<(Account, i64)>> {
        let mut moved: BTreeMap<&Account, i64> = BTreeMap::new();
        for line in postings.lines() {
            let before = moved.get(&line.account).copied().unwrap_or_else(|| self.balance(&line.account).0);
            moved.insert(&line.account, before.checked_add(line.amount.0)?);
        }
        let bounded = moved.iter().all(|(account, after)| *after >= 0 || account.kind().may_be_negative());
        bounded.then(|| moved.into_iter().map(|(account, after)| (account.clone(), after)).collect())
    }

    fn plan(&self, event: &Event) -> Option<(Postings, Option<(String, HoldEntry)>)> {
        use AccountKind::{External, PlatformFee, ProviderPayable, ProviderPending, UserAvailable};
        let transfer = |from: Account, to: Account, amount: MicroCredits| {
            let down = amount.0.checked_neg().filter(|down| *down < 0)?;
            Postings::new([(from, MicroCredits(down)), (to, amount)]).ok()
        };
        match event {
            Event::Deposit { user, amount, .. } => {
                let postings =
                    transfer(Account::system(External), Account::of(user, UserAvailable), *amount)?;
                Some((postings, None))
            }
            Event::Reserve { request, user, amount } => {
                let entry = HoldEntry {
                    user: user.clone(),
                    amount: *amount,
                    posted: MicroCredits::ZERO,
                    refunded: MicroCredits::ZERO,
                    state: HoldState::Held,
                    resolutions: 0,
                };
                Some((hold_postings(user, *amount).ok()?, Some((request.clone(), entry))))
            }
            Event::Extend { request, amount, .. } => {
                let mut entry = self.held(request)?;
                entry.amount = entry.amount.checked_add(*amount)?;
                Some((hold_postings(&entry.user, *amount).ok()?, Some((request.clone(), entry))))
            }
            Event::Post { request, charge, provider, share_bp } => {
                let entry = self.held(request)?;
                if charge.0 < 0 || *charge > entry.amount {
                    return None;
                }
                let parts = crate::price::split(*charge, *share_bp);
                let bill = Bill {
                    posted: *charge,
                    refund: entry.amount.checked_sub(*charge)?,
                    provider_reward: parts.provider,
                    platform_fee: parts.platform,
                    platform_loss: MicroCredits::ZERO,
                };
                self.resolved(request, entry, &bill, Some(provider), HoldState::Posted)
            }
            Event::Void { request } | Event::Expire { request } => {
                let entry = self.held(request)?;
                let bill = Bill { refund: entry.amount, ..Bill::default() };
                let expired = matches!(event, Event::Expire { .. });
                let state = if expired { HoldState::Expired } else { HoldState::Voided };
                self.resolved(request, entry, &bill, None, state)
            }
            Event::Refund { request, amount, .. } => {
                let mut entry =
                    self.holds.get(request).filter(|entry| entry.state == HoldState::Posted)?.clone();
                entry.refunded = entry.refunded.checked_add(*amount)?;
                if entry.refunded > entry.posted {
                    return None;
                }
                let to = Account::of(&entry.user, UserAvailable);
                Some((transfer(Account::system(PlatformFee), to, *amount)?, Some((request.clone(), entry))))
            }
            Event::Mature { provider, amount, .. } => {
                let (from, to) =
                    (Account::of(provider, ProviderPending), Account::of(provider, ProviderPayable));
                Some((transfer(from, to, *amount)?, None))
            }
            Event::Payout { provider, amount, .. } => {
                let from = Account::of(provider, ProviderPayable);
                Some((transfer(from, Account::system(External), *amount)?, None))
            }
        }
    }

    fn held(&self, request: &str) -> Option<HoldEntry> {
        self.holds.get(request).filter(|entry| entry.state == HoldState::Held).cloned()
    }

    fn resolved(
        &self,
        request: &str,
        mut entry: HoldEntry,
        bill: &Bill,
        provider: Option<&UserId>,
        state: HoldState,
    ) -> Option<(Postings, Option<(String, HoldEntry)>)> {
        let postings = settle_postings(&entry.user, provider, entry.amount, bill).ok()?;
        entry.posted = bill.posted;
        entry.state = state;
        entry.resolutions += 1;
        Some((postings, Some((request.to_owned(), entry))))
    }

    /// Everything that must hold after any history; the first breach as a sentence.
    ///
    /// # Errors
    /// The breach.
    pub fn audit(&self) -> Result<(), String> {
        let mut rebuilt: BTreeMap<&Account, i128> = BTreeMap::new();
        let mut keys = BTreeSet::new();
        for (key, postings) in &self.journal {
            if !keys.insert(key) {
                return Err(format!("{key} was entered twice"));
            }
            for line in postings.lines() {
                *rebuilt.entry(&line.account).or_default() += i128::from(line.amount.0);
            }
        }
        let sum: i128 = rebuilt.values().sum();
        if sum != 0 {
            return Err(format!("the postings sum to {sum}"));
        }
        for (account, balance) in &self.balances {
            if rebuilt.get(account).copied().unwrap_or(0) != i128::from(*balance) {
                return Err(format!("{} is not its rebuilt sum", account.id()));
            }
            if *balance < 0 && !account.kind().may_be_negative() {
                return Err(format!("{} is negative", account.id()));
            }
        }
        let mut bound: BTreeMap<&UserId, i128> = BTreeMap::new();
        for (request, hold) in &self.holds {
            let open = hold.state == HoldState::Held;
            if hold.resolutions != u32::from(!open) {
                return Err(format!("{request} was resolved {} times", hold.resolutions));
            }
            if hold.posted > hold.amount || hold.refunded > hold.posted {
                return Err(format!("{request} charged or refunded more than it may"));
            }
            *bound.entry(&hold.user).or_default() += if open { i128::from(hold.amount.0) } else { 0 };
        }
        for (user, amount) in bound {
            if i128::from(self.balance(&Account::of(user, AccountKind::UserHeld)).0) != amount {
                return Err(format!("{user} has held money without an open hold"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
