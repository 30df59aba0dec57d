//! What a batch will write: rows gathered for a few wide statements, and balances moved once per account.

use std::collections::BTreeMap;

use cxmpute_market::count::mismatches;
use cxmpute_market::ledger::{Account, Postings};
use cxmpute_wire::{RequestId, Timestamp};
use sqlx::QueryBuilder;

use super::{NewHold, ResolveHold};
use crate::db::{Tx, on};
use crate::error::DbError;

/// Widths of the multi-row statements: few texts, so that each stays prepared.
const WIDTHS: [usize; 4] = [64, 16, 4, 1];

/// A row of `ledger_transactions`.
pub(super) struct TransactionLine {
    /// Business key.
    pub(super) id: String,
    /// `hold`, `extend`, `settle` or `void`.
    pub(super) kind: &'static str,
    /// The request.
    pub(super) request_id: RequestId,
    /// The attempt that was paid.
    pub(super) attempt: Option<u32>,
    /// In words.
    pub(super) reason: &'static str,
    /// When.
    pub(super) at: Timestamp,
}

/// A row of `postings`.
struct PostingLine {
    tx: String,
    account: String,
    amount: i64,
}

/// Rows and balances of one batch.
#[derive(Default)]
pub(super) struct Book {
    transactions: Vec<TransactionLine>,
    postings: Vec<PostingLine>,
    deltas: BTreeMap<Account, i128>,
    /// Each with its price as it is stored and the day to which its amount counts.
    holds: Vec<(Box<NewHold>, String, i64)>,
    attempts: Vec<AttemptLine>,
    flags: Vec<FlagLine>,
}

struct AttemptLine {
    request_id: RequestId,
    record: super::AttemptRecord,
}

struct FlagLine {
    request_id: RequestId,
    provision_id: Option<String>,
    unit: &'static str,
    counted: i64,
    claimed: i64,
    at: Timestamp,
}

/// Counts are stored as i64; an absurd claim is stored as the largest one.
fn stored(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// Writes rows with as few statements as the fixed widths allow.
macro_rules! insert {
    ($connection:ident, $head:literal, $rows:expr, |$line:ident, $row:ident| $bind:block) => {{
        let mut rest = &$rows[..];
        for width in WIDTHS {
            while rest.len() >= width {
                let (now, later) = rest.split_at(width);
                rest = later;
                let mut sql = QueryBuilder::new(concat!("INSERT INTO ", $head, " "));
                sql.push_values(now, |mut $line, $row| $bind);
                sql.build().execute(&mut *$connection).await?;
            }
        }
    }};
}

impl Book {
    /// Enters a transaction; its rows are written by [`Book::flush`], its balances by [`Book::flush`] or earlier by
    /// [`Book::settle_account`].
    pub(super) fn enter(&mut self, transaction: TransactionLine, postings: &Postings) {
        for line in postings.lines() {
            *self.deltas.entry(line.account.clone()).or_default() += i128::from(line.amount.0);
            self.postings.push(PostingLine {
                tx: transaction.id.clone(),
                account: line.account.id().to_owned(),
                amount: line.amount.0,
            });
        }
        self.transactions.push(transaction);
    }

    /// A balance that a guarded statement has moved already.
    pub(super) fn moved(&mut self, account: &Account, by: i64) {
        *self.deltas.entry(account.clone()).or_default() -= i128::from(by);
    }

    /// Keeps the rows of an admitted request.
    pub(super) fn admit(&mut self, hold: Box<NewHold>, price: String, day: i64) {
        self.holds.push((hold, price, day));
    }

    /// Keeps the attempts and flags of a resolved request.
    pub(super) fn resolve(&mut self, end: &ResolveHold) {
        for record in &end.attempts {
            self.attempts.push(AttemptLine { request_id: end.request_id.clone(), record: record.clone() });
        }
        let flags = end.claimed.as_ref().map(|claimed| mismatches(&end.counted, claimed)).unwrap_or_default();
        for flag in flags {
            self.flags.push(FlagLine {
                request_id: end.request_id.clone(),
                provision_id: end.provision_id.as_ref().map(|id| id.as_str().to_owned()),
                unit: flag.unit,
                counted: stored(flag.counted),
                claimed: stored(flag.claimed),
                at: end.now,
            });
        }
    }

    /// Writes one account's balance now, for statements that look at it later in the batch.
    pub(super) async fn settle_account(&mut self, tx: &mut Tx, account: &Account) -> Result<(), DbError> {
        match self.deltas.remove(account) {
            Some(delta) => move_balance(tx, account, delta).await,
            None => Ok(()),
        }
    }

    /// Writes everything that is left, balances last and in the order of their ids.
    pub(super) async fn flush(self, tx: &mut Tx) -> Result<(), DbError> {
        self.insert(tx).await?;
        for (account, delta) in self.deltas {
            move_balance(tx, &account, delta).await?;
        }
        Ok(())
    }

    async fn insert(&self, tx: &mut Tx) -> Result<(), DbError> {
        on!(tx, c => {
            insert!(c,
                "holds (request_id, user_id, key_id, state, amount, price, replica, epoch, spend_day, created_at)",
                self.holds, |line, row| {
                    let (hold, price, day) = row;
                    line.push_bind(hold.request_id.as_str())
                        .push_bind(hold.user_id.as_str())
                        .push_bind(hold.key_id.as_str())
                        .push_bind("held")
                        .push_bind(hold.amount.0)
                        .push_bind(price.as_str())
                        .push_bind(&*hold.replica)
                        .push_bind(hold.epoch)
                        .push_bind(*day)
                        .push_bind(hold.created_at.0);
                });
            insert!(c,
                "requests (id, user_id, key_id, route, model, service, streamed, title, referer, price_id, \
                 price_version, created_at)",
                self.holds, |line, row| {
                    let (hold, ..) = row;
                    line.push_bind(hold.request_id.as_str())
                        .push_bind(hold.user_id.as_str())
                        .push_bind(hold.key_id.as_str())
                        .push_bind(hold.route.as_str())
                        .push_bind(hold.model.as_str())
                        .push_bind(hold.service.as_str())
                        .push_bind(i64::from(hold.streamed))
                        .push_bind(hold.title.as_deref())
                        .push_bind(hold.referer.as_deref())
                        .push_bind(hold.price.id.as_str())
                        .push_bind(hold.price.version)
                        .push_bind(hold.created_at.0);
                });
            insert!(c,
                "ledger_transactions (id, kind, request_id, attempt, actor, reason, created_at)",
                self.transactions, |line, row| {
                    line.push_bind(row.id.as_str())
                        .push_bind(row.kind)
                        .push_bind(row.request_id.as_str())
                        .push_bind(row.attempt.map(i64::from))
                        .push_bind("gateway")
                        .push_bind(row.reason)
                        .push_bind(row.at.0);
                });
            insert!(c, "postings (tx, account, amount)", self.postings, |line, row| {
                line.push_bind(row.tx.as_str()).push_bind(row.account.as_str()).push_bind(row.amount);
            });
            insert!(c,
                "attempts (request_id, attempt, provision_id, epoch, outcome, code, accept_ms, first_token_ms, \
                 total_ms)",
                self.attempts, |line, row| {
                    let record = &row.record;
                    line.push_bind(row.request_id.as_str())
                        .push_bind(i64::from(record.attempt))
                        .push_bind(record.provision_id.as_str())
                        .push_bind(record.epoch.0)
                        .push_bind(record.outcome.as_str())
                        .push_bind(record.code.as_deref())
                        .push_bind(record.accept.map(|span| stored(span.0)))
                        .push_bind(record.first_token.map(|span| stored(span.0)))
                        .push_bind(record.total.map(|span| stored(span.0)));
                });
            insert!(c,
                "flags (request_id, unit, provision_id, counted, claimed, created_at)",
                self.flags, |line, row| {
                    line.push_bind(row.request_id.as_str())
                        .push_bind(row.unit)
                        .push_bind(row.provision_id.as_deref())
                        .push_bind(row.counted)
                        .push_bind(row.claimed)
                        .push_bind(row.at.0);
                });
        });
        Ok(())
    }
}

/// The balances from which an account can move by `delta` without breaking its bound.
pub(super) fn bounds(account: &Account, delta: i64) -> (i64, i64) {
    let least = if account.kind().may_be_negative() { i64::MIN } else { 0 };
    (least.saturating_sub(delta.min(0)), i64::MAX - delta.max(0))
}

/// Moves a balance whose bounds the caller has made sure of; anything else is a fault of the program.
async fn move_balance(tx: &mut Tx, account: &Account, delta: i128) -> Result<(), DbError> {
    if delta == 0 {
        return Ok(());
    }
    let refused =
        || DbError::impossible("ledger_accounts", format!("{} cannot move by {delta}", account.id()));
    let delta = i64::try_from(delta).map_err(|_| refused())?;
    let (least, most) = bounds(account, delta);
    let done = on!(tx, c =>
        sqlx::query("UPDATE ledger_accounts SET balance = balance + $2 WHERE id = $1 AND balance BETWEEN $3 AND $4")
            .bind(account.id())
            .bind(delta)
            .bind(least)
            .bind(most)
            .execute(c)
            .await?
            .rows_affected());
    if done == 1 { Ok(()) } else { Err(refused()) }
}
