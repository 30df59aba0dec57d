//! The one settlement of a request: the hold's conditional statement decides, everything else follows it.

use cxmpute_market::ledger::settle_postings;
use cxmpute_market::price::Units;
use cxmpute_wire::{MicroCredits, UserId};

use super::book::{Book, Taken, TransactionLine};
use super::{LedgerReply, ResolveHold, Settled};
use crate::error::DbError;
use crate::lane::{Lane, values};

pub(super) async fn resolve<'a>(
    lane: &mut impl Lane,
    book: &mut Book<'a>,
    end: &'a ResolveHold,
) -> Result<LedgerReply, DbError> {
    let bill = end.bill().map_err(|e| DbError::impossible("holds.price", e))?;
    let state = end.state();
    let done = lane
        .row::<3>(
            "UPDATE holds SET state = $1, posted = $2, resolved_at = $3
             WHERE request_id = $4 AND state = 'held' AND replica = $5 AND epoch = $6 AND amount = $7
             RETURNING spend_day, day_base, month_base",
            &values![
                state,
                bill.posted.0,
                end.now.0,
                end.request_id.as_str(),
                &*end.replica,
                end.epoch,
                end.held.0,
            ],
        )
        .await?;
    let Some(taken) = done else { return resolved_before(lane, end).await };
    let [day, day_base, month_base] = taken.map(Option::unwrap_or_default);
    let provider = end.provider.as_ref();
    let postings = settle_postings(&end.user_id, provider, end.held, &bill)
        .map_err(|e| DbError::impossible("postings", e))?;
    let line = TransactionLine {
        id: format!("resolve:{}", end.request_id),
        kind: if state == "posted" { "settle" } else { "void" },
        request_id: end.request_id.clone(),
        attempt: end.attempts.last().map(|attempt| attempt.attempt),
        reason: end.end.as_str(),
        at: end.now,
    };
    book.enter(line, postings);
    book.spend(&end.key_id, end.held, bill.posted, Taken { day, day_base, month_base });
    finish_request(lane, end, &Settled::from(bill)).await?;
    book.resolve(end);
    Ok(LedgerReply::Resolved(bill.into()))
}

async fn finish_request(lane: &mut impl Lane, end: &ResolveHold, settled: &Settled) -> Result<(), DbError> {
    let claimed = end.claimed.as_ref().map(units_text).transpose()?;
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    lane.execute(
        "UPDATE requests SET outcome = $1, finish_reason = $2, provision_id = $3, provider = $4, attempts = $5,
                prompt = $6, completion = $7, embedding = $8, characters = $9, claimed = $10, cost = $11,
                provider_reward = $12, platform_fee = $13, platform_loss = $14, first_token_ms = $15,
                latency_ms = $16, finished_at = $17
         WHERE id = $18",
        &values![
            end.end.as_str(),
            end.finish_reason.as_deref(),
            end.provision_id.as_ref().map(cxmpute_wire::ProvisionId::as_str),
            end.provider.as_ref().map(UserId::as_str),
            count(end.attempts.len() as u64),
            count(end.counted.prompt.0),
            count(end.counted.completion.0),
            count(end.counted.embedding.0),
            count(end.counted.characters),
            claimed.as_deref(),
            settled.cost.0,
            settled.provider_reward.0,
            settled.platform_fee.0,
            settled.platform_loss.0,
            end.first_token.map(|span| count(span.0)),
            end.latency.map(|span| count(span.0)),
            end.now.0,
            end.request_id.as_str(),
        ],
    )
    .await?;
    Ok(())
}

/// Why a resolution found nothing to do.
async fn resolved_before(lane: &mut impl Lane, end: &ResolveHold) -> Result<LedgerReply, DbError> {
    let row = lane
        .row::<8>(
            "SELECT CAST(CASE WHEN h.state = 'held' THEN 1 ELSE 0 END AS BIGINT), h.epoch, h.amount, h.posted,
                    r.cost, r.provider_reward, r.platform_fee, r.platform_loss
             FROM holds h JOIN requests r ON r.id = h.request_id
             WHERE h.request_id = $1 AND h.replica = $2",
            &values![end.request_id.as_str(), &*end.replica],
        )
        .await?;
    let Some(row) = row else { return Ok(LedgerReply::NotHeld) };
    let [open, epoch, held, posted, cost, reward, fee, loss] = row.map(Option::unwrap_or_default);
    Ok(if open == 0 {
        LedgerReply::AlreadyResolved(Settled {
            cost: MicroCredits(cost),
            refund: MicroCredits(held - posted),
            provider_reward: MicroCredits(reward),
            platform_fee: MicroCredits(fee),
            platform_loss: MicroCredits(loss),
        })
    } else if epoch == end.epoch {
        LedgerReply::HeldDiffers { held: MicroCredits(held) }
    } else {
        LedgerReply::NotHeld
    })
}

/// Units as they are stored.
pub(super) fn units_text(units: &Units) -> Result<String, DbError> {
    serde_json::to_string(units).map_err(|e| DbError::impossible("units", e))
}
