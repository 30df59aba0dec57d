//! What each replica was asked for lately, so that each plans for what all were asked for.

use super::Migration;

pub(super) const MIGRATION: Migration = Migration {
    version: 6,
    name: "demand",
    statements: &["CREATE TABLE demand (
            replica TEXT NOT NULL,
            service TEXT NOT NULL,
            requests {INT} NOT NULL CHECK (requests >= 0),
            queued {INT} NOT NULL CHECK (queued >= 0),
            refused {INT} NOT NULL CHECK (refused >= 0),
            units {INT} NOT NULL CHECK (units >= 0),
            counted_at {INT} NOT NULL,
            PRIMARY KEY (replica, service)){COMPACT}"],
    append_only: &[],
};
