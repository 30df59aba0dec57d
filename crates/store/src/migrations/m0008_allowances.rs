//! Money that a replica takes from an account beforehand, so that requests of a busy key need no row when they are
//! admitted. What is left of it is `amount`; a request that was charged to one names it.

use super::Migration;

pub(super) const MIGRATION: Migration = Migration {
    version: 8,
    name: "allowances",
    statements: &[
        "CREATE TABLE allowances (
            id TEXT PRIMARY KEY,
            user_id TEXT NOT NULL,
            key_id TEXT NOT NULL,
            replica TEXT NOT NULL,
            epoch {INT} NOT NULL,
            amount {INT} NOT NULL CHECK (amount >= 0),
            spend_day {INT} NOT NULL,
            recalled {INT} NOT NULL DEFAULT 0 CHECK (recalled IN (0, 1)),
            created_at {INT} NOT NULL){COMPACT}",
        "CREATE INDEX allowances_of_user ON allowances (user_id)",
        "ALTER TABLE requests ADD COLUMN allowance TEXT",
        "DROP VIEW reservations",
        "CREATE VIEW reservations (request_id, user_id, key_id, state, amount, posted, refunded, spend_day, day_base,
                month_base, allowance) AS
            SELECT request_id, user_id, key_id, 'held', amount, 0, 0, spend_day, day_base, month_base, NULL FROM holds
            UNION ALL
            SELECT id, user_id, key_id, state, held, cost, refunded, spend_day, day_base, month_base, allowance
            FROM requests",
    ],
    append_only: &[],
};
