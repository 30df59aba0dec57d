//! What a batch will write: rows gathered for a few wide statements, and balances moved once per account.

use std::collections::BTreeMap;
use std::sync::Arc;

use cxmpute_market::count::mismatches;
use cxmpute_market::ledger::{Account, AccountKind, Postings};
use cxmpute_market::price::PriceRow;
use cxmpute_wire::{KeyId, MicroCredits, RequestId, Timestamp, UserId};

use super::resolve::units_text;
use super::rows::{
    Ended, FlagLine, HOLD_SQL, attempt_row, flag_row, hold_row, only_attempt, request_row, stored,
    transaction_row,
};
use super::{Allowance, NewHold, ResolveHold, Settled};
use crate::db::DbKind;
use crate::error::DbError;
use crate::lane::{Lane, values};
use crate::limits::RELEASE_SQL;

/// A row of `ledger_transactions`.
pub(super) struct TransactionLine<'a> {
    /// Business key.
    pub(super) id: String,
    /// `hold`, `extend`, `settle`, `void`, `allowance` or `return`.
    pub(super) kind: &'static str,
    /// The request, if it is one's.
    pub(super) request_id: Option<&'a RequestId>,
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
    transactions: Vec<(TransactionLine<'a>, Postings)>,
    deltas: BTreeMap<Account, i128>,
    /// By key, and by the day from which the ended holds had taken.
    keys: BTreeMap<(&'a KeyId, i64), Spent>,
    /// Admitted requests, each with the day to which its amount counts.
    holds: Vec<(&'a NewHold, i64)>,
    /// Prices that holds of this batch are pinned to.
    prices: Vec<&'a Arc<PriceRow>>,
    ends: Vec<Ended<'a>>,
    /// Allowances that this batch has locked; `None` for one that is not there as its replica believes.
    allowances: BTreeMap<&'a str, Option<Drawn>>,
    flags: Vec<FlagLine<'a>>,
}

/// A locked allowance: what is left of it, and how much of that is not written yet.
#[derive(Clone, Copy)]
pub(super) struct Drawn {
    pub(super) left: i64,
    pub(super) day: i64,
    unwritten: i64,
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

impl<'a> Book<'a> {
    /// Enters a transaction; its row is written by [`Book::flush`], its balances by [`Book::flush`] or earlier.
    pub(super) fn enter(&mut self, transaction: TransactionLine<'a>, postings: Postings) {
        for line in postings.lines() {
            let amount = i128::from(line.amount.0);
            match self.deltas.get_mut(&line.account) {
                Some(delta) => *delta += amount,
                None => {
                    self.deltas.insert(line.account.clone(), amount);
                }
            }
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

    /// Keeps the row of an admitted request.
    pub(super) fn admit(&mut self, hold: &'a NewHold, day: i64) {
        self.pin(&hold.price);
        self.holds.push((hold, day));
    }

    /// A hold names its price; the row that it means must be there.
    pub(super) fn pin(&mut self, price: &'a Arc<PriceRow>) {
        if !self.prices.iter().any(|known| Arc::ptr_eq(known, price)) {
            self.prices.push(price);
        }
    }

    /// Writes the row of a hold now, for operations of the same batch that change it.
    pub(super) async fn admit_now(
        &mut self,
        lane: &mut impl Lane,
        hold: &'a NewHold,
        day: i64,
    ) -> Result<(), DbError> {
        self.pin(&hold.price);
        lane.insert(HOLD_SQL, &[hold_row(hold, day)]).await
    }

    /// The allowance, locked; `None` when it is not there as its replica believes.
    pub(super) async fn allowance(
        &mut self,
        lane: &mut impl Lane,
        allowance: &'a Allowance,
    ) -> Result<Option<&mut Drawn>, DbError> {
        if !self.allowances.contains_key(&*allowance.id) {
            let sql = match lane.kind() {
                DbKind::Postgres => {
                    "SELECT amount, spend_day FROM allowances WHERE id = $1 AND replica = $2 AND epoch = $3 FOR UPDATE"
                }
                // There the whole transaction is the lock.
                DbKind::Sqlite => {
                    "SELECT amount, spend_day FROM allowances WHERE id = $1 AND replica = $2 AND epoch = $3"
                }
            };
            let values = values![&*allowance.id, &*allowance.replica, allowance.epoch];
            let row = lane.row::<2>(sql, &values).await?;
            let drawn = row.map(|row| {
                let [left, day] = row.map(Option::unwrap_or_default);
                Drawn { left, day, unwritten: 0 }
            });
            self.allowances.insert(&allowance.id, drawn);
        }
        Ok(self.allowances.get_mut(&*allowance.id).and_then(Option::as_mut))
    }

    /// Writes what was drawn of an allowance now and forgets it; the next look reads it anew.
    pub(super) async fn settle_allowance(
        &mut self,
        lane: &mut impl Lane,
        id: &'a str,
    ) -> Result<(), DbError> {
        match self.allowances.remove(id).flatten() {
            Some(drawn) => lower_allowance(lane, id, &drawn).await,
            None => Ok(()),
        }
    }

    /// Keeps the row, the attempts and the flags of a resolved request.
    pub(super) fn resolve(
        &mut self,
        end: &'a ResolveHold,
        state: &'static str,
        settled: Settled,
        taken: Taken,
        allowance: Option<&'a str>,
    ) -> Result<(), DbError> {
        let claimed = end.claimed.as_ref().map(units_text).transpose()?;
        self.ends.push(Ended { end, state, settled, taken, claimed, allowance });
        let flags = end.claimed.as_ref().map(|claimed| mismatches(&end.counted, claimed)).unwrap_or_default();
        for flag in flags {
            self.flags.push(FlagLine {
                request_id: &end.hold.request_id,
                provision_id: end.provision_id.as_ref().map(cxmpute_wire::ProvisionId::as_str),
                unit: flag.unit,
                counted: stored(flag.counted),
                claimed: stored(flag.claimed),
                at: end.now,
            });
        }
        Ok(())
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
        for (id, drawn) in std::mem::take(&mut self.allowances) {
            if let Some(drawn) = drawn {
                lower_allowance(lane, id, &drawn).await?;
            }
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
        for price in &self.prices {
            record_price(lane, price).await?;
        }
        let rows: Vec<_> = self.holds.iter().map(|(hold, day)| hold_row(hold, *day)).collect();
        lane.insert(HOLD_SQL, &rows).await?;
        let rows = self.transactions.iter().map(|(line, postings)| transaction_row(line, postings));
        let rows: Vec<_> = rows.collect::<Result<_, _>>()?;
        lane.insert(
            "INSERT INTO ledger_transactions (id, kind, request_id, attempt, actor, reason, created_at,
                account_1, amount_1, account_2, amount_2, account_3, amount_3, account_4, amount_4,
                account_5, amount_5, account_6, amount_6, account_7, amount_7, account_8, amount_8)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
                $22, $23)",
            &rows,
        )
        .await?;
        let rows: Vec<_> = self.ends.iter().map(request_row).collect();
        lane.insert(
            "INSERT INTO requests (id, user_id, key_id, state, held, cost, spend_day, day_base, month_base, replica,
                route, model, service, streamed, title, referer, price_id, price_version, outcome, finish_reason,
                provision_id, provider, attempts, prompt, completion, embedding, characters, claimed,
                provider_reward, platform_fee, platform_loss, first_token_ms, latency_ms, created_at, finished_at,
                only_epoch, only_accept_ms, only_first_token_ms, only_total_ms, seconds, urls, images, allowance)
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
                $22, $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33, $34, $35, $36, $37, $38, $39, $40, $41, $42, $43)",
            &rows,
        )
        .await?;
        let attempts = self.ends.iter().filter(|ended| only_attempt(ended.end).is_none()).flat_map(|ended| {
            ended.end.attempts.iter().map(|record| attempt_row(&ended.end.hold.request_id, record))
        });
        let rows: Vec<_> = attempts.collect();
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

/// Writes down a price that a hold refers to, once. A recorded row never changes (a trigger refuses it), so this never
/// touches one that is known.
async fn record_price(lane: &mut impl Lane, price: &PriceRow) -> Result<(), DbError> {
    let text = serde_json::to_string(price).map_err(|e| DbError::impossible("prices", e))?;
    lane.execute(
        "INSERT INTO prices (id, version, price, valid_from) VALUES ($1, $2, $3, $4)
         ON CONFLICT (id, version) DO NOTHING",
        &values![price.id.as_str(), price.version, text.as_str(), 0],
    )
    .await?;
    Ok(())
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

impl Drawn {
    /// Takes an amount out; false when there is not so much.
    pub(super) fn draw(&mut self, amount: MicroCredits) -> bool {
        if amount.0 < 0 || self.left < amount.0 {
            return false;
        }
        self.left -= amount.0;
        self.unwritten += amount.0;
        true
    }
}

/// Writes what was drawn of an allowance that this transaction has locked.
async fn lower_allowance(lane: &mut impl Lane, id: &str, drawn: &Drawn) -> Result<(), DbError> {
    if drawn.unwritten == 0 {
        return Ok(());
    }
    let done = lane
        .execute(
            "UPDATE allowances SET amount = amount - $1 WHERE id = $2 AND amount >= $1",
            &values![drawn.unwritten, id],
        )
        .await?;
    if done == 1 {
        Ok(())
    } else {
        Err(DbError::impossible("allowances", format!("{id} has less than was drawn")))
    }
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
