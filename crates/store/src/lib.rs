//! The store: the only crate that names sqlx (and rusqlite, for the thread that commits batches). One schema and one set of queries for SQLite and PostgreSQL; one file
//! per aggregate with its rows and methods.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod audit;
mod committer;
mod db;
pub mod demand;
mod dialect;
pub mod enrol;
mod epochs;
mod error;
mod floors;
pub mod keys;
mod lane;
pub mod ledger;
pub mod limits;
mod migrations;
pub mod prices;
pub mod provisions;
pub mod receipts;
pub mod replicas;
pub mod usage;
pub mod users;

pub use audit::PostingRow;
pub use db::{Db, DbKind, SqliteTx, Tx};
pub use enrol::{EnrolOutcome, Enrolment};
pub use error::{Cause, DbError};
pub use keys::{KeyKind, KeyRow, NewKey};
pub use ledger::{
    Allowance, AttemptRecord, Balance, BatchError, Charge, Entry, EntryKind, Graduation, LedgerOp,
    LedgerReply, LedgerReport, MoveHold, NewHold, Note, Posted, ResolveHold, Settled, Wish,
};
pub use limits::{KeySettings, LimitSubject, Limits, SpendCap};
pub use migrations::SCHEMA_VERSION;
pub use provisions::{ProvisionRow, ProvisionState, ServiceRow};
pub use receipts::AttemptRow;
pub use replicas::{LEASE_MS, Replica};
pub use usage::{GenerationRow, UsageTotals};
pub use users::{NewUser, UserCreated, UserRow};
