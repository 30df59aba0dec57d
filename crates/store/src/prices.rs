//! Price rows as they were used: a version, once recorded, never changes.

use std::collections::HashMap;

use cxmpute_market::price::PriceRow;
use cxmpute_wire::Timestamp;

use crate::db::{Db, on, read};
use crate::error::DbError;

impl Db {
    /// Records the prices that this process uses. The same rows again change nothing.
    ///
    /// # Errors
    /// [`DbError::PriceChanged`] when a recorded version has other numbers now; the store failed.
    pub async fn record_prices(&self, prices: &[&PriceRow], now: Timestamp) -> Result<(), DbError> {
        // One look for all of them: a catalogue has a hundred prices, and a start should not wait for as many answers.
        let recorded: Vec<(String, i64, String)> = read!(self, e =>
            sqlx::query_as("SELECT id, version, price FROM prices").fetch_all(e).await?);
        let recorded: HashMap<(&str, i64), &str> =
            recorded.iter().map(|(id, version, price)| ((&**id, *version), &**price)).collect();
        let mut missing = Vec::new();
        for price in prices {
            match recorded.get(&(&*price.id, price.version)) {
                Some(stored) => same(price, stored)?,
                None => missing.push(price),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let mut tx = self.begin().await?;
        for price in missing {
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
            // Another process may have been faster.
            let stored: String = on!(&mut tx, c =>
                sqlx::query_scalar("SELECT price FROM prices WHERE id = $1 AND version = $2")
                    .bind(&price.id)
                    .bind(price.version)
                    .fetch_one(c)
                    .await?);
            same(price, &stored)?;
        }
        tx.commit().await
    }

    /// A recorded price; none when this version was never used.
    ///
    /// # Errors
    /// The store failed, or holds something else.
    pub async fn price(&self, id: &str, version: i64) -> Result<Option<PriceRow>, DbError> {
        let stored: Option<String> = read!(self, e =>
            sqlx::query_scalar("SELECT price FROM prices WHERE id = $1 AND version = $2")
                .bind(id)
                .bind(version)
                .fetch_optional(e)
                .await?);
        stored
            .map(|text| serde_json::from_str(&text).map_err(|e| DbError::impossible("prices", e)))
            .transpose()
    }
}

/// A recorded version has the numbers that it was recorded with.
fn same(price: &PriceRow, stored: &str) -> Result<(), DbError> {
    let stored: PriceRow = serde_json::from_str(stored).map_err(|e| DbError::impossible("prices", e))?;
    if stored == *price {
        return Ok(());
    }
    Err(DbError::PriceChanged { id: price.id.clone(), version: price.version })
}
