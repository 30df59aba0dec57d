//! Each row of the request path is written once, where it stays.
//!
//! - A transaction is one row with its lines, and the database itself checks that they sum to zero; `postings` is a view
//!   of them.
//! - `holds` has the open holds only, with everything that recovery needs to know; a resolved hold leaves it for its row
//!   in `requests`, which is written complete. `reservations` is a view of both, for the reconciliation.
//! - The only attempt of a request that ended like it has its figures there too (`only_epoch` and the columns after it);
//!   `attempts` has the others.
//! - A hold names its price by id and version; recorded prices cannot be changed.
//! - No foreign keys here: the guarded statements touch key, payer and accounts in the same transaction and fail without
//!   them, nothing deletes those rows, and the reconciliation asks for them.

use super::Migration;

pub(super) const MIGRATION: Migration = Migration {
    version: 4,
    name: "rows written once",
    statements: &[
        "CREATE TABLE new_transactions (
            id TEXT PRIMARY KEY,
            kind TEXT NOT NULL,
            request_id TEXT,
            attempt {INT},
            actor TEXT NOT NULL,
            reason TEXT NOT NULL,
            created_at {INT} NOT NULL,
            account_1 TEXT, amount_1 {INT},
            account_2 TEXT, amount_2 {INT},
            account_3 TEXT, amount_3 {INT},
            account_4 TEXT, amount_4 {INT},
            account_5 TEXT, amount_5 {INT},
            account_6 TEXT, amount_6 {INT},
            account_7 TEXT, amount_7 {INT},
            account_8 TEXT, amount_8 {INT},
            CONSTRAINT lines_sum_to_zero CHECK (
                COALESCE(amount_1, 0) + COALESCE(amount_2, 0) + COALESCE(amount_3, 0) + COALESCE(amount_4, 0)
                + COALESCE(amount_5, 0) + COALESCE(amount_6, 0) + COALESCE(amount_7, 0) + COALESCE(amount_8, 0) = 0)
            ){STRICT}",
        // More than eight lines would be cut and not sum to zero: that fails rather than loses one.
        "INSERT INTO new_transactions
         SELECT t.id, t.kind, t.request_id, t.attempt, t.actor, t.reason, t.created_at,
            MAX(CASE WHEN p.n = 1 THEN p.account END), MAX(CASE WHEN p.n = 1 THEN p.amount END),
            MAX(CASE WHEN p.n = 2 THEN p.account END), MAX(CASE WHEN p.n = 2 THEN p.amount END),
            MAX(CASE WHEN p.n = 3 THEN p.account END), MAX(CASE WHEN p.n = 3 THEN p.amount END),
            MAX(CASE WHEN p.n = 4 THEN p.account END), MAX(CASE WHEN p.n = 4 THEN p.amount END),
            MAX(CASE WHEN p.n = 5 THEN p.account END), MAX(CASE WHEN p.n = 5 THEN p.amount END),
            MAX(CASE WHEN p.n = 6 THEN p.account END), MAX(CASE WHEN p.n = 6 THEN p.amount END),
            MAX(CASE WHEN p.n = 7 THEN p.account END), MAX(CASE WHEN p.n = 7 THEN p.amount END),
            MAX(CASE WHEN p.n = 8 THEN p.account END), MAX(CASE WHEN p.n = 8 THEN p.amount END)
         FROM ledger_transactions t
         LEFT JOIN (SELECT tx, account, amount, ROW_NUMBER() OVER (PARTITION BY tx ORDER BY account) AS n
                    FROM postings) p ON p.tx = t.id
         GROUP BY t.id ORDER BY t.created_at, t.id",
        "DROP TABLE postings",
        "DROP TABLE ledger_transactions",
        "ALTER TABLE new_transactions RENAME TO ledger_transactions",
        "CREATE INDEX ledger_transactions_beside ON ledger_transactions (request_id)
            WHERE kind IN ('extend', 'refund', 'mature', 'payout', 'correction', 'grant')",
        "CREATE VIEW postings (tx, kind, request_id, account, amount) AS
            SELECT id, kind, request_id, account_1, amount_1 FROM ledger_transactions WHERE account_1 IS NOT NULL
            UNION ALL
            SELECT id, kind, request_id, account_2, amount_2 FROM ledger_transactions WHERE account_2 IS NOT NULL
            UNION ALL
            SELECT id, kind, request_id, account_3, amount_3 FROM ledger_transactions WHERE account_3 IS NOT NULL
            UNION ALL
            SELECT id, kind, request_id, account_4, amount_4 FROM ledger_transactions WHERE account_4 IS NOT NULL
            UNION ALL
            SELECT id, kind, request_id, account_5, amount_5 FROM ledger_transactions WHERE account_5 IS NOT NULL
            UNION ALL
            SELECT id, kind, request_id, account_6, amount_6 FROM ledger_transactions WHERE account_6 IS NOT NULL
            UNION ALL
            SELECT id, kind, request_id, account_7, amount_7 FROM ledger_transactions WHERE account_7 IS NOT NULL
            UNION ALL
            SELECT id, kind, request_id, account_8, amount_8 FROM ledger_transactions WHERE account_8 IS NOT NULL",
        "CREATE TABLE new_holds (
            request_id TEXT PRIMARY KEY,
            user_id TEXT NOT NULL,
            key_id TEXT NOT NULL,
            amount {INT} NOT NULL CHECK (amount >= 0),
            extensions {INT} NOT NULL DEFAULT 0,
            spend_day {INT} NOT NULL DEFAULT 0,
            day_base {INT} NOT NULL DEFAULT 0 CHECK (day_base >= 0),
            month_base {INT} NOT NULL DEFAULT 0 CHECK (month_base >= 0),
            replica TEXT NOT NULL,
            epoch {INT} NOT NULL,
            route TEXT NOT NULL,
            model TEXT NOT NULL,
            service TEXT NOT NULL,
            streamed {INT} NOT NULL CHECK (streamed IN (0, 1)),
            title TEXT,
            referer TEXT,
            price_id TEXT NOT NULL,
            price_version {INT} NOT NULL,
            created_at {INT} NOT NULL,
            attempt {INT} NOT NULL DEFAULT 0,
            provision_id TEXT,
            provider TEXT,
            accepted_at {INT},
            checkpoint TEXT){COMPACT}",
        "INSERT INTO new_holds
         SELECT h.request_id, h.user_id, h.key_id, h.amount, h.extensions, h.spend_day, h.day_base, h.month_base,
            h.replica, h.epoch, r.route, r.model, r.service, r.streamed, r.title, r.referer, r.price_id,
            r.price_version, r.created_at, h.attempt, h.provision_id, h.provider, h.accepted_at, h.checkpoint
         FROM holds h JOIN requests r ON r.id = h.request_id WHERE h.state = 'held'",
        "INSERT INTO prices (id, version, price, valid_from)
         SELECT r.price_id, r.price_version, MIN(h.price), MIN(h.created_at)
         FROM holds h JOIN requests r ON r.id = h.request_id WHERE h.state = 'held'
         GROUP BY r.price_id, r.price_version
         ON CONFLICT (id, version) DO NOTHING",
        // The payer comes first: reads of one request name both, lists of a payer's requests are in order of time.
        "CREATE TABLE new_requests (
            id TEXT NOT NULL,
            user_id TEXT NOT NULL,
            key_id TEXT NOT NULL,
            state TEXT NOT NULL CHECK (state IN ('posted', 'voided', 'expired')),
            held {INT} NOT NULL CHECK (held >= 0),
            cost {INT} NOT NULL CHECK (cost >= 0 AND cost <= held),
            refunded {INT} NOT NULL DEFAULT 0 CHECK (refunded >= 0 AND refunded <= cost),
            spend_day {INT} NOT NULL,
            day_base {INT} NOT NULL CHECK (day_base >= 0),
            month_base {INT} NOT NULL CHECK (month_base >= 0),
            replica TEXT NOT NULL,
            route TEXT NOT NULL,
            model TEXT NOT NULL,
            service TEXT NOT NULL,
            streamed {INT} NOT NULL CHECK (streamed IN (0, 1)),
            title TEXT,
            referer TEXT,
            price_id TEXT NOT NULL,
            price_version {INT} NOT NULL,
            outcome TEXT NOT NULL,
            finish_reason TEXT,
            provision_id TEXT,
            provider TEXT,
            attempts {INT} NOT NULL,
            prompt {INT} NOT NULL,
            completion {INT} NOT NULL,
            embedding {INT} NOT NULL,
            characters {INT} NOT NULL,
            claimed TEXT,
            provider_reward {INT} NOT NULL CHECK (provider_reward >= 0),
            platform_fee {INT} NOT NULL,
            platform_loss {INT} NOT NULL,
            first_token_ms {INT},
            latency_ms {INT},
            created_at {INT} NOT NULL,
            finished_at {INT} NOT NULL,
            only_epoch {INT},
            only_accept_ms {INT},
            only_first_token_ms {INT},
            only_total_ms {INT},
            PRIMARY KEY (user_id, id)){STRICT}",
        "INSERT INTO new_requests
         SELECT r.id, r.user_id, r.key_id, h.state, h.amount, r.cost, h.refunded, h.spend_day, h.day_base, h.month_base,
            h.replica, r.route, r.model, r.service, r.streamed, r.title, r.referer, r.price_id, r.price_version,
            r.outcome, r.finish_reason, r.provision_id, r.provider, r.attempts, r.prompt, r.completion, r.embedding,
            r.characters, r.claimed, r.provider_reward, r.platform_fee, r.platform_loss, r.first_token_ms,
            r.latency_ms, r.created_at, r.finished_at, NULL, NULL, NULL, NULL
         FROM requests r JOIN holds h ON h.request_id = r.id WHERE h.state <> 'held' ORDER BY r.id",
        "DROP TABLE holds",
        "DROP TABLE requests",
        "ALTER TABLE new_holds RENAME TO holds",
        "ALTER TABLE new_requests RENAME TO requests",
        "CREATE VIEW reservations (request_id, user_id, key_id, state, amount, posted, refunded, spend_day, day_base,
                month_base) AS
            SELECT request_id, user_id, key_id, 'held', amount, 0, 0, spend_day, day_base, month_base FROM holds
            UNION ALL
            SELECT id, user_id, key_id, state, held, cost, refunded, spend_day, day_base, month_base FROM requests",
    ],
    append_only: &["ledger_transactions", "prices"],
};
