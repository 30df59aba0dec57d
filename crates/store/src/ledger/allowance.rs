//! Allowances: money that a replica takes from an account and key beforehand, by the same guarded statements as a hold,
//! so that the requests of a busy key are admitted in memory (DESIGN D4). A request takes its money out of one when it
//! ends, or gets a hold of its own when it lasts.

use std::sync::Arc;

use cxmpute_market::ledger::{Account, AccountKind, Bill, Postings, hold_postings, settle_postings};
use cxmpute_wire::{KeyId, MicroCredits, Timestamp, UserId};

use super::batch::{enter_admission, reserve};
use super::book::{Book, Taken, TransactionLine};
use super::resolve::resolved_before;
use super::{LedgerReply, NewHold, ResolveHold};
use crate::error::DbError;
use crate::lane::{Lane, values};
use crate::limits::{self, Obstacle, RawCaps};

/// No allowance takes more than this part of what the account and the key may still spend: what others need stays there.
const PART: i64 = 20;

/// Whose money, in whose hands. The replica's epoch is the fence: who was thought dead changes nothing any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowance {
    /// Unique.
    pub id: Arc<str>,
    /// Who pays.
    pub user_id: UserId,
    /// With which key; its limits bind the allowance as they bind a hold.
    pub key_id: KeyId,
    /// Replica that spends it.
    pub replica: Arc<str>,
    /// Its epoch.
    pub epoch: i64,
}

/// An allowance that is wanted.
#[derive(Debug, Clone)]
pub struct Wish {
    /// The new allowance.
    pub allowance: Allowance,
    /// This much, or a twentieth of what is left to spend, whichever is smaller …
    pub wanted: MicroCredits,
    /// … but nothing when that is less than this.
    pub least: MicroCredits,
    /// Now.
    pub now: Timestamp,
}

/// The end of a request that was admitted out of an allowance.
#[derive(Debug, Clone)]
pub struct Charge {
    /// The allowance.
    pub allowance: Arc<Allowance>,
    /// The end; its hold was one in memory.
    pub end: Arc<ResolveHold>,
    /// It was tried before, and the outcome is unknown.
    pub repeated: bool,
}

/// A request that was admitted out of an allowance and lasts.
#[derive(Debug, Clone)]
pub struct Graduation {
    /// The allowance.
    pub allowance: Arc<Allowance>,
    /// The hold it gets, with the amount that it has of the allowance.
    pub hold: Arc<NewHold>,
}

/// Takes the money of an allowance.
pub(super) async fn take<'a>(
    lane: &mut impl Lane,
    book: &mut Book<'a>,
    wish: &'a Wish,
) -> Result<LedgerReply, DbError> {
    let Wish { allowance, .. } = wish;
    let (user, key) = (&allowance.user_id, &allowance.key_id);
    let available = Account::of(user, AccountKind::UserAvailable);
    book.settle_account(lane, &available).await?;
    book.settle_key(lane, key).await?;
    // How much is only a wish; whether it is there is decided by the guarded statements.
    let caps = limits::caps_sql(lane.kind());
    let row = lane.row(caps, &values![user.as_str(), key.as_str(), available.id()]).await?;
    let spare = match row.map(|row| RawCaps::from(row).obstacle()) {
        None | Some(Obstacle::Revoked) => return Ok(LedgerReply::KeyRevoked),
        Some(Obstacle::Suspended) => return Ok(LedgerReply::Suspended),
        Some(Obstacle::Cap(_, left) | Obstacle::Balance(left)) => left,
    };
    let amount = MicroCredits(wish.wanted.0.min(spare.0 / PART));
    if amount.0 <= 0 || amount < wish.least {
        return Ok(LedgerReply::Insufficient { available: spare });
    }
    let day = match reserve(lane, book, user, key, amount).await? {
        Ok(day) => day,
        Err(refused) => return Ok(refused),
    };
    lane.execute(
        "INSERT INTO allowances (id, user_id, key_id, replica, epoch, amount, spend_day, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        &values![
            &*allowance.id,
            user.as_str(),
            key.as_str(),
            &*allowance.replica,
            allowance.epoch,
            amount.0,
            day,
            wish.now.0,
        ],
    )
    .await?;
    let postings = hold_postings(user, amount).map_err(|e| DbError::impossible("allowances", e))?;
    book.enter(
        line(format!("allowance:{}", allowance.id), "allowance", "taken beforehand", wish.now),
        postings,
    );
    Ok(LedgerReply::Taken { amount })
}

/// Ends a request out of an allowance: what it costs leaves the allowance, everything else stays there.
pub(super) async fn charge<'a>(
    lane: &mut impl Lane,
    book: &mut Book<'a>,
    charge: &'a Charge,
) -> Result<LedgerReply, DbError> {
    let Charge { allowance, end, repeated } = charge;
    if *repeated {
        let before = resolved_before(lane, end).await?;
        if before != LedgerReply::NotHeld {
            return Ok(before);
        }
    }
    let bill = end.bill().map_err(|e| DbError::impossible("allowances", e))?;
    let Some(drawn) = book.allowance(lane, allowance).await?.filter(|_| bill.posted.0 <= end.held.0) else {
        return Ok(LedgerReply::NotHeld);
    };
    let day = drawn.day;
    if !drawn.draw(bill.posted) {
        return Ok(LedgerReply::NotHeld);
    }
    // Only the cost was ever bound for this request in the store.
    let bound = Bill { refund: MicroCredits::ZERO, ..bill };
    let postings = settle_postings(&allowance.user_id, end.provider.as_ref(), bill.posted, &bound)
        .map_err(|e| DbError::impossible("postings", e))?;
    let state = end.state();
    let line = TransactionLine {
        id: format!("resolve:{}", end.hold.request_id),
        kind: if state == "posted" { "settle" } else { "void" },
        request_id: Some(&end.hold.request_id),
        attempt: end.attempts.last().map(|attempt| attempt.attempt),
        reason: end.end.as_str(),
        at: end.now,
    };
    book.enter(line, postings);
    let taken = Taken { day, day_base: 0, month_base: 0 };
    book.spend(&allowance.key_id, bill.posted, bill.posted, taken);
    book.pin(&end.hold.price);
    book.resolve(end, state, bill.into(), taken, Some(&allowance.id))?;
    Ok(LedgerReply::Resolved(bill.into()))
}

/// Gives a request a hold of its own: out of the allowance and bound anew, in one.
pub(super) async fn graduate<'a>(
    lane: &mut impl Lane,
    book: &mut Book<'a>,
    graduation: &'a Graduation,
) -> Result<LedgerReply, DbError> {
    let Graduation { allowance, hold } = graduation;
    let Some(drawn) = book.allowance(lane, allowance).await? else { return Ok(LedgerReply::NotHeld) };
    let day = drawn.day;
    if !drawn.draw(hold.amount) {
        return Ok(LedgerReply::NotHeld);
    }
    if hold.amount.0 > 0 {
        let id = format!("return:{}:{}", allowance.id, hold.request_id);
        let back = back_postings(&allowance.user_id, hold.amount)?;
        book.enter(line(id, "return", "a request got its own hold", hold.created_at), back);
    }
    enter_admission(book, hold)?;
    book.admit_now(lane, hold, day).await?;
    Ok(LedgerReply::Done)
}

/// Gives back what is left of an allowance.
pub(super) async fn give_back<'a>(
    lane: &mut impl Lane,
    book: &mut Book<'a>,
    allowance: &'a Allowance,
    now: Timestamp,
) -> Result<LedgerReply, DbError> {
    book.settle_allowance(lane, &allowance.id).await?;
    let Some(drawn) = book.allowance(lane, allowance).await?.copied() else {
        return Ok(LedgerReply::NotHeld);
    };
    book.settle_allowance(lane, &allowance.id).await?;
    let done = lane
        .execute(
            "DELETE FROM allowances WHERE id = $1 AND replica = $2 AND epoch = $3 AND amount = $4",
            &values![&*allowance.id, &*allowance.replica, allowance.epoch, drawn.left],
        )
        .await?;
    if done != 1 {
        return Err(DbError::impossible("allowances", format!("{} changed under its lock", allowance.id)));
    }
    if drawn.left > 0 {
        let left = MicroCredits(drawn.left);
        let back = back_postings(&allowance.user_id, left)?;
        book.enter(line(format!("return:{}", allowance.id), "return", "what was left", now), back);
        let taken = Taken { day: drawn.day, day_base: 0, month_base: 0 };
        book.spend(&allowance.key_id, left, MicroCredits::ZERO, taken);
    }
    Ok(LedgerReply::Done)
}

fn back_postings(user: &UserId, amount: MicroCredits) -> Result<Postings, DbError> {
    let lines = [
        (Account::of(user, AccountKind::UserHeld), MicroCredits(-amount.0)),
        (Account::of(user, AccountKind::UserAvailable), amount),
    ];
    Postings::new(lines).map_err(|e| DbError::impossible("allowances", e))
}

/// A line that belongs to no single request.
fn line<'a>(id: String, kind: &'static str, reason: &'static str, at: Timestamp) -> TransactionLine<'a> {
    TransactionLine { id, kind, request_id: None, attempt: None, reason, at }
}
