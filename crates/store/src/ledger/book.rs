//! What a batch will write: rows gathered for a few wide statements, and balances moved once per account.

use std::collections::BTreeMap;
use std::sync::Arc;

use cxmpute_market::count::mismatches;
use cxmpute_market::ledger::{Account, AccountKind, Postings};
use cxmpute_market::price::PriceRow;
use cxmpute_wire::{KeyId, MicroCredits, RequestId, Timestamp, UserId};

use super::{AttemptRecord, NewHold, ResolveHold};
use crate::error::DbError;
use crate::lane::{Lane, values};
use crate::limits::RELEASE_SQL;

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

/// Rows and balances of one batch.
#[derive(Default)]
pub(super) struct Book<'a> {
    transactions: Vec<(TransactionLine, Postings)>,
    deltas: BTreeMap<Account, i128>,
    /// By key, and by the day from which the ended holds had taken.
    keys: BTreeMap<(&'a KeyId, i64), Spent>,
    /// Admitted requests, each with the place of its price in `prices` and the day to which its amount counts.
    holds: Vec<(&'a NewHold, usize, i64)>,
    prices: Vec<(&'a Arc<PriceRow>, String)>,
    attempts: Vec<(&'a RequestId, &'a AttemptRecord)>,
    flags: Vec<FlagLine<'a>>,
}

/// What the ended requests of one key and day change.
#[derive(Default)]
struct Spent {
    held: i128,
    posted: i128,
    /// What goes back to the day and to its month.
    day: i128,
    month: i128,
}

/// From which day a hold took its money, and how much of it before that day and before that day's month.
#[derive(Clone, Copy)]
pub(super) struct Taken {
    pub(super) day: i64,
    pub(super) day_base: i64,
    pub(super) month_base: i64,
}

struct FlagLine<'a> {
    request_id: &'a RequestId,
    provision_id: Option<&'a str>,
    unit: &'static str,
    counted: i64,
    claimed: i64,
    at: Timestamp,
}

/// Counts are stored as i64; an absurd claim is stored as the largest one.
fn stored(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl<'a> Book<'a> {
    /// Enters a transaction; its rows are written by [`Book::flush`], its balances by [`Book::flush`] or earlier.
    pub(super) fn enter(&mut self, transaction: TransactionLine, postings: Postings) {
        for line in postings.lines() {
            *self.deltas.entry(line.account.clone()).or_default() += i128::from(line.amount.0);
        }
        self.transactions.push((transaction, postings));
    }

    /// A balance that a guarded statement has moved already.
    pub(super) fn moved(&mut self, account: &Account, by: i64) {
        *self.deltas.entry(account.clone()).or_default() -= i128::from(by);
    }

    /// A hold of the key ended, and this much of it was spent. The rest goes back to the day and month from which the
    /// hold took it.
    pub(super) fn spend(&mut self, key: &'a KeyId, held: MicroCredits, posted: MicroCredits, taken: Taken) {
        let spent = self.keys.entry((key, taken.day)).or_default();
        spent.held += i128::from(held.0);
        spent.posted += i128::from(posted.0);
        let back = held.0 - posted.0;
        spent.day += i128::from(back.min(held.0 - taken.day_base));
        spent.month += i128::from(back.min(held.0 - taken.month_base));
    }

    /// Keeps the rows of an admitted request.
    pub(super) fn admit(&mut self, hold: &'a NewHold, day: i64) -> Result<(), DbError> {
        let known = self.prices.iter().rposition(|(price, _)| Arc::ptr_eq(price, &hold.price));
        let price = match known {
            Some(place) => place,
            None => {
                let text =
                    serde_json::to_string(&*hold.price).map_err(|e| DbError::impossible("holds.price", e))?;
                self.prices.push((&hold.price, text));
                self.prices.len() - 1
            }
        };
        self.holds.push((hold, price, day));
        Ok(())
    }

    /// Keeps the attempts and flags of a resolved request.
    pub(super) fn resolve(&mut self, end: &'a ResolveHold) {
        self.attempts.extend(end.attempts.iter().map(|record| (&end.request_id, record)));
        let flags = end.claimed.as_ref().map(|claimed| mismatches(&end.counted, claimed)).unwrap_or_default();
        for flag in flags {
            self.flags.push(FlagLine {
                request_id: &end.request_id,
                provision_id: end.provision_id.as_ref().map(cxmpute_wire::ProvisionId::as_str),
                unit: flag.unit,
                counted: stored(flag.counted),
                claimed: stored(flag.claimed),
                at: end.now,
            });
        }
    }

    /// Writes one account's balance now, for statements that look at it later in the batch.
    pub(super) async fn settle_account(
        &mut self,
        lane: &mut impl Lane,
        account: &Account,
    ) -> Result<(), DbError> {
        match self.deltas.remove(account) {
            Some(delta) => move_balance(lane, account, delta).await,
            None => Ok(()),
        }
    }

    /// Writes one key's figures now, for statements that look at them later in the batch.
    pub(super) async fn settle_key(&mut self, lane: &mut impl Lane, key: &KeyId) -> Result<(), DbError> {
        let places: Vec<_> = self.keys.keys().filter(|(of, _)| *of == key).copied().collect();
        for place in places {
            if let Some(spent) = self.keys.remove(&place) {
                move_key(lane, place, &spent).await?;
            }
        }
        Ok(())
    }

    /// Writes what can be spent of a payer whose operations are all done, so that its rows are locked in its turn.
    pub(super) async fn settle_payer(&mut self, lane: &mut impl Lane, payer: &UserId) -> Result<(), DbError> {
        self.settle_account(lane, &Account::of(payer, AccountKind::UserAvailable)).await?;
        for (place, spent) in std::mem::take(&mut self.keys) {
            move_key(lane, place, &spent).await?;
        }
        Ok(())
    }

    /// Writes everything that is left, balances last and in the order of their ids.
    pub(super) async fn flush(self, lane: &mut impl Lane) -> Result<(), DbError> {
        self.insert(lane).await?;
        for (account, delta) in self.deltas {
            move_balance(lane, &account, delta).await?;
        }
        Ok(())
    }

    async fn insert(&self, lane: &mut impl Lane) -> Result<(), DbError> {
        let rows: Vec<_> = self
            .holds
            .iter()
            .map(|(hold, price, day)| hold_row(hold, &self.prices[*price].1, *day))
            .collect();
        lane.insert(
            "INSERT INTO holds (request_id, user_id, key_id, state, amount, price, replica, epoch, spend_day, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)",
            &rows,
        )
        .await?;
        let rows: Vec<_> = self.holds.iter().map(|(hold, ..)| request_row(hold)).collect();
        lane.insert(
            "INSERT INTO requests (id, user_id, key_id, route, model, service, streamed, title, referer, price_id,
                price_version, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            &rows,
        )
        .await?;
        let rows: Vec<_> = self.transactions.iter().map(|(line, _)| transaction_row(line)).collect();
        lane.insert(
            "INSERT INTO ledger_transactions (id, kind, request_id, attempt, actor, reason, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            &rows,
        )
        .await?;
        let postings = self.transactions.iter().flat_map(|(line, postings)| {
            postings.lines().iter().map(|posting| values![&line.id, posting.account.id(), posting.amount.0])
        });
        let rows: Vec<_> = postings.collect();
        lane.insert("INSERT INTO postings (tx, account, amount) VALUES ($1, $2, $3)", &rows).await?;
        let rows: Vec<_> =
            self.attempts.iter().map(|(request, record)| attempt_row(request, record)).collect();
        lane.insert(
            "INSERT INTO attempts (request_id, attempt, provision_id, epoch, outcome, code, accept_ms,
                first_token_ms, total_ms)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            &rows,
        )
        .await?;
        let rows: Vec<_> = self.flags.iter().map(flag_row).collect();
        lane.insert(
            "INSERT INTO flags (request_id, unit, provision_id, counted, claimed, created_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
            &rows,
        )
        .await
    }
}

fn hold_row<'r>(hold: &'r NewHold, price: &'r str, day: i64) -> [crate::lane::Value<'r>; 10] {
    values![
        hold.request_id.as_str(),
        hold.user_id.as_str(),
        hold.key_id.as_str(),
        "held",
        hold.amount.0,
        price,
        &*hold.replica,
        hold.epoch,
        day,
        hold.created_at.0,
    ]
}

fn request_row(hold: &NewHold) -> [crate::lane::Value<'_>; 12] {
    values![
        hold.request_id.as_str(),
        hold.user_id.as_str(),
        hold.key_id.as_str(),
        hold.route.as_str(),
        hold.model.as_str(),
        hold.service.as_str(),
        i64::from(hold.streamed),
        hold.title.as_deref(),
        hold.referer.as_deref(),
        hold.price.id.as_str(),
        hold.price.version,
        hold.created_at.0,
    ]
}

fn transaction_row(line: &TransactionLine) -> [crate::lane::Value<'_>; 7] {
    values![
        line.id.as_str(),
        line.kind,
        line.request_id.as_str(),
        line.attempt.map(i64::from),
        "gateway",
        line.reason,
        line.at.0,
    ]
}

fn attempt_row<'r>(request: &'r RequestId, record: &'r AttemptRecord) -> [crate::lane::Value<'r>; 9] {
    values![
        request.as_str(),
        i64::from(record.attempt),
        record.provision_id.as_str(),
        record.epoch.0,
        record.outcome.as_str(),
        record.code.as_deref(),
        record.accept.map(|span| stored(span.0)),
        record.first_token.map(|span| stored(span.0)),
        record.total.map(|span| stored(span.0)),
    ]
}

fn flag_row<'r>(line: &'r FlagLine<'_>) -> [crate::lane::Value<'r>; 6] {
    values![line.request_id.as_str(), line.unit, line.provision_id, line.counted, line.claimed, line.at.0,]
}

/// The balances from which an account can move by `delta` without breaking its bound.
pub(super) fn bounds(account: &Account, delta: i64) -> (i64, i64) {
    let least = if account.kind().may_be_negative() { i64::MIN } else { 0 };
    (least.saturating_sub(delta.min(0)), i64::MAX - delta.max(0))
}

/// Moves a balance whose bounds the caller has made sure of; anything else is a fault of the program.
async fn move_balance(lane: &mut impl Lane, account: &Account, delta: i128) -> Result<(), DbError> {
    if delta == 0 {
        return Ok(());
    }
    let refused =
        || DbError::impossible("ledger_accounts", format!("{} cannot move by {delta}", account.id()));
    let delta = i64::try_from(delta).map_err(|_| refused())?;
    let (least, most) = bounds(account, delta);
    let done = lane
        .execute(
            "UPDATE ledger_accounts SET balance = balance + $1 WHERE id = $2 AND balance BETWEEN $3 AND $4",
            &values![delta, account.id(), least, most],
        )
        .await?;
    if done == 1 { Ok(()) } else { Err(refused()) }
}

/// Gives held money back to a key's budget and to the period it came from unless that is over, and notes what was
/// spent.
async fn move_key(lane: &mut impl Lane, (key, day): (&KeyId, i64), spent: &Spent) -> Result<(), DbError> {
    let fits = |sum: i128| {
        i64::try_from(sum).map_err(|_| DbError::impossible("api_keys", format!("{key} moves by {sum}")))
    };
    lane.execute(
        RELEASE_SQL,
        &values![
            key.as_str(),
            fits(spent.held)?,
            fits(spent.posted)?,
            day,
            fits(spent.day)?,
            fits(spent.month)?,
        ],
    )
    .await?;
    Ok(())
}
