//! Services that ran out of memory on a provision, and with how much they are planned there since.

use super::Migration;

pub(super) const MIGRATION: Migration = Migration {
    version: 9,
    name: "memory_floors",
    statements: &["CREATE TABLE memory_floors (
            provision_id TEXT NOT NULL,
            service TEXT NOT NULL,
            memory {INT} NOT NULL CHECK (memory >= 0),
            learned_at {INT} NOT NULL,
            PRIMARY KEY (provision_id, service)){COMPACT}"],
    append_only: &[],
};
