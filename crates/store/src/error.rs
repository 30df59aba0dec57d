//! What can go wrong in the store, named by what went wrong.

use std::path::PathBuf;

/// What a driver reported.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// sqlx, for everything but batches on SQLite.
    #[error(transparent)]
    Sqlx(sqlx::Error),
    /// The connection that commits batches on SQLite.
    #[error(transparent)]
    Sqlite(rusqlite::Error),
}

/// An error of the store. "Not found" is never an error; methods answer `None`.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// The address of the database cannot be used. The address itself is not repeated: it may hold a password.
    #[error(
        "the database address is not usable: {reason}; allowed: sqlite:PATH or postgres://USER@HOST/NAME"
    )]
    BadAddress {
        /// What is wrong.
        reason: String,
    },
    /// The database was written by a newer program.
    #[error(
        "the database has schema version {found}, this program knows up to {known}; use the newer program"
    )]
    NewerSchema {
        /// Version found.
        found: i64,
        /// Newest version this program knows.
        known: i64,
    },
    /// The database's directory or file cannot be written.
    #[error("{} cannot be written; choose another data directory or change its owner or mode", path.display())]
    Unwritable {
        /// Directory or file.
        path: PathBuf,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The database file is damaged or no database.
    #[error("the database is damaged: {detail}; restore a backup")]
    Damaged {
        /// What the check said.
        detail: String,
    },
    /// Another serving process has this SQLite database.
    #[error("{} is in use by another running gateway", path.display())]
    InUse {
        /// The lock's path.
        path: PathBuf,
    },
    /// The store does not answer, or asked to try again; nothing is known to be wrong with the data.
    #[error("the store is away or busy")]
    Unavailable(#[source] Cause),
    /// A row with the same unique key exists.
    #[error("a row with this key exists already")]
    Exists,
    /// Data that the rules make impossible.
    #[error("impossible data in {place}: {detail}")]
    Impossible {
        /// Table or rule.
        place: &'static str,
        /// What was found.
        detail: String,
    },
    /// A price was changed without a new version.
    #[error("price `{id}` version {version} is recorded with other numbers; raise its version")]
    PriceChanged {
        /// Price.
        id: String,
        /// Version.
        version: i64,
    },
    /// A statement failed for another reason.
    #[error("a statement failed")]
    Statement(#[source] Cause),
}

impl DbError {
    /// Whether the same call may succeed later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// Whether two transactions met in an unlucky order; trying again at once is right (MR55).
    #[must_use]
    pub fn is_collision(&self) -> bool {
        let Self::Unavailable(Cause::Sqlx(sqlx::Error::Database(database))) = self else { return false };
        matches!(database.code().as_deref(), Some("40001" | "40P01"))
    }

    /// Whether the process must end at once: going on could acknowledge what the disk did not keep (MR53).
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        matches!(self, Self::Damaged { .. })
    }

    pub(crate) fn impossible(place: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::Impossible { place, detail: detail.to_string() }
    }
}

/// SQLite's primary result codes that matter here.
const SQLITE_BUSY: i64 = 5;
const SQLITE_LOCKED: i64 = 6;
const SQLITE_IOERR: i64 = 10;
const SQLITE_CORRUPT: i64 = 11;
const SQLITE_FULL: i64 = 13;
const SQLITE_NOTADB: i64 = 26;

impl From<sqlx::Error> for DbError {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed
            | sqlx::Error::BeginFailed => return Self::Unavailable(Cause::Sqlx(error)),
            sqlx::Error::Database(database) => {
                if database.is_unique_violation() {
                    return Self::Exists;
                }
                let code = database.code().map(std::borrow::Cow::into_owned).unwrap_or_default();
                // PostgreSQL's states have five characters, SQLite's (extended) numbers at most four.
                if code.len() == 5 {
                    let retry = matches!(code.get(..2), Some("08" | "40" | "53" | "55" | "57" | "58"));
                    return if retry {
                        Self::Unavailable(Cause::Sqlx(error))
                    } else {
                        Self::Statement(Cause::Sqlx(error))
                    };
                }
                match code.parse::<i64>().map(|code| code & 0xff) {
                    Ok(SQLITE_BUSY | SQLITE_LOCKED | SQLITE_FULL) => {
                        return Self::Unavailable(Cause::Sqlx(error));
                    }
                    Ok(SQLITE_CORRUPT | SQLITE_NOTADB | SQLITE_IOERR) => {
                        return Self::Damaged { detail: database.message().to_owned() };
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Self::Statement(Cause::Sqlx(error))
    }
}

impl From<rusqlite::Error> for DbError {
    fn from(error: rusqlite::Error) -> Self {
        /// The extended codes of a violated primary key and of a violated unique constraint.
        const TAKEN: [i32; 2] = [1555, 2067];
        let Some(code) = error.sqlite_error().map(|found| found.extended_code) else {
            return Self::Statement(Cause::Sqlite(error));
        };
        match Sqlite::of(i64::from(code)) {
            _ if TAKEN.contains(&code) => Self::Exists,
            Sqlite::Busy => Self::Unavailable(Cause::Sqlite(error)),
            Sqlite::Damaged => Self::Damaged { detail: error.to_string() },
            Sqlite::Other => Self::Statement(Cause::Sqlite(error)),
        }
    }
}

/// What an (extended) result code of SQLite means to a caller.
enum Sqlite {
    Busy,
    Damaged,
    Other,
}

impl Sqlite {
    fn of(code: i64) -> Self {
        match code & 0xff {
            SQLITE_BUSY | SQLITE_LOCKED | SQLITE_FULL => Self::Busy,
            SQLITE_CORRUPT | SQLITE_NOTADB | SQLITE_IOERR => Self::Damaged,
            _ => Self::Other,
        }
    }
}
