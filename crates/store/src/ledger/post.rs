//! Transactions outside the request path (top-ups, refunds, matured rewards, payouts) and reading balances.

use cxmpute_market::ledger::{Account, AccountKind, Postings};
use cxmpute_wire::{MicroCredits, RequestId, Timestamp, UserId};

use super::book::bounds;
use super::rows::lines;
use crate::db::{Db, Tx, on, read};
use crate::error::DbError;
use crate::lane::{Lane, values};
use crate::limits::REFUND_SQL;

/// Most that one entry may move: a million credits. Keeps every sum far from the ends of i64.
const MOST_PER_ENTRY: i64 = 1_000_000 * MicroCredits::PER_CREDIT;

/// What kind of transaction it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// Money or granted credit comes in.
    Grant,
    /// A part of a charge goes back.
    Refund,
    /// A reward matures.
    Mature,
    /// A matured reward leaves.
    Payout,
    /// Anything else an operator corrects, naming the original.
    Correction,
}

impl EntryKind {
    /// The stored name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Grant => "grant",
            Self::Refund => "refund",
            Self::Mature => "mature",
            Self::Payout => "payout",
            Self::Correction => "correction",
        }
    }
}

/// A transaction to enter.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What kind.
    pub kind: EntryKind,
    /// Unique among its kind; entering it again changes nothing.
    pub key: String,
    /// The request it is about.
    pub request_id: Option<RequestId>,
    /// Who did it.
    pub actor: String,
    /// Why.
    pub reason: String,
    /// The lines.
    pub postings: Postings,
    /// Now.
    pub at: Timestamp,
}

/// What became of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Posted {
    /// It was entered.
    Entered,
    /// Its key was entered before; nothing changed.
    Duplicate,
    /// An account does not have the money, or would overflow; nothing changed.
    Refused,
}

/// The three figures of a user (MR17), and granted money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    /// Can be spent now.
    pub available: MicroCredits,
    /// Bound by running requests.
    pub held: MicroCredits,
    /// Granted, not paid.
    pub promo: MicroCredits,
}

impl Balance {
    /// What the account owns: available, held and promo together.
    #[must_use]
    pub fn total(&self) -> MicroCredits {
        self.available.saturating_add(self.held).saturating_add(self.promo)
    }
}

/// What a provider has earned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Earnings {
    /// Not matured yet.
    pub pending: MicroCredits,
    /// Can be paid out.
    pub payable: MicroCredits,
}

impl Db {
    /// Enters a transaction once per key, or not at all.
    ///
    /// # Errors
    /// The store failed.
    pub async fn post(&self, entry: &Entry) -> Result<Posted, DbError> {
        let mut tx = self.begin().await?;
        let posted = tx.post(entry).await?;
        if posted == Posted::Entered {
            tx.commit().await?;
        }
        Ok(posted)
    }

    /// Adds credits to a user's account: an audited grant, once per business key.
    ///
    /// # Errors
    /// The store failed.
    pub async fn grant_credits(
        &self,
        user: &UserId,
        amount: MicroCredits,
        actor: &str,
        reason: &str,
        business_key: &str,
        now: Timestamp,
    ) -> Result<Posted, DbError> {
        let to = Account::of(user, AccountKind::UserAvailable);
        let Some(postings) = transfer(Account::system(AccountKind::External), to, amount) else {
            return Ok(Posted::Refused);
        };
        self.post(&Entry {
            kind: EntryKind::Grant,
            key: business_key.to_owned(),
            request_id: None,
            actor: actor.to_owned(),
            reason: reason.to_owned(),
            postings,
            at: now,
        })
        .await
    }

    /// Gives a part of a request's charge back to its payer, out of the platform's fee, and lowers what the key
    /// has spent (MR9). Never more than was charged.
    ///
    /// # Errors
    /// The store failed.
    pub async fn refund(
        &self,
        request: &RequestId,
        amount: MicroCredits,
        actor: &str,
        reason: &str,
        business_key: &str,
        now: Timestamp,
    ) -> Result<Posted, DbError> {
        let mut tx = self.begin().await?;
        if tx.is_entered(&format!("refund:{business_key}")).await? {
            return Ok(Posted::Duplicate);
        }
        let payer: Option<(String, String)> = on!(&mut tx, c =>
            sqlx::query_as(
                "UPDATE requests SET refunded = refunded + $2
                 WHERE id = $1 AND state = 'posted' AND refunded <= cost - $2 AND $2 > 0
                   AND user_id = COALESCE(
                        (SELECT a.owner FROM ledger_transactions t
                         JOIN ledger_accounts a ON a.id = t.account_1 WHERE t.id = 'hold:' || $1),
                        (SELECT a.owner FROM ledger_transactions t
                         JOIN ledger_accounts a ON a.id = t.account_1 WHERE t.id = 'resolve:' || $1))
                 RETURNING user_id, key_id")
                .bind(request.as_str())
                .bind(amount.0)
                .fetch_optional(c)
                .await?);
        let Some((user, key)) = payer else { return Ok(Posted::Refused) };
        let user: UserId = user.parse().map_err(|e| DbError::impossible("requests.user_id", e))?;
        let to = Account::of(&user, AccountKind::UserAvailable);
        let Some(postings) = transfer(Account::system(AccountKind::PlatformFee), to, amount) else {
            return Ok(Posted::Refused);
        };
        let entry = Entry {
            kind: EntryKind::Refund,
            key: business_key.to_owned(),
            request_id: Some(request.clone()),
            actor: actor.to_owned(),
            reason: reason.to_owned(),
            postings,
            at: now,
        };
        let posted = tx.post(&entry).await?;
        if posted == Posted::Entered {
            on!(&mut tx, c =>
                sqlx::query(REFUND_SQL)
                    .bind(&key)
                    .bind(request.as_str())
                    .bind(amount.0)
                    .execute(c)
                    .await?
                    .rows_affected());
            tx.commit().await?;
        }
        Ok(posted)
    }

    /// Moves a matured reward from pending to payable.
    ///
    /// # Errors
    /// The store failed.
    pub async fn mature(
        &self,
        provider: &UserId,
        amount: MicroCredits,
        business_key: &str,
        now: Timestamp,
    ) -> Result<Posted, DbError> {
        let from = Account::of(provider, AccountKind::ProviderPending);
        let to = Account::of(provider, AccountKind::ProviderPayable);
        self.transfer(EntryKind::Mature, (from, to), amount, business_key, now).await
    }

    /// Debits a payout before it leaves (MR44).
    ///
    /// # Errors
    /// The store failed.
    pub async fn payout(
        &self,
        provider: &UserId,
        amount: MicroCredits,
        business_key: &str,
        now: Timestamp,
    ) -> Result<Posted, DbError> {
        let from = Account::of(provider, AccountKind::ProviderPayable);
        let to = Account::system(AccountKind::External);
        self.transfer(EntryKind::Payout, (from, to), amount, business_key, now).await
    }

    async fn transfer(
        &self,
        kind: EntryKind,
        (from, to): (Account, Account),
        amount: MicroCredits,
        key: &str,
        at: Timestamp,
    ) -> Result<Posted, DbError> {
        let Some(postings) = transfer(from, to, amount) else { return Ok(Posted::Refused) };
        let reason = kind.as_str().to_owned();
        let entry = Entry {
            kind,
            key: key.to_owned(),
            request_id: None,
            actor: "gateway".into(),
            reason,
            postings,
            at,
        };
        self.post(&entry).await
    }

    /// The figures of a user; all zero for an unknown one.
    ///
    /// # Errors
    /// The store failed.
    pub async fn balance(&self, user: &UserId) -> Result<Balance, DbError> {
        let (available, held, promo, beforehand): (i64, i64, i64, i64) = read!(self, e =>
            sqlx::query_as(
                "SELECT CAST(COALESCE(SUM(CASE WHEN kind = 'user_available' THEN balance ELSE 0 END), 0) AS BIGINT),
                        CAST(COALESCE(SUM(CASE WHEN kind = 'user_held' THEN balance ELSE 0 END), 0) AS BIGINT),
                        CAST(COALESCE(SUM(CASE WHEN kind = 'user_promo' THEN balance ELSE 0 END), 0) AS BIGINT),
                        CAST((SELECT COALESCE(SUM(amount), 0) FROM allowances WHERE user_id = $1) AS BIGINT)
                 FROM ledger_accounts WHERE owner = $1")
                .bind(user.as_str())
                .fetch_one(e)
                .await?);
        // What a replica took beforehand can still be spent.
        Ok(Balance {
            available: MicroCredits(available.saturating_add(beforehand)),
            held: MicroCredits(held.saturating_sub(beforehand)),
            promo: MicroCredits(promo),
        })
    }

    /// What a provider has earned.
    ///
    /// # Errors
    /// The store failed.
    pub async fn earnings(&self, provider: &UserId) -> Result<Earnings, DbError> {
        let of = self.balances_of(provider).await?;
        Ok(Earnings { pending: of(AccountKind::ProviderPending), payable: of(AccountKind::ProviderPayable) })
    }

    async fn balances_of(
        &self,
        owner: &UserId,
    ) -> Result<impl Fn(AccountKind) -> MicroCredits + use<>, DbError> {
        let rows: Vec<(String, i64)> = read!(self, e =>
            sqlx::query_as("SELECT kind, balance FROM ledger_accounts WHERE owner = $1")
                .bind(owner.as_str())
                .fetch_all(e)
                .await?);
        Ok(move |kind: AccountKind| {
            let found = rows.iter().find(|(name, _)| name == kind.as_str());
            MicroCredits(found.map_or(0, |(_, balance)| *balance))
        })
    }

    /// All balances that are not zero, by account id; for reports and tests.
    ///
    /// # Errors
    /// The store failed.
    pub async fn balances(&self) -> Result<std::collections::BTreeMap<String, i64>, DbError> {
        let rows: Vec<(String, i64)> = read!(self, e =>
            sqlx::query_as("SELECT id, balance FROM ledger_accounts WHERE balance <> 0").fetch_all(e).await?);
        Ok(rows.into_iter().collect())
    }
}

impl Tx {
    async fn is_entered(&mut self, id: &str) -> Result<bool, DbError> {
        let found: Option<String> = on!(self, c =>
            sqlx::query_scalar("SELECT id FROM ledger_transactions WHERE id = $1").bind(id).fetch_optional(c).await?);
        Ok(found.is_some())
    }

    /// Enters a transaction inside this one. After [`Posted::Refused`] this transaction must be dropped.
    ///
    /// # Errors
    /// The store failed.
    pub async fn post(&mut self, entry: &Entry) -> Result<Posted, DbError> {
        let id = format!("{}:{}", entry.kind.as_str(), entry.key);
        let columns = lines(&entry.postings)?;
        let mut values = values![
            id.as_str(),
            entry.kind.as_str(),
            entry.request_id.as_ref().map(RequestId::as_str),
            entry.actor.as_str(),
            entry.reason.as_str(),
            entry.at.0,
        ]
        .to_vec();
        values.extend_from_slice(&columns);
        let done = self
            .execute(
                "INSERT INTO ledger_transactions (id, kind, request_id, actor, reason, created_at,
                    account_1, amount_1, account_2, amount_2, account_3, amount_3, account_4, amount_4,
                    account_5, amount_5, account_6, amount_6, account_7, amount_7, account_8, amount_8)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20,
                    $21, $22)
                 ON CONFLICT (id) DO NOTHING",
                &values,
            )
            .await?;
        if done == 0 {
            return Ok(Posted::Duplicate);
        }
        let mut lines: Vec<_> = entry.postings.lines().iter().collect();
        lines.sort_by(|a, b| a.account.cmp(&b.account));
        for line in lines {
            let (least, most) = bounds(&line.account, line.amount.0);
            let moved = self
                .execute(
                    "UPDATE ledger_accounts SET balance = balance + $2 WHERE id = $1 AND balance BETWEEN $3 AND $4",
                    &values![line.account.id(), line.amount.0, least, most],
                )
                .await?;
            if moved != 1 {
                return Ok(Posted::Refused);
            }
        }
        Ok(Posted::Entered)
    }
}

/// Two lines, when the amount is positive and within what one entry may move.
fn transfer(from: Account, to: Account, amount: MicroCredits) -> Option<Postings> {
    if !(1..=MOST_PER_ENTRY).contains(&amount.0) {
        return None;
    }
    Postings::new([(from, MicroCredits(-amount.0)), (to, amount)]).ok()
}
