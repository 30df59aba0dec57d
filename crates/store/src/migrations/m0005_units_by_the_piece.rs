//! What is counted by the piece: seconds of audio, pages, images. Prices are stored as JSON and need no change.

use super::Migration;

pub(super) const MIGRATION: Migration = Migration {
    version: 5,
    name: "units by the piece",
    statements: &[
        "ALTER TABLE requests ADD COLUMN seconds {INT} NOT NULL DEFAULT 0",
        "ALTER TABLE requests ADD COLUMN urls {INT} NOT NULL DEFAULT 0",
        "ALTER TABLE requests ADD COLUMN images {INT} NOT NULL DEFAULT 0",
    ],
    append_only: &[],
};
