//! What happens to holds whose process died: paid up to the last checkpoint, never above it; given back when nothing
//! proves that an answer was delivered.

use std::sync::Arc;

use cxmpute_market::ledger::End;
use cxmpute_market::price::{PriceRow, Units};
use cxmpute_wire::{MicroCredits, ProvisionId, RequestId, Timestamp, UserId};
use sqlx::{AssertSqlSafe, FromRow};

use super::{Allowance, AttemptRecord, LedgerOp, LedgerReply, NewHold, ResolveHold};
use crate::db::{Db, Tx, on, read};
use crate::dialect;
use crate::error::DbError;
use crate::replicas::Replica;

/// Holds resolved per transaction.
const PER_BATCH: usize = 256;

/// What recovery did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Requests paid up to their last checkpoint.
    pub settled: Vec<RequestId>,
    /// Requests given back.
    pub voided: Vec<RequestId>,
}

#[derive(FromRow)]
struct RawHold {
    request_id: String,
    user_id: String,
    key_id: String,
    amount: i64,
    price: String,
    replica: String,
    epoch: i64,
    route: String,
    model: String,
    service: String,
    streamed: i64,
    title: Option<String>,
    referer: Option<String>,
    created_at: i64,
    attempt: i64,
    provision_id: Option<String>,
    provider: Option<String>,
    checkpoint: Option<String>,
}

impl RawHold {
    fn end(self, expired: bool, now: Timestamp) -> Result<ResolveHold, DbError> {
        let price: PriceRow =
            serde_json::from_str(&self.price).map_err(|e| DbError::impossible("prices.price", e))?;
        let checkpoint: Option<Units> = self
            .checkpoint
            .map(|text| serde_json::from_str(&text).map_err(|e| DbError::impossible("holds.checkpoint", e)))
            .transpose()?;
        let provision_id: Option<ProvisionId> = parse(self.provision_id, "holds.provision_id")?;
        let provider: Option<UserId> = parse(self.provider, "holds.provider")?;
        let attempts = provision_id.iter().map(|provision_id| AttemptRecord {
            attempt: u32::try_from(self.attempt).unwrap_or(1).max(1),
            provision_id: provision_id.clone(),
            epoch: cxmpute_wire::Epoch(0),
            outcome: End::GatewayDied,
            code: None,
            accept: None,
            first_token: None,
            total: None,
        });
        let attempts = attempts.collect();
        let hold = NewHold {
            request_id: self.request_id.parse().map_err(|e| DbError::impossible("holds.request_id", e))?,
            user_id: self.user_id.parse().map_err(|e| DbError::impossible("holds.user_id", e))?,
            key_id: self.key_id.parse().map_err(|e| DbError::impossible("holds.key_id", e))?,
            amount: MicroCredits(self.amount),
            price: Arc::new(price),
            replica: self.replica.into(),
            epoch: self.epoch,
            route: self.route,
            model: self.model,
            service: self.service.parse().map_err(|e| DbError::impossible("holds.service", e))?,
            streamed: self.streamed != 0,
            title: self.title,
            referer: self.referer,
            created_at: Timestamp(self.created_at),
        };
        Ok(ResolveHold {
            held: hold.amount,
            hold: Arc::new(hold),
            attempts,
            end: End::GatewayDied,
            counted: checkpoint.unwrap_or_default(),
            claimed: None,
            provision_id,
            provider,
            finish_reason: None,
            first_token: None,
            latency: None,
            expired,
            now,
        })
    }
}

fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: Option<String>,
    place: &'static str,
) -> Result<Option<T>, DbError> {
    text.map(|text| text.parse().map_err(|e| DbError::impossible(place, e))).transpose()
}

#[derive(FromRow)]
struct RawAllowance {
    id: String,
    user_id: String,
    key_id: String,
    replica: String,
    epoch: i64,
}

impl TryFrom<RawAllowance> for Allowance {
    type Error = DbError;

    fn try_from(raw: RawAllowance) -> Result<Self, DbError> {
        Ok(Self {
            id: raw.id.into(),
            user_id: raw.user_id.parse().map_err(|e| DbError::impossible("allowances.user_id", e))?,
            key_id: raw.key_id.parse().map_err(|e| DbError::impossible("allowances.key_id", e))?,
            replica: raw.replica.into(),
            epoch: raw.epoch,
        })
    }
}

impl Db {
    /// Allowances of earlier processes of this replica and of replicas whose lease ended. Requests that were admitted out
    /// of one and have no row of their own cost nothing.
    async fn orphaned(&self, replica: &Replica) -> Result<Vec<Allowance>, DbError> {
        let sql = format!(
            "SELECT id, user_id, key_id, replica, epoch FROM allowances
             WHERE (replica = $1 AND epoch < $2)
                OR (replica <> $1 AND replica IN (SELECT r.id FROM replicas r WHERE r.lease_until < {}))
             ORDER BY user_id, id",
            dialect::now_ms(self.kind())
        );
        let rows: Vec<RawAllowance> = read!(self, e =>
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(&replica.id)
                .bind(replica.epoch)
                .fetch_all(e)
                .await?);
        rows.into_iter().map(Allowance::try_from).collect()
    }

    /// How many allowances an account has, of whomever.
    ///
    /// # Errors
    /// The store failed.
    pub async fn count_allowances(&self, user: &UserId) -> Result<u64, DbError> {
        let found: i64 = read!(self, e =>
            sqlx::query_scalar("SELECT COUNT(*) FROM allowances WHERE user_id = $1")
                .bind(user.as_str())
                .fetch_one(e)
                .await?);
        Ok(found.unsigned_abs())
    }

    /// Asks whoever has allowances of an account to give them back; gives their number.
    ///
    /// # Errors
    /// The store failed.
    pub async fn recall_allowances(&self, user: &UserId) -> Result<u64, DbError> {
        let mut tx = self.begin().await?;
        let found = tx.recall("user_id", user.as_str()).await?;
        tx.commit().await?;
        Ok(found)
    }

    /// The allowances of this process that somebody wants back.
    ///
    /// # Errors
    /// The store failed.
    pub async fn recalled_allowances(&self, replica: &Replica) -> Result<Vec<String>, DbError> {
        Ok(read!(self, e =>
            sqlx::query_scalar("SELECT id FROM allowances WHERE recalled = 1 AND replica = $1 AND epoch = $2")
                .bind(&replica.id)
                .bind(replica.epoch)
                .fetch_all(e)
                .await?))
    }

    /// All allowances of this process.
    ///
    /// # Errors
    /// The store failed.
    pub async fn held_allowances(&self, replica: &Replica) -> Result<Vec<String>, DbError> {
        Ok(read!(self, e =>
            sqlx::query_scalar("SELECT id FROM allowances WHERE replica = $1 AND epoch = $2")
                .bind(&replica.id)
                .bind(replica.epoch)
                .fetch_all(e)
                .await?))
    }

    /// Resolves the holds that earlier processes of this replica left, and those of replicas whose lease ended in
    /// database time. Safe at any time and on several replicas at once: each hold is resolved by one conditional
    /// statement.
    ///
    /// # Errors
    /// The store failed.
    pub async fn recover(&self, replica: &Replica, now: Timestamp) -> Result<Recovery, DbError> {
        let mut recovery = Recovery::default();
        let sql = format!(
            "SELECT h.request_id, h.user_id, h.key_id, h.amount, COALESCE(p.price, '') AS price, h.replica, h.epoch, h.route, h.model,
                    h.service, h.streamed, h.title, h.referer, h.created_at, h.attempt, h.provision_id, h.provider,
                    h.checkpoint
             FROM holds h LEFT JOIN prices p ON p.id = h.price_id AND p.version = h.price_version
             WHERE (h.replica = $1 AND h.epoch < $2)
                OR (h.replica <> $1 AND h.replica IN (SELECT r.id FROM replicas r WHERE r.lease_until < {}))
             ORDER BY h.user_id, h.request_id",
            dialect::now_ms(self.kind())
        );
        let rows: Vec<RawHold> = read!(self, e =>
            sqlx::query_as(AssertSqlSafe(sql))
                .bind(&replica.id)
                .bind(replica.epoch)
                .fetch_all(e)
                .await?);
        let mut ops = Vec::with_capacity(rows.len());
        for row in rows {
            let foreign = row.replica != replica.id;
            ops.push(LedgerOp::Resolve(Arc::new(row.end(foreign, now)?)));
        }
        for allowance in self.orphaned(replica).await? {
            ops.push(LedgerOp::Return(Arc::new(allowance), now));
        }
        for batch in ops.chunks(PER_BATCH) {
            let mut tx = self.begin().await?;
            let replies = tx.apply(batch).await?;
            tx.commit().await?;
            for (op, reply) in batch.iter().zip(replies) {
                let LedgerReply::Resolved(settled) = reply else { continue };
                let paid =
                    settled.cost.0 > 0 || matches!(op, LedgerOp::Resolve(end) if end.counted.delivered());
                let list = if paid { &mut recovery.settled } else { &mut recovery.voided };
                list.extend(op.request_id().cloned());
            }
        }
        Ok(recovery)
    }
}

impl Tx {
    /// Marks the allowances that are wanted back: those whose `column` is `id`. Whoever changes what a key or an account
    /// may spend calls it in the same transaction.
    pub(crate) async fn recall(&mut self, column: &'static str, id: &str) -> Result<u64, DbError> {
        let sql = format!("UPDATE allowances SET recalled = 1 WHERE {column} = $1");
        Ok(on!(self, c => sqlx::query(AssertSqlSafe(sql)).bind(id).execute(c).await?.rows_affected()))
    }
}
