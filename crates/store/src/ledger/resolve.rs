//! The one settlement of a request: the hold's conditional statement decides, everything else follows it.

use cxmpute_market::ledger::settle_postings;
use cxmpute_market::price::Units;
use cxmpute_wire::MicroCredits;

use super::book::{Book, Taken, TransactionLine};
use super::{LedgerReply, ResolveHold, Settled};
use crate::db::DbKind;
use crate::error::DbError;
use crate::lane::{Lane, values};

pub(super) async fn resolve<'a>(
    lane: &mut impl Lane,
    book: &mut Book<'a>,
    end: &'a ResolveHold,
) -> Result<LedgerReply, DbError> {
    let bill = end.bill().map_err(|e| DbError::impossible("holds.price", e))?;
    let state = end.state();
    let Some(taken) = take(lane, end).await? else { return resolved_before(lane, end).await };
    let postings = settle_postings(&end.hold.user_id, end.provider.as_ref(), end.held, &bill)
        .map_err(|e| DbError::impossible("postings", e))?;
    let line = TransactionLine {
        id: format!("resolve:{}", end.hold.request_id),
        kind: if state == "posted" { "settle" } else { "void" },
        request_id: Some(&end.hold.request_id),
        attempt: end.attempts.last().map(|attempt| attempt.attempt),
        reason: end.end.as_str(),
        at: end.now,
    };
    book.enter(line, postings);
    book.spend(&end.hold.key_id, end.held, bill.posted, taken);
    book.resolve(end, state, bill.into(), taken, None)?;
    Ok(LedgerReply::Resolved(bill.into()))
}

/// Takes the open hold away, if it is there as this process believes; its row in `requests` follows in the same
/// transaction.
async fn take(lane: &mut impl Lane, end: &ResolveHold) -> Result<Option<Taken>, DbError> {
    let hold = &end.hold;
    let values = values![hold.request_id.as_str(), &*hold.replica, hold.epoch, end.held.0];
    let row = match lane.kind() {
        DbKind::Postgres => {
            lane.row::<3>(
                "DELETE FROM holds WHERE request_id = $1 AND replica = $2 AND epoch = $3 AND amount = $4
                 RETURNING spend_day, day_base, month_base",
                &values,
            )
            .await?
        }
        // RETURNING makes a table of its own there for each run; one writer at a time reads what it will delete.
        DbKind::Sqlite => {
            let row = lane
                .row::<3>(
                    "SELECT spend_day, day_base, month_base FROM holds WHERE request_id = $1",
                    &values[..1],
                )
                .await?;
            let done = lane
                .execute(
                    "DELETE FROM holds WHERE request_id = $1 AND replica = $2 AND epoch = $3 AND amount = $4",
                    &values,
                )
                .await?;
            row.filter(|_| done == 1)
        }
    };
    Ok(row.map(|row| {
        let [day, day_base, month_base] = row.map(Option::unwrap_or_default);
        Taken { day, day_base, month_base }
    }))
}

/// Why a resolution found nothing to do.
pub(super) async fn resolved_before(lane: &mut impl Lane, end: &ResolveHold) -> Result<LedgerReply, DbError> {
    let (request, replica) = (end.hold.request_id.as_str(), &*end.hold.replica);
    let open = lane
        .row::<2>(
            "SELECT epoch, amount FROM holds WHERE request_id = $1 AND replica = $2",
            &values![request, replica],
        )
        .await?;
    if let Some(open) = open {
        let [epoch, held] = open.map(Option::unwrap_or_default);
        return Ok(if epoch == end.hold.epoch {
            LedgerReply::HeldDiffers { held: MicroCredits(held) }
        } else {
            LedgerReply::NotHeld
        });
    }
    let ended = lane
        .row::<5>(
            "SELECT held, cost, provider_reward, platform_fee, platform_loss FROM requests
             WHERE id = $1 AND user_id = $2 AND replica = $3",
            &values![request, end.hold.user_id.as_str(), replica],
        )
        .await?;
    let Some(ended) = ended else { return Ok(LedgerReply::NotHeld) };
    let [held, cost, reward, fee, loss] = ended.map(|n| MicroCredits(n.unwrap_or_default()));
    Ok(LedgerReply::AlreadyResolved(Settled {
        cost,
        refund: held.saturating_sub(cost),
        provider_reward: reward,
        platform_fee: fee,
        platform_loss: loss,
    }))
}

/// Units as they are stored.
pub(super) fn units_text(units: &Units) -> Result<String, DbError> {
    serde_json::to_string(units).map_err(|e| DbError::impossible("units", e))
}
