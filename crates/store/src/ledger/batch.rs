//! One transaction for many operations (D3): the guarded statement of each, then a few wide inserts, then one
//! commit. Order: by payer, then money in before money out, then the shared accounts by id; every replica locks in
//! that order.

use cxmpute_market::ledger::{Account, AccountKind, hold_postings};
use cxmpute_wire::{KeyId, MicroCredits, RequestId, Timestamp, UserId};
use sqlx::AssertSqlSafe;

use super::book::{Book, TransactionLine};
use super::resolve::units_text;
use super::{LedgerOp, LedgerReply, NewHold, Note};
use crate::db::{Db, Tx, on};
use crate::error::DbError;
use crate::limits::{self, Obstacle, RawCaps};

/// Why a whole batch failed.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    /// Nothing of it was kept.
    #[error("nothing of the batch was kept")]
    Undone(#[source] DbError),
    /// The commit itself failed; what was kept is found out by reading the rows (MR36).
    #[error("the outcome of the batch is unknown")]
    Unknown(#[source] DbError),
}

impl BatchError {
    /// The cause.
    #[must_use]
    pub fn cause(&self) -> &DbError {
        match self {
            Self::Undone(cause) | Self::Unknown(cause) => cause,
        }
    }
}

impl Db {
    /// Makes all operations durable in one commit and answers each, in the order given. A refused operation changes
    /// nothing and does not disturb the others.
    ///
    /// # Errors
    /// The whole batch failed.
    pub async fn apply(&self, ops: &[LedgerOp]) -> Result<Vec<LedgerReply>, BatchError> {
        let mut tx = self.begin().await.map_err(BatchError::Undone)?;
        let replies = tx.apply(ops).await.map_err(BatchError::Undone)?;
        tx.commit().await.map_err(BatchError::Unknown)?;
        Ok(replies)
    }

    /// Whether a request's hold row exists: the outcome of an admission whose commit failed.
    ///
    /// # Errors
    /// The store failed.
    pub async fn hold_exists(&self, request: &RequestId) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let found: Option<i64> = on!(&mut tx, c =>
            sqlx::query_scalar("SELECT epoch FROM holds WHERE request_id = $1")
                .bind(request.as_str())
                .fetch_optional(c)
                .await?);
        Ok(found.is_some())
    }
}

impl Tx {
    pub(super) async fn apply(&mut self, ops: &[LedgerOp]) -> Result<Vec<LedgerReply>, DbError> {
        let mut order: Vec<usize> = (0..ops.len()).collect();
        order.sort_by(|a, b| {
            let key = |n: usize| (ops[n].payer(), ops[n].rank());
            key(*a).cmp(&key(*b))
        });
        let mut replies = vec![LedgerReply::NotHeld; ops.len()];
        let mut book = Book::default();
        for n in order {
            replies[n] = match &ops[n] {
                LedgerOp::Admit(hold) => self.admit(&mut book, hold).await?,
                LedgerOp::Note(note) => self.note(note).await?,
                LedgerOp::Resolve(end) => self.resolve(&mut book, end).await?,
                LedgerOp::Extend { request_id, user_id, key_id, epoch, step, amount, now } => {
                    let hold =
                        Extension { request_id, user_id, key_id, epoch: *epoch, step: *step, now: *now };
                    self.extend(&mut book, &hold, *amount).await?
                }
                #[cfg(feature = "sabotage")]
                LedgerOp::AdmitUnguarded(hold, seen) => self.admit_unguarded(&mut book, hold, *seen).await?,
            };
        }
        book.flush(self).await?;
        Ok(replies)
    }

    async fn admit(&mut self, book: &mut Book, hold: &NewHold) -> Result<LedgerReply, DbError> {
        match self.reserve(book, &hold.user_id, &hold.key_id, hold.amount).await? {
            Err(refused) => Ok(refused),
            Ok(day) => {
                enter_hold(book, hold, day)?;
                Ok(LedgerReply::Done)
            }
        }
    }

    /// Takes the money: account first, then key, each by one guarded statement; what the first took is given back
    /// when the second refuses. Returns the day to which it counts.
    async fn reserve(
        &mut self,
        book: &mut Book,
        user: &UserId,
        key: &KeyId,
        amount: MicroCredits,
    ) -> Result<Result<i64, LedgerReply>, DbError> {
        let kind = self.kind();
        let available = Account::of(user, AccountKind::UserAvailable);
        book.settle_account(self, &available).await?;
        let taken = on!(&mut *self, c =>
            sqlx::query("UPDATE ledger_accounts SET balance = balance - $2 WHERE id = $1 AND balance >= $2")
                .bind(available.id())
                .bind(amount.0)
                .execute(c)
                .await?
                .rows_affected());
        let day: Option<i64> = if taken == 1 {
            on!(&mut *self, c =>
                sqlx::query_scalar(limits::reserve_sql(kind))
                    .bind(key.as_str())
                    .bind(user.as_str())
                    .bind(amount.0)
                    .fetch_optional(c)
                    .await?)
        } else {
            None
        };
        if let Some(day) = day {
            book.moved(&available, -amount.0);
            return Ok(Ok(day));
        }
        if taken == 1 {
            on!(&mut *self, c =>
                sqlx::query("UPDATE ledger_accounts SET balance = balance + $2 WHERE id = $1")
                    .bind(available.id())
                    .bind(amount.0)
                    .execute(c)
                    .await?
                    .rows_affected());
        }
        self.refusal(user, key, &available).await.map(Err)
    }

    /// Why money was not given, most basic reason first.
    async fn refusal(
        &mut self,
        user: &UserId,
        key: &KeyId,
        available: &Account,
    ) -> Result<LedgerReply, DbError> {
        let sql = limits::caps_sql(self.kind());
        let row: Option<RawCaps> = on!(self, c =>
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(user.as_str())
                .bind(key.as_str())
                .bind(available.id())
                .fetch_optional(c)
                .await?);
        Ok(match row.as_ref().map(RawCaps::obstacle) {
            None | Some(Obstacle::Revoked) => LedgerReply::KeyRevoked,
            Some(Obstacle::Suspended) => LedgerReply::Suspended,
            Some(Obstacle::Cap(cap, remaining)) => LedgerReply::Budget { remaining, cap },
            Some(Obstacle::Balance(available)) => LedgerReply::Insufficient { available },
        })
    }

    async fn note(&mut self, note: &Note) -> Result<LedgerReply, DbError> {
        let checkpoint = note.checkpoint.as_ref().map(units_text).transpose()?;
        let done = on!(self, c =>
            sqlx::query(
                "UPDATE holds SET provision_id = $3, provider = $4, attempt = $5, accepted_at = $6,
                        checkpoint = COALESCE($7, checkpoint)
                 WHERE request_id = $1 AND epoch = $2 AND state = 'held'")
                .bind(note.request_id.as_str())
                .bind(note.epoch)
                .bind(note.provision_id.as_ref().map(cxmpute_wire::ProvisionId::as_str))
                .bind(note.provider.as_ref().map(UserId::as_str))
                .bind(i64::from(note.attempt))
                .bind(note.accepted_at.map(Timestamp::get))
                .bind(checkpoint)
                .execute(c)
                .await?
                .rows_affected());
        Ok(if done == 1 { LedgerReply::Done } else { LedgerReply::NotHeld })
    }

    async fn extend(
        &mut self,
        book: &mut Book,
        hold: &Extension<'_>,
        amount: MicroCredits,
    ) -> Result<LedgerReply, DbError> {
        if amount.0 < 0 {
            return Ok(LedgerReply::NotHeld);
        }
        // The step makes a repeated extension find nothing to do.
        let sql = "UPDATE holds SET amount = amount + $3, extensions = extensions + $4
                   WHERE request_id = $1 AND epoch = $2 AND state = 'held' AND extensions = $5 AND amount <= $6";
        let done = on!(&mut *self, c =>
            sqlx::query(sql)
                .bind(hold.request_id.as_str())
                .bind(hold.epoch)
                .bind(amount.0)
                .bind(1_i64)
                .bind(hold.step - 1)
                .bind(i64::MAX - amount.0)
                .execute(c)
                .await?
                .rows_affected());
        if done != 1 {
            let step: Option<i64> = on!(&mut *self, c =>
                sqlx::query_scalar("SELECT extensions FROM holds WHERE request_id = $1 AND state = 'held'")
                    .bind(hold.request_id.as_str())
                    .fetch_optional(c)
                    .await?);
            return Ok(if step == Some(hold.step) { LedgerReply::Done } else { LedgerReply::NotHeld });
        }
        let reserved = self.reserve(book, hold.user_id, hold.key_id, amount).await?;
        if let Err(refused) = reserved {
            on!(&mut *self, c =>
                sqlx::query(sql)
                    .bind(hold.request_id.as_str())
                    .bind(hold.epoch)
                    .bind(-amount.0)
                    .bind(-1_i64)
                    .bind(hold.step)
                    .bind(i64::MAX)
                    .execute(c)
                    .await?
                    .rows_affected());
            return Ok(refused);
        }
        if let Ok(day) = reserved {
            on!(&mut *self, c =>
                sqlx::query(limits::EXTENDED_SQL)
                    .bind(hold.request_id.as_str())
                    .bind(day)
                    .bind(amount.0)
                    .execute(c)
                    .await?
                    .rows_affected());
        }
        let postings = hold_postings(hold.user_id, amount).map_err(|e| DbError::impossible("holds", e))?;
        let line = TransactionLine {
            id: format!("extend:{}:{}", hold.request_id, hold.step),
            kind: "extend",
            request_id: hold.request_id.clone(),
            attempt: None,
            reason: "hold extended",
            at: hold.now,
        };
        book.enter(line, &postings);
        Ok(LedgerReply::Done)
    }

    /// Reads, decides, writes what it computed: two at a time both win, and one debit is lost.
    #[cfg(feature = "sabotage")]
    async fn admit_unguarded(
        &mut self,
        book: &mut Book,
        hold: &NewHold,
        seen: MicroCredits,
    ) -> Result<LedgerReply, DbError> {
        if seen < hold.amount {
            return Ok(LedgerReply::Insufficient { available: seen });
        }
        let available = Account::of(&hold.user_id, AccountKind::UserAvailable);
        on!(&mut *self, c =>
            sqlx::query("UPDATE ledger_accounts SET balance = $2 WHERE id = $1")
                .bind(available.id())
                .bind(seen.0 - hold.amount.0)
                .execute(c)
                .await?
                .rows_affected());
        on!(&mut *self, c =>
            sqlx::query("UPDATE api_keys SET held = held + $2 WHERE id = $1")
                .bind(hold.key_id.as_str())
                .bind(hold.amount.0)
                .execute(c)
                .await?
                .rows_affected());
        book.moved(&available, -hold.amount.0);
        enter_hold(book, hold, 0)?;
        Ok(LedgerReply::Done)
    }
}

/// Which hold is extended.
struct Extension<'a> {
    request_id: &'a RequestId,
    user_id: &'a UserId,
    key_id: &'a KeyId,
    epoch: i64,
    step: i64,
    now: Timestamp,
}

fn enter_hold(book: &mut Book, hold: &NewHold, day: i64) -> Result<(), DbError> {
    let postings = hold_postings(&hold.user_id, hold.amount).map_err(|e| DbError::impossible("holds", e))?;
    let price = serde_json::to_string(&*hold.price).map_err(|e| DbError::impossible("holds.price", e))?;
    let line = TransactionLine {
        id: format!("hold:{}", hold.request_id),
        kind: "hold",
        request_id: hold.request_id.clone(),
        attempt: None,
        reason: "request admitted",
        at: hold.created_at,
    };
    book.enter(line, &postings);
    book.admit(Box::new(hold.clone()), price, day);
    Ok(())
}
