//! The few true differences between the two databases.

use crate::db::DbKind;

/// Database time in milliseconds; leases are measured with it, never with a process's clock (MR56).
pub(crate) const fn now_ms(kind: DbKind) -> &'static str {
    match kind {
        DbKind::Sqlite => "CAST(unixepoch('subsec') * 1000 AS INTEGER)",
        DbKind::Postgres => "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)",
    }
}

/// The UTC day in database time as a number such as 20261121; divided by 100 it is the month. It may lie behind the day
/// that another transaction has seen already, never before this transaction began.
pub(crate) const fn today(kind: DbKind) -> &'static str {
    match kind {
        DbKind::Sqlite => "CAST(strftime('%Y%m%d', 'now') AS INTEGER)",
        DbKind::Postgres => "CAST(to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD') AS BIGINT)",
    }
}

/// Fills the placeholders of a migration.
pub(crate) fn expand(kind: DbKind, sql: &str) -> String {
    let (int, bytes, strict, compact) = match kind {
        DbKind::Sqlite => ("INTEGER", "BLOB", " STRICT", " STRICT, WITHOUT ROWID"),
        DbKind::Postgres => ("BIGINT", "BYTEA", "", ""),
    };
    sql.replace("{INT}", int)
        .replace("{BYTES}", bytes)
        .replace("{STRICT}", strict)
        .replace("{COMPACT}", compact)
        .replace("{NOW}", now_ms(kind))
}

/// Triggers that refuse to change or delete rows of a table (MR7: nobody has those rights on postings).
pub(crate) fn append_only(kind: DbKind, table: &str) -> Vec<String> {
    match kind {
        DbKind::Sqlite => ["UPDATE", "DELETE"]
            .iter()
            .map(|verb| {
                format!(
                    "CREATE TRIGGER {table}_no_{} BEFORE {verb} ON {table} \
                     BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END",
                    verb.to_lowercase()
                )
            })
            .collect(),
        DbKind::Postgres => vec![
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"
                .to_owned(),
            format!(
                "CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} \
                 FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
            ),
        ],
    }
}
