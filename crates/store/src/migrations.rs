//! The ordered list of migrations, the same for both databases. A released migration is never edited; a change is a
//! new entry at the end.

use cxmpute_market::ledger::{Account, AccountKind};
use sqlx::AssertSqlSafe;

use crate::db::{Db, DbKind, Tx, on};
use crate::dialect;
use crate::error::DbError;

mod m0001_house;
mod m0002_limits;
mod m0003_leaner_ledger;
mod m0004_rows_once;
mod m0005_units_by_the_piece;
mod m0006_demand;
mod m0007_no_lists;
mod m0008_allowances;
mod m0009_memory_floors;

/// One change of the schema.
pub(crate) struct Migration {
    /// Position, from 1.
    pub(crate) version: i64,
    /// What it is about.
    pub(crate) name: &'static str,
    /// Statements with placeholders, in order.
    pub(crate) statements: &'static [&'static str],
    /// Tables whose rows may never change.
    pub(crate) append_only: &'static [&'static str],
}

const MIGRATIONS: &[Migration] = &[
    m0001_house::MIGRATION,
    m0002_limits::MIGRATION,
    m0003_leaner_ledger::MIGRATION,
    m0004_rows_once::MIGRATION,
    m0005_units_by_the_piece::MIGRATION,
    m0006_demand::MIGRATION,
    m0007_no_lists::MIGRATION,
    m0008_allowances::MIGRATION,
    m0009_memory_floors::MIGRATION,
];

/// The newest schema version this program knows.
pub const SCHEMA_VERSION: i64 = MIGRATIONS[MIGRATIONS.len() - 1].version;

/// Key of the transaction-level lock that lets one of several starting replicas migrate.
const POSTGRES_LOCK: i64 = 0x6378_6d70;

/// Brings the database to [`SCHEMA_VERSION`]; each migration is one transaction.
pub(crate) async fn run(db: &Db) -> Result<(), DbError> {
    run_to(db, SCHEMA_VERSION).await
}

async fn run_to(db: &Db, version: i64) -> Result<(), DbError> {
    let kind = db.kind();
    let mut tx = db.begin().await?;
    if kind == DbKind::Postgres {
        on!(&mut tx, c => sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(POSTGRES_LOCK).execute(c).await?.rows_affected());
    }
    raw(
        &mut tx,
        dialect::expand(
            kind,
            "CREATE TABLE IF NOT EXISTS schema_version (
                version {INT} PRIMARY KEY, name TEXT NOT NULL, applied_at {INT} NOT NULL){STRICT}",
        ),
    )
    .await?;
    let found: i64 = on!(&mut tx, c =>
        sqlx::query_scalar("SELECT CAST(COALESCE(MAX(version), 0) AS BIGINT) FROM schema_version").fetch_one(c).await?);
    if found > SCHEMA_VERSION {
        return Err(DbError::NewerSchema { found, known: SCHEMA_VERSION });
    }
    for migration in MIGRATIONS.iter().filter(|m| m.version > found && m.version <= version) {
        apply(&mut tx, kind, migration).await?;
    }
    tx.commit().await
}

async fn apply(tx: &mut Tx, kind: DbKind, migration: &Migration) -> Result<(), DbError> {
    for statement in migration.statements {
        raw(tx, dialect::expand(kind, statement)).await?;
    }
    if migration.version == 1 {
        system_accounts(tx).await?;
    }
    for table in migration.append_only {
        for statement in dialect::append_only(kind, table) {
            raw(tx, statement).await?;
        }
    }
    let sql = format!(
        "INSERT INTO schema_version (version, name, applied_at) VALUES ($1, $2, {})",
        dialect::now_ms(kind)
    );
    on!(tx, c =>
        sqlx::query(AssertSqlSafe(sql)).bind(migration.version).bind(migration.name).execute(c).await?.rows_affected());
    Ok(())
}

/// The accounts that exist once.
async fn system_accounts(tx: &mut Tx) -> Result<(), DbError> {
    for kind in AccountKind::OF_SYSTEM {
        let account = Account::system(kind);
        on!(&mut *tx, c =>
            sqlx::query("INSERT INTO ledger_accounts (id, owner, kind, balance) VALUES ($1, $2, $3, 0)")
                .bind(account.id())
                .bind(Account::SYSTEM)
                .bind(kind.as_str())
                .execute(c)
                .await?
                .rows_affected());
    }
    Ok(())
}

async fn raw(tx: &mut Tx, sql: String) -> Result<(), DbError> {
    on!(tx, c => sqlx::raw_sql(AssertSqlSafe(sql)).execute(c).await?.rows_affected());
    Ok(())
}

#[cfg(test)]
mod tests;
