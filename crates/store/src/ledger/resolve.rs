//! The one settlement of a request: the hold's conditional statement decides, everything else follows it.

use cxmpute_market::ledger::{Account, AccountKind, settle_postings};
use cxmpute_market::price::Units;
use cxmpute_wire::{MicroCredits, UserId};

use super::book::{Book, TransactionLine};
use super::{LedgerReply, ResolveHold, Settled};
use crate::db::{Tx, on};
use crate::error::DbError;
use crate::limits::RELEASE_SQL;

impl Tx {
    pub(super) async fn resolve(
        &mut self,
        book: &mut Book,
        end: &ResolveHold,
    ) -> Result<LedgerReply, DbError> {
        let bill = end.bill().map_err(|e| DbError::impossible("holds.price", e))?;
        let done = on!(&mut *self, c =>
            sqlx::query(
                "UPDATE holds SET state = $5, posted = $6, resolved_at = $7
                 WHERE request_id = $1 AND state = 'held' AND replica = $2 AND epoch = $3 AND amount = $4")
                .bind(end.request_id.as_str())
                .bind(&*end.replica)
                .bind(end.epoch)
                .bind(end.held.0)
                .bind(end.state())
                .bind(bill.posted.0)
                .bind(end.now.0)
                .execute(c)
                .await?
                .rows_affected());
        if done != 1 {
            return self.resolved_before(end).await;
        }
        let provider = end.provider.as_ref();
        let postings = settle_postings(&end.user_id, provider, end.held, &bill)
            .map_err(|e| DbError::impossible("postings", e))?;
        let line = TransactionLine {
            id: format!("resolve:{}", end.request_id),
            kind: if end.state() == "posted" { "settle" } else { "void" },
            request_id: end.request_id.clone(),
            attempt: end.attempts.last().map(|attempt| attempt.attempt),
            reason: end.end.as_str(),
            at: end.now,
        };
        book.enter(line, &postings);
        book.settle_account(self, &Account::of(&end.user_id, AccountKind::UserAvailable)).await?;
        on!(&mut *self, c =>
            sqlx::query(RELEASE_SQL)
                .bind(end.key_id.as_str())
                .bind(end.held.0)
                .bind(bill.posted.0)
                .bind(end.request_id.as_str())
                .execute(c)
                .await?
                .rows_affected());
        self.finish_request(end, &Settled::from(bill)).await?;
        book.resolve(end);
        Ok(LedgerReply::Resolved(bill.into()))
    }

    async fn finish_request(&mut self, end: &ResolveHold, settled: &Settled) -> Result<(), DbError> {
        let claimed = end.claimed.as_ref().map(units_text).transpose()?;
        let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        on!(self, c =>
            sqlx::query(
                "UPDATE requests SET outcome = $2, finish_reason = $3, provision_id = $4, provider = $5, attempts = $6,
                        prompt = $7, completion = $8, embedding = $9, characters = $10, claimed = $11, cost = $12,
                        provider_reward = $13, platform_fee = $14, platform_loss = $15, first_token_ms = $16,
                        latency_ms = $17, finished_at = $18
                 WHERE id = $1")
                .bind(end.request_id.as_str())
                .bind(end.end.as_str())
                .bind(end.finish_reason.as_deref())
                .bind(end.provision_id.as_ref().map(cxmpute_wire::ProvisionId::as_str))
                .bind(end.provider.as_ref().map(UserId::as_str))
                .bind(count(end.attempts.len() as u64))
                .bind(count(end.counted.prompt.0))
                .bind(count(end.counted.completion.0))
                .bind(count(end.counted.embedding.0))
                .bind(count(end.counted.characters))
                .bind(claimed)
                .bind(settled.cost.0)
                .bind(settled.provider_reward.0)
                .bind(settled.platform_fee.0)
                .bind(settled.platform_loss.0)
                .bind(end.first_token.map(|span| count(span.0)))
                .bind(end.latency.map(|span| count(span.0)))
                .bind(end.now.0)
                .execute(c)
                .await?
                .rows_affected());
        Ok(())
    }

    /// Why a resolution found nothing to do.
    async fn resolved_before(&mut self, end: &ResolveHold) -> Result<LedgerReply, DbError> {
        type Raw = (String, i64, i64, i64, i64, i64, i64, i64);
        let row: Option<Raw> = on!(self, c =>
            sqlx::query_as(
                "SELECT h.state, h.epoch, h.amount, h.posted, r.cost, r.provider_reward, r.platform_fee, r.platform_loss
                 FROM holds h JOIN requests r ON r.id = h.request_id
                 WHERE h.request_id = $1 AND h.replica = $2")
                .bind(end.request_id.as_str())
                .bind(&*end.replica)
                .fetch_optional(c)
                .await?);
        Ok(match row {
            Some((state, epoch, held, ..)) if state == "held" && epoch == end.epoch => {
                LedgerReply::HeldDiffers { held: MicroCredits(held) }
            }
            Some((state, _, held, posted, cost, reward, fee, loss)) if state != "held" => {
                LedgerReply::AlreadyResolved(Settled {
                    cost: MicroCredits(cost),
                    refund: MicroCredits(held - posted),
                    provider_reward: MicroCredits(reward),
                    platform_fee: MicroCredits(fee),
                    platform_loss: MicroCredits(loss),
                })
            }
            _ => LedgerReply::NotHeld,
        })
    }
}

/// Units as they are stored.
pub(super) fn units_text(units: &Units) -> Result<String, DbError> {
    serde_json::to_string(units).map_err(|e| DbError::impossible("units", e))
}
