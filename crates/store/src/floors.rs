//! Memory that turned out to be too little: per provision and service, with how much it is planned since (NR37).

use std::collections::HashMap;

use cxmpute_market::assign::Floor;
use cxmpute_wire::{Bytes, ProvisionId, ServiceId, Timestamp};

use crate::db::{Db, on, read};
use crate::error::DbError;

impl Db {
    /// Notes that a service needs at least `memory` on a provision; false where as much is known already. What was learned
    /// before `since` is forgotten.
    ///
    /// # Errors
    /// The store failed.
    pub async fn raise_floor(
        &self,
        provision: &ProvisionId,
        service: &ServiceId,
        memory: Bytes,
        since: Timestamp,
        now: Timestamp,
    ) -> Result<bool, DbError> {
        let mut tx = self.begin().await?;
        let raised = on!(&mut tx, c =>
            sqlx::query(
                "INSERT INTO memory_floors (provision_id, service, memory, learned_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (provision_id, service) DO UPDATE
                 SET memory = excluded.memory, learned_at = excluded.learned_at
                 WHERE memory_floors.memory < excluded.memory OR memory_floors.learned_at < $5")
                .bind(provision.as_str())
                .bind(service.as_str())
                .bind(i64::try_from(memory.0).unwrap_or(i64::MAX))
                .bind(now.0)
                .bind(since.0)
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await?;
        Ok(raised == 1)
    }

    /// What was learned after `since`, per provision.
    ///
    /// # Errors
    /// The store failed.
    pub async fn floors(&self, since: Timestamp) -> Result<HashMap<ProvisionId, Vec<Floor>>, DbError> {
        let rows: Vec<(String, String, i64)> = read!(self, e =>
            sqlx::query_as(
                "SELECT provision_id, service, memory FROM memory_floors WHERE learned_at >= $1
                 ORDER BY provision_id, service")
                .bind(since.0)
                .fetch_all(e)
                .await?);
        let mut all: HashMap<ProvisionId, Vec<Floor>> = HashMap::new();
        for (provision, service, memory) in rows {
            let provision =
                provision.parse().map_err(|e| DbError::impossible("memory_floors.provision_id", e))?;
            let service = service.parse().map_err(|e| DbError::impossible("memory_floors.service", e))?;
            all.entry(provision)
                .or_default()
                .push(Floor { service, memory: Bytes(u64::try_from(memory).unwrap_or(0)) });
        }
        Ok(all)
    }
}
