//! Fewer index pages per commit. The ids of a request's admission and settlement are made of its own (`hold:REQUEST`,
//! `resolve:REQUEST`), so only its other transactions need an index; nothing asks for the postings of one account but
//! the reconciliation, which reads all of them.

use super::Migration;

pub(super) const MIGRATION: Migration = Migration {
    version: 3,
    name: "leaner ledger",
    statements: &[
        "DROP INDEX postings_of_account",
        "DROP INDEX ledger_transactions_of_request",
        "CREATE INDEX ledger_transactions_beside ON ledger_transactions (request_id)
            WHERE kind IN ('extend', 'refund', 'mature', 'payout', 'correction', 'grant')",
    ],
    append_only: &[],
};
