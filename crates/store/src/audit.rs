//! Reading the ledger as it was written: the postings of a request, and what each request cost. For receipts,
//! disputes and tests; nothing here changes anything.

use cxmpute_wire::{MicroCredits, RequestId};

use crate::db::{Db, read};
use crate::error::DbError;

/// One posting of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostingRow {
    /// Business key of the transaction, such as `resolve:req_…`.
    pub transaction: String,
    /// `OWNER:KIND`.
    pub account: String,
    /// What moved.
    pub amount: MicroCredits,
}

impl Db {
    /// All postings of a request, in the order of their transactions and accounts.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list_postings(&self, request: &RequestId) -> Result<Vec<PostingRow>, DbError> {
        let rows: Vec<(String, String, i64)> = read!(self, e =>
            sqlx::query_as(
                "SELECT p.tx, p.account, p.amount
                 FROM postings p
                 WHERE p.tx IN (
                    SELECT t.id FROM ledger_transactions t WHERE t.id IN ('hold:' || $1, 'resolve:' || $1)
                    UNION ALL
                    SELECT t.id FROM ledger_transactions t WHERE t.request_id = $1
                        AND t.kind <> 'hold' AND t.kind <> 'settle' AND t.kind <> 'void')
                 ORDER BY p.tx, p.account")
                .bind(request.as_str())
                .fetch_all(e)
                .await?);
        let row = |(transaction, account, amount)| PostingRow {
            transaction,
            account,
            amount: MicroCredits(amount),
        };
        Ok(rows.into_iter().map(row).collect())
    }

    /// Every request with what its payer was charged by the postings, whatever its row says.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list_charges(&self) -> Result<Vec<(RequestId, MicroCredits)>, DbError> {
        let rows: Vec<(String, i64)> = read!(self, e =>
            sqlx::query_as(
                "SELECT p.request_id, CAST(COALESCE(SUM(p.amount), 0) AS BIGINT)
                 FROM postings p
                 JOIN ledger_accounts a ON a.id = p.account
                 WHERE p.request_id IS NOT NULL AND a.kind IN ('user_available', 'user_held', 'user_promo')
                 GROUP BY p.request_id ORDER BY p.request_id")
                .fetch_all(e)
                .await?);
        rows.into_iter()
            .map(|(id, amount)| {
                let id = id.parse().map_err(|e| DbError::impossible("ledger_transactions", e))?;
                Ok((id, MicroCredits(-amount)))
            })
            .collect()
    }
}
