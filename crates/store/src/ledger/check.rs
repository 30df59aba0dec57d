//! Reconciliation (section 12 of the money rules): every rule of the ledger asked of the data as a whole, in one
//! snapshot. An error while summing is an error, never a zero.

use crate::db::{Db, Tx, on};
use crate::error::DbError;

/// Ids listed per rule; the count is exact.
const LISTED: usize = 50;

/// Something that the rules forbid.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Offence {
    /// The rule that is broken.
    pub rule: &'static str,
    /// The row.
    pub id: String,
}

/// What the check found.
#[derive(Debug, Clone, Default)]
pub struct LedgerReport {
    /// Transactions looked at.
    pub transactions: i64,
    /// Sum of all postings; must be 0.
    pub sum: i64,
    /// Resolved requests.
    pub resolved: i64,
    /// Holds that are open now.
    pub open_holds: Vec<String>,
    /// Allowances that replicas have now.
    pub allowances: i64,
    /// Claims that differ from the count by more than the allowed slack.
    pub flags: i64,
    /// Micro-credits that resolved holds moved, and how many of them their own settlement accounts for.
    pub value: i128,
    /// See `value`.
    pub value_explained: i128,
    /// Number of broken rules and rows.
    pub offence_count: usize,
    /// The first of them.
    pub offences: Vec<Offence>,
}

impl LedgerReport {
    /// Exactly 1 when every rule holds and every micro-credit is accounted for; below 1 otherwise, also when the
    /// quotient would round to 1.
    #[must_use]
    pub fn explained(&self) -> f64 {
        if self.is_clean() {
            return 1.0;
        }
        if self.value == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "a figure for people; exactness is decided above")]
        let quotient = self.value_explained as f64 / self.value as f64;
        quotient.min(1.0 - f64::EPSILON)
    }

    /// Whether every rule holds. Open holds are no offence by themselves.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.offence_count == 0 && self.sum == 0 && self.value == self.value_explained
    }
}

/// What the lines of some transactions move on accounts of a kind; an account's id ends with its kind.
macro_rules! moved {
    ($kind:literal) => {
        concat!(
            "CAST(COALESCE(SUM(",
            moved!($kind, "1"),
            " + ",
            moved!($kind, "2"),
            " + ",
            moved!($kind, "3"),
            " + ",
            moved!($kind, "4"),
            " + ",
            moved!($kind, "5"),
            " + ",
            moved!($kind, "6"),
            " + ",
            moved!($kind, "7"),
            " + ",
            moved!($kind, "8"),
            "), 0) AS BIGINT)"
        )
    };
    ($kind:literal, $line:literal) => {
        concat!("CASE WHEN account_", $line, " LIKE '%:", $kind, "' THEN amount_", $line, " ELSE 0 END")
    };
}

/// What the store bound for a request: its hold, or of an allowance only what it cost.
macro_rules! bound {
    () => {
        "CASE WHEN r.allowance IS NULL THEN r.held ELSE r.cost END"
    };
}

/// Each rule as a query for the ids that break it. `postings` are the lines of `ledger_transactions`; `reservations` are
/// open holds and resolved ones, which live on in `requests`.
const RULES: &[(&str, &str)] = &[
    (
        "the postings of a transaction sum to zero",
        "SELECT tx FROM postings GROUP BY tx HAVING SUM(amount) <> 0 ORDER BY tx",
    ),
    (
        "a posting's account exists",
        "SELECT DISTINCT account FROM postings EXCEPT SELECT id FROM ledger_accounts",
    ),
    (
        "an account's id names its owner and its kind",
        "SELECT id FROM ledger_accounts WHERE id <> owner || ':' || kind ORDER BY id",
    ),
    (
        "a balance equals its rebuilt sum",
        "SELECT a.id FROM ledger_accounts a
         LEFT JOIN (SELECT account, CAST(COALESCE(SUM(amount), 0) AS BIGINT) AS rebuilt FROM postings GROUP BY account) p
           ON p.account = a.id
         WHERE a.balance <> COALESCE(p.rebuilt, 0) ORDER BY a.id",
    ),
    (
        "held money equals the open holds and allowances",
        "SELECT a.id FROM ledger_accounts a
         LEFT JOIN (SELECT user_id, CAST(COALESCE(SUM(amount), 0) AS BIGINT) AS bound
                    FROM (SELECT user_id, amount FROM holds UNION ALL SELECT user_id, amount FROM allowances) b
                    GROUP BY user_id) h ON h.user_id = a.owner
         WHERE a.kind = 'user_held' AND a.balance <> COALESCE(h.bound, 0) ORDER BY a.id",
    ),
    (
        "a hold's key exists and is its payer's",
        "SELECT h.request_id FROM reservations h LEFT JOIN api_keys k ON k.id = h.key_id AND k.user_id = h.user_id
         WHERE k.id IS NULL ORDER BY h.request_id",
    ),
    (
        "an open hold's price is recorded",
        "SELECT h.request_id FROM holds h LEFT JOIN prices p ON p.id = h.price_id AND p.version = h.price_version
         WHERE p.id IS NULL ORDER BY h.request_id",
    ),
    (
        "an allowance's key exists and is its payer's, and its taking is entered",
        "SELECT a.id FROM allowances a
         LEFT JOIN api_keys k ON k.id = a.key_id AND k.user_id = a.user_id
         LEFT JOIN ledger_transactions t ON t.id = 'allowance:' || a.id
         WHERE k.id IS NULL OR t.id IS NULL ORDER BY a.id",
    ),
    (
        "a key's figures equal its holds and allowances",
        "SELECT k.id FROM api_keys k
         LEFT JOIN (SELECT key_id, CAST(COALESCE(SUM(amount), 0) AS BIGINT) AS bound
                    FROM allowances GROUP BY key_id) a ON a.key_id = k.id
         LEFT JOIN (SELECT key_id,
                      CAST(COALESCE(SUM(CASE WHEN state = 'held' THEN amount ELSE 0 END), 0) AS BIGINT) AS bound,
                      CAST(COALESCE(SUM(posted - refunded), 0) AS BIGINT) AS paid
                    FROM reservations GROUP BY key_id) h ON h.key_id = k.id
         WHERE k.held <> COALESCE(h.bound, 0) + COALESCE(a.bound, 0) OR k.spent <> COALESCE(h.paid, 0) ORDER BY k.id",
    ),
    (
        "a key's spending in its period equals its holds and allowances",
        "SELECT k.id FROM api_keys k
         LEFT JOIN (SELECT a.key_id,
                      CAST(COALESCE(SUM(CASE WHEN a.spend_day <> o.spend_day THEN 0 ELSE a.amount END), 0) AS BIGINT) AS day,
                      CAST(COALESCE(SUM(a.amount), 0) AS BIGINT) AS month
                    FROM allowances a JOIN api_keys o ON o.id = a.key_id AND o.spend_day / 100 = a.spend_day / 100
                    GROUP BY a.key_id) a ON a.key_id = k.id
         LEFT JOIN (SELECT h.key_id,
                      CAST(COALESCE(SUM(CASE WHEN h.spend_day <> o.spend_day THEN 0
                                             WHEN h.state = 'held' THEN h.amount - h.day_base
                                             WHEN h.posted - h.refunded <= h.day_base THEN 0
                                             ELSE h.posted - h.refunded - h.day_base END), 0) AS BIGINT) AS day,
                      CAST(COALESCE(SUM(CASE WHEN h.state = 'held' THEN h.amount - h.month_base
                                             WHEN h.posted - h.refunded <= h.month_base THEN 0
                                             ELSE h.posted - h.refunded - h.month_base END), 0) AS BIGINT) AS month
                    FROM reservations h JOIN api_keys o ON o.id = h.key_id AND o.spend_day / 100 = h.spend_day / 100
                    GROUP BY h.key_id) h ON h.key_id = k.id
         WHERE k.spend_day > 0 AND (k.day_spend <> COALESCE(h.day, 0) + COALESCE(a.day, 0)
                                    OR k.month_spend <> COALESCE(h.month, 0) + COALESCE(a.month, 0))
         ORDER BY k.id",
    ),
    (
        "every hold has its admission",
        "SELECT h.request_id FROM reservations h
         WHERE h.allowance IS NULL AND NOT EXISTS (SELECT 1 FROM ledger_transactions t WHERE t.id = 'hold:' || h.request_id)
         ORDER BY h.request_id",
    ),
    (
        "every allowance that was charged was taken from its payer",
        "SELECT r.id FROM requests r
         WHERE r.allowance IS NOT NULL AND NOT EXISTS (
            SELECT 1 FROM ledger_transactions t WHERE t.id = 'allowance:' || r.allowance
              AND t.account_1 = r.user_id || ':user_available')
         ORDER BY r.id",
    ),
    (
        "a resolved hold has exactly one settlement, an open one none",
        "SELECT h.request_id FROM reservations h
         LEFT JOIN (SELECT request_id, COUNT(*) AS n FROM ledger_transactions
                    WHERE kind IN ('settle', 'void') GROUP BY request_id) t ON t.request_id = h.request_id
         WHERE COALESCE(t.n, 0) <> CASE WHEN h.state = 'held' THEN 0 ELSE 1 END ORDER BY h.request_id",
    ),
    (
        "a hold is open or resolved, and resolved once",
        "SELECT request_id FROM reservations GROUP BY request_id HAVING COUNT(*) <> 1 ORDER BY request_id",
    ),
    (
        "every settlement has its request",
        "SELECT t.id FROM ledger_transactions t LEFT JOIN reservations h ON h.request_id = t.request_id
         WHERE t.kind IN ('hold', 'extend', 'settle', 'void') AND h.request_id IS NULL ORDER BY t.id",
    ),
    (
        "a request's postings from held money equal its hold",
        concat!(
            "SELECT h.request_id FROM reservations h
             LEFT JOIN (SELECT request_id, ",
            moved!("user_held"),
            " AS bound FROM ledger_transactions WHERE request_id IS NOT NULL GROUP BY request_id) b
               ON b.request_id = h.request_id
             WHERE COALESCE(b.bound, 0) <> CASE WHEN h.state = 'held' THEN h.amount
                                                WHEN h.allowance IS NULL THEN 0 ELSE -h.posted END
             ORDER BY h.request_id"
        ),
    ),
    (
        "a hold's amount is what its admission and extensions bound",
        concat!(
            "SELECT h.request_id FROM reservations h
             LEFT JOIN (SELECT request_id, ",
            moved!("user_held"),
            " AS bound FROM ledger_transactions WHERE kind IN ('hold', 'extend') GROUP BY request_id) b
               ON b.request_id = h.request_id
             WHERE h.allowance IS NULL AND h.amount <> COALESCE(b.bound, 0) ORDER BY h.request_id"
        ),
    ),
    (
        "a request's cost equals what its payer lost",
        concat!(
            "SELECT r.id FROM requests r
             LEFT JOIN (SELECT request_id, ",
            moved!("user_available"),
            " + ",
            moved!("user_held"),
            " AS paid FROM ledger_transactions WHERE kind <> 'refund' AND request_id IS NOT NULL GROUP BY request_id) b
               ON b.request_id = r.id
             WHERE r.cost <> -COALESCE(b.paid, 0) ORDER BY r.id"
        ),
    ),
    (
        "a request's reward equals its posting",
        concat!(
            "SELECT r.id FROM requests r
             LEFT JOIN (SELECT request_id, ",
            moved!("provider_pending"),
            " AS earned FROM ledger_transactions WHERE kind = 'settle' GROUP BY request_id) b ON b.request_id = r.id
             WHERE r.provider_reward <> COALESCE(b.earned, 0) ORDER BY r.id"
        ),
    ),
];

impl Db {
    /// Asks every rule of the data as it stands at one moment.
    ///
    /// # Errors
    /// The store failed, or a sum does not fit.
    pub async fn check_ledger(&self) -> Result<LedgerReport, DbError> {
        let mut tx = self.snapshot().await?;
        let mut report = LedgerReport {
            transactions: tx.number("SELECT COUNT(*) FROM ledger_transactions").await?,
            sum: tx.number("SELECT CAST(COALESCE(SUM(amount), 0) AS BIGINT) FROM postings").await?,
            resolved: tx.number("SELECT COUNT(*) FROM requests").await?,
            flags: tx.number("SELECT COUNT(*) FROM flags").await?,
            allowances: tx.number("SELECT COUNT(*) FROM allowances").await?,
            open_holds: tx.ids("SELECT request_id FROM holds ORDER BY request_id").await?,
            ..LedgerReport::default()
        };
        report.value = i128::from(
            tx.number(concat!("SELECT CAST(COALESCE(SUM(", bound!(), "), 0) AS BIGINT) FROM requests r"))
                .await?,
        );
        report.value_explained = i128::from(
            tx.number(concat!(
                "SELECT CAST(COALESCE(SUM(",
                bound!(),
                "), 0) AS BIGINT) FROM requests r
                 JOIN ledger_transactions t ON t.id = 'resolve:' || r.id
                 WHERE ",
                bound!(),
                " = CASE r.user_id || ':user_held'
                    WHEN t.account_1 THEN -t.amount_1 WHEN t.account_2 THEN -t.amount_2
                    WHEN t.account_3 THEN -t.amount_3 WHEN t.account_4 THEN -t.amount_4
                    WHEN t.account_5 THEN -t.amount_5 WHEN t.account_6 THEN -t.amount_6
                    WHEN t.account_7 THEN -t.amount_7 WHEN t.account_8 THEN -t.amount_8 ELSE 0 END",
            ))
            .await?,
        );
        for (rule, sql) in RULES {
            let ids = tx.ids(sql).await?;
            report.offence_count += ids.len();
            report.offences.extend(ids.into_iter().take(LISTED).map(|id| Offence { rule, id }));
        }
        Ok(report)
    }
}

impl Tx {
    async fn number(&mut self, sql: &'static str) -> Result<i64, DbError> {
        Ok(on!(self, c => sqlx::query_scalar(sql).fetch_one(c).await?))
    }

    async fn ids(&mut self, sql: &'static str) -> Result<Vec<String>, DbError> {
        Ok(on!(self, c => sqlx::query_scalar(sql).fetch_all(c).await?))
    }
}
