//! What the surroundings tell the suite: where the programs are, which PostgreSQL to use, how large the counts are.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The table's counts (`scripts/test --full`) or the smaller ones of every change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counts {
    /// Seconds to two minutes per gate.
    Ci,
    /// The counts of the gate table.
    Full,
}

impl Counts {
    /// `CXMPUTE_GATE_COUNTS=full` asks for the table's counts.
    #[must_use]
    pub fn from_environment() -> Self {
        if variable("CXMPUTE_GATE_COUNTS").as_deref() == Some("full") { Self::Full } else { Self::Ci }
    }

    /// The one of two counts that applies.
    #[must_use]
    pub fn pick<T>(self, ci: T, full: T) -> T {
        match self {
            Self::Ci => ci,
            Self::Full => full,
        }
    }
}

/// Which database a world stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// A file in the world's folder.
    Sqlite,
    /// A schema of its own on the server that `scripts/test` started.
    Postgres,
}

/// How a gate runs: its counts, its database, and the known-bad variant, if any.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// How often things are done.
    pub counts: Counts,
    /// On which database.
    pub store: Store,
    /// Name of a `Sabotage`; needs the cargo feature of that name.
    pub bad: Option<&'static str>,
}

impl Setting {
    /// No sabotage, on SQLite.
    #[must_use]
    pub fn clean() -> Self {
        Self { counts: Counts::from_environment(), store: Store::Sqlite, bad: None }
    }

    /// A known-bad variant, on SQLite, at the smaller counts.
    #[must_use]
    pub fn bad(variant: &'static str) -> Self {
        Self { counts: Counts::Ci, store: Store::Sqlite, bad: Some(variant) }
    }

    /// The same on another database.
    #[must_use]
    pub fn on(self, store: Store) -> Self {
        Self { store, ..self }
    }
}

/// One environment variable; empty counts as absent.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The path of a built program, from `CXMPUTE_BIN_DIR`.
///
/// # Errors
/// A missing variable or program is a failure that names the command which mends it.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = variable("CXMPUTE_BIN_DIR").with_context(|| {
        format!("CXMPUTE_BIN_DIR is not set, so `{name}` cannot be found: run scripts/test")
    })?;
    let path = PathBuf::from(folder).join(name);
    ensure!(
        path.is_file(),
        "{} is missing: run `cargo build --workspace` and copy it there, or run scripts/test",
        path.display()
    );
    Ok(path)
}

/// The repository root, known at compile time.
#[must_use]
pub fn repository() -> PathBuf {
    let mut path = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    path.pop();
    path
}

/// The URL of a PostgreSQL that may be written to, started by `scripts/test`.
#[must_use]
pub fn postgres_url() -> Option<String> {
    variable("CXMPUTE_TEST_POSTGRES_URL")
}
