//! What replicas were asked for lately: a few rows per replica, replaced every minute.

use std::collections::HashMap;

use cxmpute_market::assign::Demand;
use cxmpute_wire::{ServiceId, Timestamp};

use crate::db::{Db, on, read};
use crate::error::DbError;

impl Db {
    /// Replaces what this replica was asked for; services that nobody asked for are left out.
    ///
    /// # Errors
    /// The store failed.
    pub async fn set_demand(
        &self,
        replica: &str,
        demand: &HashMap<ServiceId, Demand>,
        now: Timestamp,
    ) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        on!(&mut tx, c =>
            sqlx::query("DELETE FROM demand WHERE replica = $1").bind(replica).execute(c).await?.rows_affected());
        for (service, demand) in demand.iter().filter(|(_, demand)| !demand.is_none()) {
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            on!(&mut tx, c =>
                sqlx::query(
                    "INSERT INTO demand (replica, service, requests, queued, refused, units, counted_at)
                     VALUES ($1, $2, $3, $4, $5, $6, $7)")
                    .bind(replica)
                    .bind(service.as_str())
                    .bind(count(demand.requests))
                    .bind(count(demand.queued))
                    .bind(count(demand.refused))
                    .bind(count(demand.units))
                    .bind(now.0)
                    .execute(c)
                    .await?
                    .rows_affected());
        }
        tx.commit().await
    }

    /// What all replicas together were asked for, as far as it was counted after `since`.
    ///
    /// # Errors
    /// The store failed.
    pub async fn demand(&self, since: Timestamp) -> Result<HashMap<ServiceId, Demand>, DbError> {
        let rows: Vec<(String, i64, i64, i64, i64)> = read!(self, e =>
            sqlx::query_as("SELECT service, requests, queued, refused, units FROM demand WHERE counted_at >= $1")
                .bind(since.0)
                .fetch_all(e)
                .await?);
        let mut all: HashMap<ServiceId, Demand> = HashMap::new();
        for (service, requests, queued, refused, units) in rows {
            let service = service.parse().map_err(|e| DbError::impossible("demand.service", e))?;
            let count = |count: i64| u64::try_from(count).unwrap_or(0);
            let one = Demand {
                requests: count(requests),
                queued: count(queued),
                refused: count(refused),
                units: count(units),
            };
            let sum = all.entry(service).or_default();
            *sum = sum.plus(&one);
        }
        Ok(all)
    }
}
