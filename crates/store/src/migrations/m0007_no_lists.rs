//! For `x IN (…)` with more than two values SQLite builds a table of the values each time that a statement runs. The
//! condition of an index ran with every transaction that is entered, a check with every request that ends. Comparisons say
//! the same.

use super::Migration;

pub(super) const MIGRATION: Migration = Migration {
    version: 7,
    name: "no lists",
    statements: &[
        "DROP INDEX ledger_transactions_beside",
        "CREATE INDEX ledger_transactions_beside ON ledger_transactions (request_id)
            WHERE kind <> 'hold' AND kind <> 'settle' AND kind <> 'void'",
        // A check cannot be changed, so the column gets a successor.
        "DROP VIEW reservations",
        "ALTER TABLE requests ADD COLUMN ended_as TEXT NOT NULL DEFAULT 'voided'
            CHECK (ended_as = 'posted' OR ended_as = 'voided' OR ended_as = 'expired')",
        "UPDATE requests SET ended_as = state WHERE state <> 'voided'",
        "ALTER TABLE requests DROP COLUMN state",
        "ALTER TABLE requests RENAME COLUMN ended_as TO state",
        "CREATE VIEW reservations (request_id, user_id, key_id, state, amount, posted, refunded, spend_day, day_base,
                month_base) AS
            SELECT request_id, user_id, key_id, 'held', amount, 0, 0, spend_day, day_base, month_base FROM holds
            UNION ALL
            SELECT id, user_id, key_id, state, held, cost, refunded, spend_day, day_base, month_base FROM requests",
    ],
    append_only: &[],
};
