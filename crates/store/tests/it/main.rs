//! One suite for both databases: every test runs on SQLite, and on PostgreSQL when `CXMPUTE_TEST_POSTGRES_URL` names
//! a server where the user may create databases.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods)]

mod allowance;
mod history;
mod ledger;
mod limits;
mod open;
mod people;
mod provisions;
mod race;
mod world;
