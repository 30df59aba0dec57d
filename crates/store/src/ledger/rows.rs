//! The rows that a batch writes, column by column.

use cxmpute_market::ledger::Postings;
use cxmpute_wire::{Millis, ProvisionId, RequestId, Timestamp, UserId};

use super::book::{Taken, TransactionLine};
use super::{AttemptRecord, NewHold, ResolveHold, Settled};
use crate::error::DbError;
use crate::lane::{Value, values};

/// Lines of one transaction: the columns `account_1`, `amount_1` and so on of `ledger_transactions`.
pub(super) const LINES: usize = 8;

/// A resolved request, with what its hold knew and what its end cost.
pub(super) struct Ended<'a> {
    pub(super) end: &'a ResolveHold,
    pub(super) state: &'static str,
    pub(super) settled: Settled,
    pub(super) taken: Taken,
    pub(super) claimed: Option<String>,
    /// The allowance it was charged to.
    pub(super) allowance: Option<&'a str>,
}

/// A claim that differs from the count.
pub(super) struct FlagLine<'a> {
    pub(super) request_id: &'a RequestId,
    pub(super) provision_id: Option<&'a str>,
    pub(super) unit: &'static str,
    pub(super) counted: i64,
    pub(super) claimed: i64,
    pub(super) at: Timestamp,
}

/// Counts are stored as i64; an absurd claim is stored as the largest one.
pub(super) fn stored(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) const HOLD_SQL: &str =
    "INSERT INTO holds (request_id, user_id, key_id, amount, spend_day, replica, epoch, route, model, service,
        streamed, title, referer, price_id, price_version, created_at)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)";

pub(super) fn hold_row(hold: &NewHold, day: i64) -> [Value<'_>; 16] {
    values![
        hold.request_id.as_str(),
        hold.user_id.as_str(),
        hold.key_id.as_str(),
        hold.amount.0,
        day,
        &*hold.replica,
        hold.epoch,
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

/// The attempt that needs no row of its own: there was no other, and it ended as the request did.
pub(super) fn only_attempt(end: &ResolveHold) -> Option<&AttemptRecord> {
    let [only] = &end.attempts[..] else { return None };
    let alike = only.attempt == 1
        && only.code.is_none()
        && only.outcome == end.end
        && end.provision_id.as_ref() == Some(&only.provision_id);
    alike.then_some(only)
}

pub(super) fn request_row<'r>(ended: &'r Ended<'_>) -> [Value<'r>; 43] {
    let Ended { end, state, settled, taken, claimed, allowance } = ended;
    let hold = &end.hold;
    let only = only_attempt(end);
    let span = |span: Option<Millis>| span.map(|span| stored(span.0));
    values![
        hold.request_id.as_str(),
        hold.user_id.as_str(),
        hold.key_id.as_str(),
        *state,
        end.held.0,
        settled.cost.0,
        taken.day,
        taken.day_base,
        taken.month_base,
        &*hold.replica,
        hold.route.as_str(),
        hold.model.as_str(),
        hold.service.as_str(),
        i64::from(hold.streamed),
        hold.title.as_deref(),
        hold.referer.as_deref(),
        hold.price.id.as_str(),
        hold.price.version,
        end.end.as_str(),
        end.finish_reason.as_deref(),
        end.provision_id.as_ref().map(ProvisionId::as_str),
        end.provider.as_ref().map(UserId::as_str),
        stored(end.attempts.len() as u64),
        stored(end.counted.prompt.0),
        stored(end.counted.completion.0),
        stored(end.counted.embedding.0),
        stored(end.counted.characters),
        claimed.as_deref(),
        settled.provider_reward.0,
        settled.platform_fee.0,
        settled.platform_loss.0,
        span(end.first_token),
        span(end.latency),
        hold.created_at.0,
        end.now.0,
        only.map(|only| only.epoch.0),
        span(only.and_then(|only| only.accept)),
        span(only.and_then(|only| only.first_token)),
        span(only.and_then(|only| only.total)),
        stored(end.counted.seconds),
        stored(end.counted.urls),
        stored(end.counted.images),
        *allowance,
    ]
}

pub(super) fn transaction_row<'r>(
    line: &'r TransactionLine<'_>,
    postings: &'r Postings,
) -> Result<[Value<'r>; 7 + 2 * LINES], DbError> {
    let mut row = [Value::Int(None); 7 + 2 * LINES];
    row[..7].copy_from_slice(&values![
        line.id.as_str(),
        line.kind,
        line.request_id.map(RequestId::as_str),
        line.attempt.map(i64::from),
        "gateway",
        line.reason,
        line.at.0,
    ]);
    row[7..].copy_from_slice(&lines(postings)?);
    Ok(row)
}

/// The columns `account_1`, `amount_1` and so on.
pub(super) fn lines(postings: &Postings) -> Result<[Value<'_>; 2 * LINES], DbError> {
    let lines = postings.lines();
    if lines.len() > LINES {
        return Err(DbError::impossible("ledger_transactions", format!("{} lines", lines.len())));
    }
    let mut columns = [Value::Text(None); 2 * LINES];
    for (at, column) in columns.iter_mut().enumerate() {
        let line = lines.get(at / 2);
        *column = if at % 2 == 0 {
            Value::Text(line.map(|line| line.account.id()))
        } else {
            Value::Int(line.map(|line| line.amount.0))
        };
    }
    Ok(columns)
}

pub(super) fn attempt_row<'r>(request: &'r RequestId, record: &'r AttemptRecord) -> [Value<'r>; 9] {
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

pub(super) fn flag_row<'r>(line: &'r FlagLine<'_>) -> [Value<'r>; 6] {
    values![line.request_id.as_str(), line.unit, line.provision_id, line.counted, line.claimed, line.at.0,]
}
