//! Price rows as they were used: a version, once recorded, never changes.

use cxmpute_market::price::PriceRow;
use cxmpute_wire::Timestamp;

use crate::db::{Db, on};
use crate::error::DbError;

impl Db {
    /// Records the prices that this process uses. The same rows again change nothing.
    ///
    /// # Errors
    /// [`DbError::PriceChanged`] when a recorded version has other numbers now; the store failed.
    pub async fn record_prices(&self, prices: &[&PriceRow], now: Timestamp) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        for price in prices {
            let text = serde_json::to_string(price).map_err(|e| DbError::impossible("prices", e))?;
            on!(&mut tx, c =>
                sqlx::query(
                    "INSERT INTO prices (id, version, price, valid_from) VALUES ($1, $2, $3, $4)
                     ON CONFLICT (id, version) DO NOTHING")
                    .bind(&price.id)
                    .bind(price.version)
                    .bind(&text)
                    .bind(now.0)
                    .execute(c)
                    .await?
                    .rows_affected());
            let stored: String = on!(&mut tx, c =>
                sqlx::query_scalar("SELECT price FROM prices WHERE id = $1 AND version = $2")
                    .bind(&price.id)
                    .bind(price.version)
                    .fetch_one(c)
                    .await?);
            let stored: PriceRow =
                serde_json::from_str(&stored).map_err(|e| DbError::impossible("prices", e))?;
            if stored != **price {
                return Err(DbError::PriceChanged { id: price.id.clone(), version: price.version });
            }
        }
        tx.commit().await
    }
}
