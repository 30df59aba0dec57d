//! Limits of keys and accounts, and what a key has spent in the current day and month.
//!
//! A limit that is NULL takes the default of `limit_defaults`; 0 is "no limit". `spend_day` is the UTC day (20261121)
//! in database time to which `day_spend` belongs, and its month is the one of `month_spend`; both count what is held
//! and what was paid. A hold remembers the day of its last reservation, and how much of it was reserved before that
//! day and before that month, so that what it gives back goes to the period it came from.

use super::Migration;

pub(super) const MIGRATION: Migration = Migration {
    version: 2,
    name: "limits",
    statements: &[
        "ALTER TABLE api_keys ADD COLUMN requests_per_minute {INT} CHECK (requests_per_minute >= 0)",
        "ALTER TABLE api_keys ADD COLUMN tokens_per_minute {INT} CHECK (tokens_per_minute >= 0)",
        "ALTER TABLE api_keys ADD COLUMN concurrent {INT} CHECK (concurrent >= 0)",
        "ALTER TABLE api_keys ADD COLUMN spend_per_day {INT} CHECK (spend_per_day >= 0)",
        "ALTER TABLE api_keys ADD COLUMN spend_per_month {INT} CHECK (spend_per_month >= 0)",
        "ALTER TABLE api_keys ADD COLUMN models TEXT",
        "ALTER TABLE api_keys ADD COLUMN routes TEXT",
        "ALTER TABLE api_keys ADD COLUMN expires_at {INT}",
        "ALTER TABLE api_keys ADD COLUMN strict {INT} NOT NULL DEFAULT 0 CHECK (strict IN (0, 1))",
        "ALTER TABLE api_keys ADD COLUMN force_usage {INT} NOT NULL DEFAULT 0 CHECK (force_usage IN (0, 1))",
        "ALTER TABLE api_keys ADD COLUMN spend_day {INT} NOT NULL DEFAULT 0",
        "ALTER TABLE api_keys ADD COLUMN day_spend {INT} NOT NULL DEFAULT 0 CHECK (day_spend >= 0)",
        "ALTER TABLE api_keys ADD COLUMN month_spend {INT} NOT NULL DEFAULT 0 CHECK (month_spend >= 0)",
        "ALTER TABLE users ADD COLUMN requests_per_minute {INT} CHECK (requests_per_minute >= 0)",
        "ALTER TABLE users ADD COLUMN tokens_per_minute {INT} CHECK (tokens_per_minute >= 0)",
        "ALTER TABLE users ADD COLUMN concurrent {INT} CHECK (concurrent >= 0)",
        "ALTER TABLE users ADD COLUMN spend_per_day {INT} CHECK (spend_per_day >= 0)",
        "ALTER TABLE users ADD COLUMN spend_per_month {INT} CHECK (spend_per_month >= 0)",
        "ALTER TABLE users ADD COLUMN models TEXT",
        "ALTER TABLE users ADD COLUMN routes TEXT",
        "ALTER TABLE holds ADD COLUMN spend_day {INT} NOT NULL DEFAULT 0",
        "ALTER TABLE holds ADD COLUMN day_base {INT} NOT NULL DEFAULT 0 CHECK (day_base >= 0)",
        "ALTER TABLE holds ADD COLUMN month_base {INT} NOT NULL DEFAULT 0 CHECK (month_base >= 0)",
        // The defaults of the configuration, one row per kind of subject, written at every start.
        "CREATE TABLE limit_defaults (
            subject TEXT PRIMARY KEY CHECK (subject IN ('key', 'account')),
            requests_per_minute {INT},
            tokens_per_minute {INT},
            concurrent {INT},
            spend_per_day {INT},
            spend_per_month {INT}){STRICT}",
        "INSERT INTO limit_defaults (subject) VALUES ('key'), ('account')",
    ],
    append_only: &[],
};
