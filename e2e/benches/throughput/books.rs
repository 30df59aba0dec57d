//! Whether the books agree with what the clients saw.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use anyhow::{Result, ensure};
use cxmpute_e2e::client::Client;
use cxmpute_e2e::ground::until;
use cxmpute_e2e::house::House;
use cxmpute_store::Db;
use serde_json::{Value, json};

/// What the database says after the run.
#[derive(Clone, Debug)]
pub struct Books {
    /// SQLite's journal mode.
    pub journal_mode: String,
    /// SQLite's `synchronous`.
    pub synchronous: String,
    /// Commits of the group-commit writer, as the gateway's metrics tell.
    pub commits: Option<u64>,
    /// Whole answers that the clients received from the gateway.
    pub answers: u64,
    /// Requests of that account that were settled.
    pub settlements: u64,
    /// Streams that were held open and hung up on.
    pub hung_up: usize,
    /// `cxmpute admin ledger check`: share of the moved money that is accounted for.
    pub explained: f64,
    /// Holds that nobody resolved.
    pub open_holds: usize,
}

impl Books {
    /// Both together: those of two gateways that stood on databases of the same kind.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            commits: self.commits.zip(other.commits).map(|(one, two)| one + two),
            answers: self.answers + other.answers,
            settlements: self.settlements + other.settlements,
            hung_up: self.hung_up + other.hung_up,
            explained: self.explained.min(other.explained),
            open_holds: self.open_holds + other.open_holds,
            ..self
        }
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "journal_mode": self.journal_mode, "synchronous": self.synchronous, "commits": self.commits,
            "answers": self.answers, "settlements": self.settlements, "hung_up": self.hung_up,
            "explained": self.explained, "open_holds": self.open_holds,
        })
    }

    /// Whether the run counts.
    ///
    /// # Errors
    /// Settlements and answers differ, or the ledger does not add up.
    pub fn verdict(&self) -> Result<()> {
        ensure!(
            self.settlements == self.answers,
            "{} settlements for {} answers: the figures do not count",
            self.settlements,
            self.answers
        );
        ensure!(
            (self.explained - 1.0).abs() < f64::EPSILON && self.open_holds == 0,
            "the ledger does not add up: explained {}, {} open holds",
            self.explained,
            self.open_holds
        );
        Ok(())
    }
}

impl Display for Books {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { journal_mode, synchronous, answers, settlements, hung_up, explained, open_holds, .. } =
            self;
        let commits = self.commits.map_or("not told".to_owned(), |commits| commits.to_string());
        write!(
            f,
            "SQLite journal `{journal_mode}`, `synchronous={synchronous}`, {commits} commits; {answers} answers, \
             {settlements} settlements, {hung_up} streams hung up on; ledger explained {explained}, {open_holds} open holds."
        )
    }
}

fn open_holds(ledger: &Value) -> usize {
    let holds = &ledger["open_holds"];
    holds.as_array().map_or_else(|| holds.as_u64().unwrap_or(u64::MAX) as usize, Vec::len)
}

/// Waits until no hold is open.
///
/// # Errors
/// Some stay open.
pub async fn settled(house: &House) -> Result<()> {
    until("every hold to be resolved", Duration::from_secs(60), async || {
        Ok((open_holds(&house.check_ledger()?) == 0).then_some(()))
    })
    .await
}

/// The number of commits that the gateway's metrics tell.
pub async fn commits(house: &House) -> Option<u64> {
    let address = house.setting("CXMPUTE_METRICS_BIND")?.parse().ok()?;
    let metrics = Client::anonymous(address).call("GET", "/metrics", None).await.ok()?;
    let text = String::from_utf8(metrics.body).ok()?;
    let line = text.lines().find(|line| !line.starts_with('#') && line.contains("commits_total"))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Reads the database of a gateway that has ended.
///
/// # Errors
/// The database cannot be read.
pub async fn read(
    house: &House,
    user: &str,
    answers: u64,
    hung_up: usize,
    ledger: Value,
    commits: Option<u64>,
) -> Result<Books> {
    let folder = house.setting("CXMPUTE_STORE_DATA_DIR").unwrap_or_default();
    let db = Db::open(&format!("sqlite:{folder}/cxmpute.db")).await?;
    let (journal_mode, synchronous) = db.durability().await?;
    let totals = db.usage_totals(&user.parse()?, None).await?;
    db.close().await;
    Ok(Books {
        journal_mode,
        synchronous,
        commits,
        answers,
        settlements: u64::try_from(totals.requests)?,
        hung_up,
        explained: ledger["explained"].as_f64().unwrap_or(0.0),
        open_holds: open_holds(&ledger),
    })
}
