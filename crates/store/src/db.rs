//! Opening a database and holding a transaction. A transaction is a value: dropping it undoes it.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use cxmpute_wire::Timestamp;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, Postgres, Sqlite, Transaction};
use tokio::sync::Mutex;

use crate::committer::{Committer, Turn};
use crate::error::{Cause, DbError};
use crate::{dialect, migrations};

/// Readers beside the one writer of SQLite; more would only queue for the same two or three cores.
const SQLITE_READERS: u32 = 4;
/// Connections of one process to PostgreSQL.
const POSTGRES_CONNECTIONS: u32 = 8;
/// How long a writer waits for another process (a CLI command beside a gateway).
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a caller waits for a free connection before the store counts as away.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// Prepared statements kept per connection; above the number of texts in this crate.
const STATEMENT_CACHE: usize = 300;

/// Which database it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DbKind {
    /// The bundled SQLite.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

/// An open database. Cloning shares the connections.
#[derive(Debug, Clone)]
pub enum Db {
    /// The bundled SQLite.
    Sqlite(SqliteDb),
    /// PostgreSQL.
    Postgres(PostgresDb),
}

/// SQLite: one writer connection for transactions, one for batches, some readers.
#[derive(Debug, Clone)]
pub struct SqliteDb {
    pub(crate) path: Arc<Path>,
    pub(crate) writer: SqlitePool,
    pub(crate) readers: SqlitePool,
    /// Whose turn it is to write: transactions of the pool or batches.
    turns: Arc<Mutex<()>>,
    pub(crate) committer: Arc<Committer>,
}

impl SqliteDb {
    /// Waits for the right to write.
    pub(crate) async fn turn(&self) -> Result<Turn, DbError> {
        let turn = tokio::time::timeout(ACQUIRE_TIMEOUT, self.turns.clone().lock_owned()).await;
        turn.map_err(|_| DbError::Unavailable(Cause::Sqlx(sqlx::Error::PoolTimedOut)))
    }
}

/// A transaction on SQLite.
#[derive(Debug)]
pub struct SqliteTx {
    tx: Transaction<'static, Sqlite>,
    /// Given on when the transaction ends; one that only reads has none.
    _turn: Option<Turn>,
}

impl std::ops::Deref for SqliteTx {
    type Target = sqlx::SqliteConnection;

    fn deref(&self) -> &Self::Target {
        &self.tx
    }
}

impl std::ops::DerefMut for SqliteTx {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.tx
    }
}

/// PostgreSQL: one pool.
#[derive(Debug, Clone)]
pub struct PostgresDb {
    pub(crate) pool: PgPool,
}

/// An open transaction.
#[derive(Debug)]
pub enum Tx {
    /// On SQLite.
    Sqlite(SqliteTx),
    /// On PostgreSQL.
    Postgres(Transaction<'static, Postgres>),
}

/// Runs a body on a transaction's connection, once per database: one text of SQL and Rust for both.
macro_rules! on {
    ($tx:expr, $connection:ident => $body:expr) => {
        match $tx {
            $crate::db::Tx::Sqlite(tx) => {
                let $connection = &mut **tx;
                $body
            }
            $crate::db::Tx::Postgres(tx) => {
                let $connection = &mut **tx;
                $body
            }
        }
    };
}

/// Runs a body on a connection for reading.
macro_rules! read {
    ($db:expr, $executor:ident => $body:expr) => {
        match $db {
            $crate::db::Db::Sqlite(db) => {
                let $executor = &db.readers;
                $body
            }
            $crate::db::Db::Postgres(db) => {
                let $executor = &db.pool;
                $body
            }
        }
    };
}

pub(crate) use {on, read};

impl Db {
    /// Opens `sqlite:PATH` or `postgres://…`, checks it and brings it to this program's schema.
    ///
    /// # Errors
    /// The address is unusable, the place unwritable, the file damaged, its schema newer, or the server away.
    pub async fn open(address: &str) -> Result<Self, DbError> {
        let db = Self::connect(address).await?;
        migrations::run(&db).await?;
        Ok(db)
    }

    /// Opens a database with whatever schema it has.
    pub(crate) async fn connect(address: &str) -> Result<Self, DbError> {
        Ok(if let Some(path) = address.strip_prefix("sqlite:") {
            Self::Sqlite(open_sqlite(Path::new(path.strip_prefix("//").unwrap_or(path))).await?)
        } else if address.starts_with("postgres://") || address.starts_with("postgresql://") {
            Self::Postgres(open_postgres(address).await?)
        } else {
            return Err(DbError::BadAddress { reason: "its scheme is unknown".into() });
        })
    }

    /// Which database it is.
    #[must_use]
    pub fn kind(&self) -> DbKind {
        match self {
            Self::Sqlite(_) => DbKind::Sqlite,
            Self::Postgres(_) => DbKind::Postgres,
        }
    }

    /// Begins a transaction that may write. On SQLite it holds the write lock from the start, so that it never has
    /// to give up half-way.
    ///
    /// # Errors
    /// The store is away or busy.
    pub async fn begin(&self) -> Result<Tx, DbError> {
        Ok(match self {
            Self::Sqlite(db) => {
                let turn = Some(db.turn().await?);
                Tx::Sqlite(SqliteTx { tx: db.writer.begin_with("BEGIN IMMEDIATE").await?, _turn: turn })
            }
            Self::Postgres(db) => Tx::Postgres(db.pool.begin().await?),
        })
    }

    /// Begins a transaction that sees one moment of the database throughout, for reports.
    ///
    /// # Errors
    /// The store is away.
    pub async fn snapshot(&self) -> Result<Tx, DbError> {
        Ok(match self {
            Self::Sqlite(db) => Tx::Sqlite(SqliteTx { tx: db.readers.begin().await?, _turn: None }),
            Self::Postgres(db) => {
                Tx::Postgres(db.pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?)
            }
        })
    }

    /// Database time.
    ///
    /// # Errors
    /// The store is away.
    pub async fn now(&self) -> Result<Timestamp, DbError> {
        let sql = format!("SELECT {}", dialect::now_ms(self.kind()));
        let now: i64 = read!(self, e => sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(e).await?);
        Ok(Timestamp(now))
    }

    /// Whether the store answers; for `/readyz`.
    ///
    /// # Errors
    /// It does not.
    pub async fn ping(&self) -> Result<(), DbError> {
        read!(self, e => sqlx::query("SELECT 1").execute(e).await?.rows_affected());
        Ok(())
    }

    /// How durable a commit is, as the database itself says: `(journal mode, synchronous)`.
    ///
    /// # Errors
    /// The store is away.
    pub async fn durability(&self) -> Result<(String, String), DbError> {
        Ok(match self {
            Self::Sqlite(db) => {
                let (journal, synchronous) = db.committer.durability().await?;
                let name = match synchronous {
                    0 => "OFF",
                    1 => "NORMAL",
                    2 => "FULL",
                    _ => "EXTRA",
                };
                (journal, name.to_owned())
            }
            Self::Postgres(db) => {
                let synchronous: String =
                    sqlx::query_scalar("SHOW synchronous_commit").fetch_one(&db.pool).await?;
                ("wal".to_owned(), synchronous)
            }
        })
    }

    /// Closes all connections; on SQLite this also folds the write-ahead log into the file.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(db) => {
                db.readers.close().await;
                db.committer.close().await;
                db.writer.close().await;
            }
            Self::Postgres(db) => db.pool.close().await,
        }
    }
}

impl Tx {
    /// Which database it is on.
    pub(crate) fn kind(&self) -> DbKind {
        match self {
            Self::Sqlite(_) => DbKind::Sqlite,
            Self::Postgres(_) => DbKind::Postgres,
        }
    }

    /// Makes the transaction durable.
    ///
    /// # Errors
    /// The outcome is unknown when this fails; find out by reading a row (MR36).
    pub async fn commit(self) -> Result<(), DbError> {
        match self {
            Self::Sqlite(tx) => tx.tx.commit().await?,
            Self::Postgres(tx) => tx.commit().await?,
        }
        Ok(())
    }

    /// Undoes the transaction now instead of when it is dropped.
    ///
    /// # Errors
    /// The store is away; the transaction is undone all the same.
    pub async fn rollback(self) -> Result<(), DbError> {
        match self {
            Self::Sqlite(tx) => tx.tx.rollback().await?,
            Self::Postgres(tx) => tx.rollback().await?,
        }
        Ok(())
    }
}

async fn open_sqlite(path: &Path) -> Result<SqliteDb, DbError> {
    if path.as_os_str().is_empty() {
        return Err(DbError::BadAddress { reason: "it names no file".into() });
    }
    prepare_file(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .statement_cache_capacity(STATEMENT_CACHE)
        .pragma("mmap_size", "0");
    let pool = || {
        SqlitePoolOptions::new()
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
    };
    let writer = pool().max_connections(1).connect_with(options.clone()).await?;
    let verdict: String = sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&writer).await?;
    if verdict != "ok" {
        return Err(DbError::Damaged { detail: verdict });
    }
    let readers =
        pool().max_connections(SQLITE_READERS).connect_lazy_with(options.pragma("query_only", "ON"));
    let path: Arc<Path> = path.into();
    let committer = Arc::new(Committer::new(path.clone()));
    Ok(SqliteDb { path, writer, readers, turns: Arc::default(), committer })
}

/// Makes directory and file, readable by their owner only, and proves that both can be written.
fn prepare_file(path: &Path) -> Result<(), DbError> {
    use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
    let unwritable = |path: &Path, source| DbError::Unwritable { path: path.to_owned(), source };
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&directory)
        .map_err(|e| unwritable(&directory, e))?;
    // SQLite writes beside the file too (-wal, -shm), so the directory itself must be writable.
    let probe = directory.join(format!(".cxmpute-probe-{}", std::process::id()));
    std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&probe)
        .and_then(|_| std::fs::remove_file(&probe))
        .map_err(|e| unwritable(&directory, e))?;
    std::fs::OpenOptions::new()
        .read(true)
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
        .map(drop)
        .map_err(|e| unwritable(path, e))
}

async fn open_postgres(address: &str) -> Result<PostgresDb, DbError> {
    let options = PgConnectOptions::from_str(address)
        .map_err(|_| DbError::BadAddress { reason: "it is not a PostgreSQL address".into() })?
        .application_name("cxmpute")
        .statement_cache_capacity(STATEMENT_CACHE)
        .options([
            ("synchronous_commit", "on"),
            ("statement_timeout", "10s"),
            ("lock_timeout", "5s"),
            ("idle_in_transaction_session_timeout", "30s"),
        ]);
    let pool = PgPoolOptions::new()
        .max_connections(POSTGRES_CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .connect_with(options)
        .await?;
    Ok(PostgresDb { pool })
}
