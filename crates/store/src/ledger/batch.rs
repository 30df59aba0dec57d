//! One transaction for many operations (D3): the guarded statement of each, then a few wide inserts, then one
//! commit. Order: by payer, then money in before money out, then the shared accounts by id; every replica locks in
//! that order.

use cxmpute_market::ledger::{Account, AccountKind, hold_postings};
use cxmpute_wire::{KeyId, MicroCredits, RequestId, Timestamp, UserId};

use super::book::{Book, TransactionLine};
use super::resolve::{resolve, units_text};
use super::{LedgerOp, LedgerReply, MoveHold, NewHold, Note, allowance};
use crate::db::{Db, Tx, on};
use crate::error::DbError;
use crate::lane::{Lane, values};
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
    /// nothing and does not disturb the others. On SQLite it happens also when the future is dropped.
    ///
    /// # Errors
    /// The whole batch failed.
    pub async fn apply(&self, ops: &[LedgerOp]) -> Result<Vec<LedgerReply>, BatchError> {
        if let Self::Sqlite(db) = self {
            let turn = db.turn().await.map_err(BatchError::Undone)?;
            return db.committer.apply(ops.to_vec(), turn).await;
        }
        let mut tx = self.begin().await.map_err(BatchError::Undone)?;
        let replies = tx.apply(ops).await.map_err(BatchError::Undone)?;
        tx.commit().await.map_err(BatchError::Unknown)?;
        Ok(replies)
    }

    /// Whether a request was admitted: the outcome of an admission whose commit failed.
    ///
    /// # Errors
    /// The store failed.
    pub async fn is_admitted(&self, request: &RequestId) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let found: Option<i64> = on!(&mut tx, c =>
            sqlx::query_scalar("SELECT created_at FROM ledger_transactions WHERE id = 'hold:' || $1")
                .bind(request.as_str())
                .fetch_optional(c)
                .await?);
        Ok(found.is_some())
    }
}

impl Tx {
    pub(super) async fn apply(&mut self, ops: &[LedgerOp]) -> Result<Vec<LedgerReply>, DbError> {
        apply_batch(self, ops).await
    }
}

/// Runs the operations within an open transaction.
pub(crate) async fn apply_batch(lane: &mut impl Lane, ops: &[LedgerOp]) -> Result<Vec<LedgerReply>, DbError> {
    let mut order: Vec<usize> = (0..ops.len()).collect();
    order.sort_by(|a, b| {
        let key = |n: usize| (ops[n].payer(), ops[n].rank(), ops[n].key());
        key(*a).cmp(&key(*b))
    });
    let mut replies = vec![LedgerReply::NotHeld; ops.len()];
    let mut book = Book::default();
    let mut rest = &order[..];
    while let Some((&n, later)) = rest.split_first() {
        rest = later;
        replies[n] = match &ops[n] {
            LedgerOp::Admit(_) => {
                let alike = 1 + later.iter().take_while(|m| ops[n].is_admitted_like(&ops[**m])).count();
                let (now, later) = order[order.len() - later.len() - 1..].split_at(alike);
                rest = later;
                admit_all(lane, &mut book, ops, now, &mut replies).await?;
                replies[n]
            }
            LedgerOp::Note(note) => write_note(lane, note).await?,
            LedgerOp::Move(to) => move_hold(lane, &mut book, to).await?,
            LedgerOp::Resolve(end) => resolve(lane, &mut book, end).await?,
            LedgerOp::Take(wish) => allowance::take(lane, &mut book, wish).await?,
            LedgerOp::Charge(charge) => allowance::charge(lane, &mut book, charge).await?,
            LedgerOp::Graduate(graduation) => allowance::graduate(lane, &mut book, graduation).await?,
            LedgerOp::Return(allowance, now) => {
                allowance::give_back(lane, &mut book, allowance, *now).await?
            }
            LedgerOp::Extend { request_id, user_id, key_id, epoch, step, amount, now } => {
                let hold = Extension { request_id, user_id, key_id, epoch: *epoch, step: *step, now: *now };
                extend(lane, &mut book, &hold, *amount).await?
            }
            #[cfg(feature = "sabotage")]
            LedgerOp::AdmitUnguarded(hold, seen) => admit_unguarded(lane, &mut book, hold, *seen).await?,
        };
        if rest.first().is_none_or(|next| ops[*next].payer() != ops[n].payer()) {
            book.settle_payer(lane, ops[n].payer()).await?;
        }
    }
    book.flush(lane).await?;
    Ok(replies)
}

/// Admits requests of one account and key: all by the same guarded statements when the money covers all of them, which
/// is then exactly as if each had been asked for, else one by one.
async fn admit_all<'a>(
    lane: &mut impl Lane,
    book: &mut Book<'a>,
    ops: &'a [LedgerOp],
    places: &[usize],
    replies: &mut [LedgerReply],
) -> Result<(), DbError> {
    let holds: Vec<(usize, &NewHold)> = places
        .iter()
        .filter_map(|n| match &ops[*n] {
            LedgerOp::Admit(hold) => Some((*n, &**hold)),
            _ => None,
        })
        .collect();
    let [(_, first), ..] = &holds[..] else { return Ok(()) };
    let together = holds.iter().try_fold(0_i64, |sum, (_, hold)| {
        // A negative amount is refused by its own row; it must not pay for the others here.
        if hold.amount.0 < 0 { None } else { sum.checked_add(hold.amount.0) }
    });
    if let Some(together) = together.filter(|_| holds.len() > 1)
        && let Ok(day) = reserve(lane, book, &first.user_id, &first.key_id, MicroCredits(together)).await?
    {
        for (n, hold) in holds {
            enter_hold(book, hold, day)?;
            replies[n] = LedgerReply::Done;
        }
        return Ok(());
    }
    for (n, hold) in holds {
        replies[n] = match reserve(lane, book, &hold.user_id, &hold.key_id, hold.amount).await? {
            Err(refused) => refused,
            Ok(day) => {
                enter_hold(book, hold, day)?;
                LedgerReply::Done
            }
        };
    }
    Ok(())
}

/// Takes the money: account first, then key, each by one guarded statement; what the first took is given back when the
/// second refuses. Returns the day to which it counts.
pub(super) async fn reserve(
    lane: &mut impl Lane,
    book: &mut Book<'_>,
    user: &UserId,
    key: &KeyId,
    amount: MicroCredits,
) -> Result<Result<i64, LedgerReply>, DbError> {
    let available = Account::of(user, AccountKind::UserAvailable);
    book.settle_account(lane, &available).await?;
    book.settle_key(lane, key).await?;
    let taken = lane
        .execute(
            "UPDATE ledger_accounts SET balance = balance - $1 WHERE id = $2 AND balance >= $1",
            &values![amount.0, available.id()],
        )
        .await?;
    let day = if taken == 1 { limits::reserve(lane, user, key, amount).await? } else { None };
    if let Some(day) = day {
        book.moved(&available, -amount.0);
        return Ok(Ok(day));
    }
    if taken == 1 {
        lane.execute(
            "UPDATE ledger_accounts SET balance = balance + $1 WHERE id = $2",
            &values![amount.0, available.id()],
        )
        .await?;
    }
    refusal(lane, user, key, &available).await.map(Err)
}

/// Why money was not given, most basic reason first.
async fn refusal(
    lane: &mut impl Lane,
    user: &UserId,
    key: &KeyId,
    available: &Account,
) -> Result<LedgerReply, DbError> {
    let sql = limits::caps_sql(lane.kind());
    let row = lane.row(sql, &values![user.as_str(), key.as_str(), available.id()]).await?;
    Ok(match row.map(|row| RawCaps::from(row).obstacle()) {
        None | Some(Obstacle::Revoked) => LedgerReply::KeyRevoked,
        Some(Obstacle::Suspended) => LedgerReply::Suspended,
        Some(Obstacle::Cap(cap, remaining)) => LedgerReply::Budget { remaining, cap },
        Some(Obstacle::Balance(available)) => LedgerReply::Insufficient { available },
    })
}

async fn write_note(lane: &mut impl Lane, note: &Note) -> Result<LedgerReply, DbError> {
    let checkpoint = note.checkpoint.as_ref().map(units_text).transpose()?;
    let done = lane
        .execute(
            "UPDATE holds SET provision_id = $1, provider = $2, attempt = $3, accepted_at = $4,
                    checkpoint = COALESCE($5, checkpoint)
             WHERE request_id = $6 AND epoch = $7",
            &values![
                note.provision_id.as_ref().map(cxmpute_wire::ProvisionId::as_str),
                note.provider.as_ref().map(UserId::as_str),
                i64::from(note.attempt),
                note.accepted_at.map(Timestamp::get),
                checkpoint.as_deref(),
                note.request_id.as_str(),
                note.epoch,
            ],
        )
        .await?;
    Ok(if done == 1 { LedgerReply::Done } else { LedgerReply::NotHeld })
}

/// Called only while nothing of the request was delivered, so what an earlier attempt noted is void.
async fn move_hold<'a>(
    lane: &mut impl Lane,
    book: &mut Book<'a>,
    to: &'a MoveHold,
) -> Result<LedgerReply, DbError> {
    let done = lane
        .execute(
            "UPDATE holds SET model = $1, service = $2, price_id = $3, price_version = $4, provision_id = NULL,
                    provider = NULL, checkpoint = NULL
             WHERE request_id = $5 AND epoch = $6",
            &values![
                to.model.as_str(),
                to.service.as_str(),
                to.price.id.as_str(),
                to.price.version,
                to.request_id.as_str(),
                to.epoch,
            ],
        )
        .await?;
    if done != 1 {
        return Ok(LedgerReply::NotHeld);
    }
    book.pin(&to.price);
    Ok(LedgerReply::Done)
}

async fn extend<'a>(
    lane: &mut impl Lane,
    book: &mut Book<'a>,
    hold: &Extension<'a>,
    amount: MicroCredits,
) -> Result<LedgerReply, DbError> {
    if amount.0 < 0 {
        return Ok(LedgerReply::NotHeld);
    }
    // The step makes a repeated extension find nothing to do.
    let sql = "UPDATE holds SET amount = amount + $1, extensions = extensions + $2
               WHERE request_id = $3 AND epoch = $4 AND extensions = $5 AND amount <= $6";
    let request = hold.request_id.as_str();
    let most = i64::MAX - amount.0;
    let done = lane.execute(sql, &values![amount.0, 1, request, hold.epoch, hold.step - 1, most]).await?;
    if done != 1 {
        let step =
            lane.row::<1>("SELECT extensions FROM holds WHERE request_id = $1", &values![request]).await?;
        return Ok(if step == Some([Some(hold.step)]) { LedgerReply::Done } else { LedgerReply::NotHeld });
    }
    let day = match reserve(lane, book, hold.user_id, hold.key_id, amount).await? {
        Ok(day) => day,
        Err(refused) => {
            lane.execute(sql, &values![-amount.0, -1, request, hold.epoch, hold.step, i64::MAX]).await?;
            return Ok(refused);
        }
    };
    lane.execute(limits::EXTENDED_SQL, &values![request, day, amount.0]).await?;
    let postings = hold_postings(hold.user_id, amount).map_err(|e| DbError::impossible("holds", e))?;
    let line = TransactionLine {
        id: format!("extend:{}:{}", hold.request_id, hold.step),
        kind: "extend",
        request_id: Some(hold.request_id),
        attempt: None,
        reason: "hold extended",
        at: hold.now,
    };
    book.enter(line, postings);
    Ok(LedgerReply::Done)
}

/// Reads, decides, writes what it computed: two at a time both win, and one debit is lost.
#[cfg(feature = "sabotage")]
async fn admit_unguarded<'a>(
    lane: &mut impl Lane,
    book: &mut Book<'a>,
    hold: &'a NewHold,
    seen: MicroCredits,
) -> Result<LedgerReply, DbError> {
    if seen < hold.amount {
        return Ok(LedgerReply::Insufficient { available: seen });
    }
    let available = Account::of(&hold.user_id, AccountKind::UserAvailable);
    lane.execute(
        "UPDATE ledger_accounts SET balance = $1 WHERE id = $2",
        &values![seen.0 - hold.amount.0, available.id()],
    )
    .await?;
    lane.execute(
        "UPDATE api_keys SET held = held + $1 WHERE id = $2",
        &values![hold.amount.0, hold.key_id.as_str()],
    )
    .await?;
    book.moved(&available, -hold.amount.0);
    enter_hold(book, hold, 0)?;
    Ok(LedgerReply::Done)
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

fn enter_hold<'a>(book: &mut Book<'a>, hold: &'a NewHold, day: i64) -> Result<(), DbError> {
    enter_admission(book, hold)?;
    book.admit(hold, day);
    Ok(())
}

/// The line of a hold.
pub(super) fn enter_admission<'a>(book: &mut Book<'a>, hold: &'a NewHold) -> Result<(), DbError> {
    let postings = hold_postings(&hold.user_id, hold.amount).map_err(|e| DbError::impossible("holds", e))?;
    let line = TransactionLine {
        id: format!("hold:{}", hold.request_id),
        kind: "hold",
        request_id: Some(&hold.request_id),
        attempt: None,
        reason: "request admitted",
        at: hold.created_at,
    };
    book.enter(line, postings);
    Ok(())
}
