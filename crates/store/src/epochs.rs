//! Tunnels of a provision: each opens the next epoch, and only the newest epoch is valid.

use cxmpute_wire::{Epoch, ProvisionId, Timestamp};

use crate::db::{Db, on};
use crate::error::DbError;

impl Db {
    /// Opens the next epoch for a new tunnel and closes the older ones. `None` when the provision is unknown,
    /// suspended or retired.
    ///
    /// # Errors
    /// The store failed.
    pub async fn next_epoch(&self, id: &ProvisionId, now: Timestamp) -> Result<Option<Epoch>, DbError> {
        let mut tx = self.begin().await?;
        let epoch: Option<i64> = on!(&mut tx, c =>
            sqlx::query_scalar(
                "UPDATE provisions SET epoch = epoch + 1, state = 'online', last_seen = $2, updated_at = $2
                 WHERE id = $1 AND state NOT IN ('suspended', 'retired') RETURNING epoch")
                .bind(id.as_str())
                .bind(now.0)
                .fetch_optional(c)
                .await?);
        let Some(epoch) = epoch else { return Ok(None) };
        on!(&mut tx, c =>
            sqlx::query(
                "UPDATE provision_epochs SET ended_at = $2, end_reason = 'epoch_stale'
                 WHERE provision_id = $1 AND ended_at IS NULL")
                .bind(id.as_str())
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        on!(&mut tx, c =>
            sqlx::query("INSERT INTO provision_epochs (provision_id, epoch, started_at) VALUES ($1, $2, $3)")
                .bind(id.as_str())
                .bind(epoch)
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await?;
        Ok(Some(Epoch(epoch)))
    }

    /// Notes the end of a tunnel; the provision goes offline only when no newer tunnel is up.
    ///
    /// # Errors
    /// The store failed.
    pub async fn close_epoch(
        &self,
        id: &ProvisionId,
        epoch: Epoch,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        on!(&mut tx, c =>
            sqlx::query(
                "UPDATE provision_epochs SET ended_at = $3, end_reason = $4
                 WHERE provision_id = $1 AND epoch = $2 AND ended_at IS NULL")
                .bind(id.as_str())
                .bind(epoch.0)
                .bind(now.0)
                .bind(reason)
                .execute(c)
                .await?
                .rows_affected());
        on!(&mut tx, c =>
            sqlx::query(
                "UPDATE provisions SET state = 'offline', updated_at = $3
                 WHERE id = $1 AND epoch = $2 AND state = 'online'")
                .bind(id.as_str())
                .bind(epoch.0)
                .bind(now.0)
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await
    }
}
