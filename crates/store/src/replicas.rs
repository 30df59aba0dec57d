//! Gateway processes and their leases. A replica's epoch grows with every start; holds carry it, so that a process
//! that was thought dead cannot resolve what another one has taken over (MR16, MR56).

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use sqlx::AssertSqlSafe;

use crate::db::{Db, on};
use crate::dialect;
use crate::error::DbError;

/// How long a replica counts as alive after its last sign, in milliseconds of database time.
pub const LEASE_MS: i64 = 15_000;

/// This process as the store knows it. Dropping the last clone gives the SQLite database free for another process.
#[derive(Debug, Clone)]
pub struct Replica {
    /// Name.
    pub id: String,
    /// Start number.
    pub epoch: i64,
    _lock: Option<Arc<File>>,
}

impl Db {
    /// Registers this process under `name` with the next epoch. On SQLite it also takes the file that marks the
    /// database as served, which the operating system frees when the process dies.
    ///
    /// # Errors
    /// [`DbError::InUse`] when another process serves this SQLite database; the store failed.
    pub async fn claim_replica(&self, name: &str) -> Result<Replica, DbError> {
        let lock = match self {
            Self::Sqlite(db) => Some(Arc::new(lock_file(&db.path)?)),
            Self::Postgres(_) => None,
        };
        let now = dialect::now_ms(self.kind());
        let sql = format!(
            "INSERT INTO replicas (id, epoch, started_at, lease_until) VALUES ($1, 1, {now}, {now} + $2)
             ON CONFLICT (id) DO UPDATE SET epoch = replicas.epoch + 1, started_at = {now}, lease_until = {now} + $2
             RETURNING epoch"
        );
        let mut tx = self.begin().await?;
        let epoch: i64 = on!(&mut tx, c =>
            sqlx::query_scalar(AssertSqlSafe(sql)).bind(name).bind(LEASE_MS).fetch_one(c).await?);
        tx.commit().await?;
        Ok(Replica { id: name.to_owned(), epoch, _lock: lock })
    }

    /// Renews the lease. False when a newer process has the name: this one must stop.
    ///
    /// # Errors
    /// The store failed.
    pub async fn renew_replica(&self, replica: &Replica) -> Result<bool, DbError> {
        let sql = format!(
            "UPDATE replicas SET lease_until = {} + $3 WHERE id = $1 AND epoch = $2",
            dialect::now_ms(self.kind())
        );
        let mut tx = self.begin().await?;
        let done = on!(&mut tx, c =>
            sqlx::query(AssertSqlSafe(sql))
                .bind(&replica.id)
                .bind(replica.epoch)
                .bind(LEASE_MS)
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await?;
        Ok(done == 1)
    }

    /// Ends the lease now, after the last hold is resolved.
    ///
    /// # Errors
    /// The store failed.
    pub async fn release_replica(&self, replica: &Replica) -> Result<(), DbError> {
        let mut tx = self.begin().await?;
        on!(&mut tx, c =>
            sqlx::query("UPDATE replicas SET lease_until = 0 WHERE id = $1 AND epoch = $2")
                .bind(&replica.id)
                .bind(replica.epoch)
                .execute(c)
                .await?
                .rows_affected());
        tx.commit().await
    }
}

fn lock_file(database: &std::path::Path) -> Result<File, DbError> {
    let mut path = database.as_os_str().to_owned();
    path.push(".lock");
    let path = PathBuf::from(path);
    let unwritable = |source| DbError::Unwritable { path: path.clone(), source };
    let file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(unwritable)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(DbError::InUse { path }),
        Err(std::fs::TryLockError::Error(source)) => Err(unwritable(source)),
    }
}
