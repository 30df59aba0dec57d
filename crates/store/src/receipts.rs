//! What a finished request's receipt adds to its row: the attempts, and what the node claimed.

use cxmpute_market::ledger::End;
use cxmpute_market::price::Units;
use cxmpute_wire::{Millis, ProvisionId, RequestId, UserId};

use crate::db::{Db, read};
use crate::error::DbError;

/// One attempt of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttemptRow {
    /// From 1.
    pub attempt: i64,
    /// Which provision.
    pub provision_id: ProvisionId,
    /// How it ended.
    pub outcome: End,
    /// Machine code of a failure.
    pub code: Option<String>,
    /// Until the first content.
    pub first_token: Option<Millis>,
    /// In all.
    pub total: Option<Millis>,
}

impl Db {
    /// The attempts of a user's request, in order; none while it runs.
    ///
    /// # Errors
    /// The store failed.
    pub async fn list_attempts(
        &self,
        request: &RequestId,
        user: &UserId,
    ) -> Result<Vec<AttemptRow>, DbError> {
        type Raw = (i64, String, String, Option<String>, Option<i64>, Option<i64>);
        let rows: Vec<Raw> = read!(self, e =>
            sqlx::query_as(
                "SELECT attempt, provision_id, outcome, code, first_token_ms, total_ms
                 FROM attempts WHERE request_id = $1
                   AND EXISTS (SELECT 1 FROM requests r WHERE r.id = $1 AND r.user_id = $2)
                 UNION ALL
                 SELECT attempts, provision_id, outcome, NULL, only_first_token_ms, only_total_ms
                 FROM requests WHERE id = $1 AND user_id = $2 AND only_epoch IS NOT NULL
                 ORDER BY attempt")
                .bind(request.as_str())
                .bind(user.as_str())
                .fetch_all(e)
                .await?);
        let span = |ms: i64| Millis(u64::try_from(ms).unwrap_or(0));
        rows.into_iter()
            .map(|(attempt, provision_id, outcome, code, first_token, total)| {
                Ok(AttemptRow {
                    attempt,
                    provision_id: provision_id
                        .parse()
                        .map_err(|e| DbError::impossible("attempts.provision_id", e))?,
                    outcome: End::from_name(&outcome)
                        .ok_or_else(|| DbError::impossible("attempts.outcome", outcome))?,
                    code,
                    first_token: first_token.map(span),
                    total: total.map(span),
                })
            })
            .collect()
    }

    /// What the node said it had used, as evidence beside the gateway's own count.
    ///
    /// # Errors
    /// The store failed.
    pub async fn claimed_units(&self, request: &RequestId, user: &UserId) -> Result<Option<Units>, DbError> {
        let claimed: Option<Option<String>> = read!(self, e =>
            sqlx::query_scalar("SELECT claimed FROM requests WHERE id = $1 AND user_id = $2")
                .bind(request.as_str())
                .bind(user.as_str())
                .fetch_optional(e)
                .await?);
        claimed
            .flatten()
            .map(|text| serde_json::from_str(&text).map_err(|e| DbError::impossible("requests.claimed", e)))
            .transpose()
    }
}
