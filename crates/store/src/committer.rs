//! The thread that commits batches on SQLite. It owns a connection, so that a batch costs one hand-over instead of
//! two per statement; it is started by the first batch and ends with the database.

use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::db::BUSY_TIMEOUT;
use crate::error::{Cause, DbError};
use crate::lane::{Lane, Own};
use crate::ledger::{BatchError, LedgerOp, LedgerReply, apply_batch};

/// Pages of 4 KiB kept in memory: the ends of the tables, which every batch writes; the others come from the operating
/// system's cache. More costs CPU: where a batch rearranges pages of a tree, SQLite (`balance_nonroot`) gives one of them
/// a number beyond the file for a moment, and looks at every page of its cache for such numbers when it commits.
const CACHE_PAGES: i64 = 500;
/// Pages in the write-ahead log before they are folded into the file. A page that many batches write is folded once.
const CHECKPOINT_PAGES: i64 = 4_000;

/// The right to write, first come, first served. SQLite has one writer at a time and no queue for the others.
pub(crate) type Turn = OwnedMutexGuard<()>;

/// What the thread is asked to do.
enum Order {
    Apply { ops: Vec<LedgerOp>, turn: Turn, reply: oneshot::Sender<Result<Vec<LedgerReply>, BatchError>> },
    Durability(oneshot::Sender<Result<(String, i64), DbError>>),
    Close(oneshot::Sender<()>),
}

/// The door to the thread.
#[derive(Debug)]
pub(crate) struct Committer {
    path: Arc<Path>,
    orders: Mutex<State>,
}

#[derive(Debug)]
enum State {
    Waiting,
    Running(Sender<Order>),
    Closed,
}

impl Committer {
    pub(crate) fn new(path: Arc<Path>) -> Self {
        Self { path, orders: Mutex::new(State::Waiting) }
    }

    /// Makes all operations durable in one commit. It happens also when nobody waits for the answer any more.
    pub(crate) async fn apply(&self, ops: Vec<LedgerOp>, turn: Turn) -> Result<Vec<LedgerReply>, BatchError> {
        let (reply, answer) = oneshot::channel();
        self.send(Order::Apply { ops, turn, reply }).map_err(BatchError::Undone)?;
        // A thread that died in the middle says nothing about the commit.
        answer.await.unwrap_or_else(|_| Err(BatchError::Unknown(crashed())))
    }

    /// Journal mode and `synchronous` of the connection that commits.
    pub(crate) async fn durability(&self) -> Result<(String, i64), DbError> {
        let (reply, answer) = oneshot::channel();
        self.send(Order::Durability(reply))?;
        answer.await.unwrap_or_else(|_| Err(crashed()))
    }

    /// Ends the thread and closes its connection.
    pub(crate) async fn close(&self) {
        let state = std::mem::replace(&mut *self.orders.lock(), State::Closed);
        let State::Running(orders) = state else { return };
        let (reply, answer) = oneshot::channel();
        if orders.send(Order::Close(reply)).is_ok() {
            let _ = answer.await;
        }
    }

    fn send(&self, order: Order) -> Result<(), DbError> {
        let mut state = self.orders.lock();
        let order = match &*state {
            State::Closed => return Err(DbError::Unavailable(Cause::Sqlx(sqlx::Error::PoolClosed))),
            State::Waiting => order,
            State::Running(orders) => match orders.send(order) {
                Ok(()) => return Ok(()),
                // The thread panicked; the next one begins anew.
                Err(unsent) => unsent.0,
            },
        };
        let (orders, received) = channel();
        let connection = open(&self.path)?;
        std::thread::Builder::new()
            .name("cxmpute-commit".into())
            .spawn(move || run(connection, &received))
            .map_err(|error| DbError::Unavailable(Cause::Sqlx(sqlx::Error::Io(error))))?;
        orders.send(order).map_err(|_| crashed())?;
        *state = State::Running(orders);
        Ok(())
    }
}

fn crashed() -> DbError {
    DbError::Unavailable(Cause::Sqlx(sqlx::Error::WorkerCrashed))
}

fn open(path: &Path) -> Result<rusqlite::Connection, DbError> {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = rusqlite::Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "cache_size", CACHE_PAGES)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    Ok(connection)
}

fn run(connection: rusqlite::Connection, orders: &Receiver<Order>) {
    let mut closing = None;
    {
        let mut own = Own::new(&connection);
        while let Ok(order) = orders.recv() {
            match order {
                Order::Apply { ops, turn, reply } => {
                    let done = commit(&connection, &mut own, &ops);
                    drop(turn);
                    let _ = reply.send(done);
                }
                Order::Durability(reply) => {
                    let _ = reply.send(durability(&connection));
                }
                Order::Close(reply) => {
                    closing = Some(reply);
                    break;
                }
            }
        }
    }
    drop(connection);
    if let Some(reply) = closing {
        let _ = reply.send(());
    }
}

fn durability(connection: &rusqlite::Connection) -> Result<(String, i64), DbError> {
    let journal = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    Ok((journal, connection.pragma_query_value(None, "synchronous", |row| row.get(0))?))
}

fn commit(
    connection: &rusqlite::Connection,
    own: &mut Own<'_>,
    ops: &[LedgerOp],
) -> Result<Vec<LedgerReply>, BatchError> {
    let done = now(async {
        own.execute("BEGIN IMMEDIATE", &[]).await.map_err(BatchError::Undone)?;
        let replies = apply_batch(own, ops).await.map_err(BatchError::Undone)?;
        own.execute("COMMIT", &[]).await.map_err(BatchError::Unknown)?;
        Ok(replies)
    });
    if done.is_err() && !connection.is_autocommit() {
        // A transaction that cannot be undone fails the next one, which says so.
        let _ = now(own.execute("ROLLBACK", &[]));
    }
    done
}

fn now<T>(statements: impl Future<Output = T>) -> T {
    futures_util::FutureExt::now_or_never(statements).expect("nothing waits on one's own connection")
}
