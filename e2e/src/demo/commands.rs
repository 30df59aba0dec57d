//! The shell lines of `--json`: each works as it stands, beside the demo that runs.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use clap::Subcommand;
use serde_json::{Value, json};

use crate::client::Client;
use crate::house::House;
use crate::money::Money;

/// What can be asked of a running demo.
#[derive(Debug, Subcommand)]
pub(super) enum What {
    /// Print the settled balance of the key's account in micro-credits.
    Balance {
        /// An API key.
        key: String,
    },
    /// Add micro-credits to the key's account.
    Grant {
        /// An API key.
        key: String,
        /// Micro-credits.
        amount: i64,
    },
    /// Print a fresh key of a fresh account with balance 0.
    NewKey,
    /// Print the number of generations running now.
    Running,
    /// Check the ledger.
    LedgerCheck,
}

/// The lines for the demo in this folder.
pub(super) fn lines(folder: &Path) -> Result<Value> {
    let program = std::env::current_exe()?;
    // The programs lie beside this one; a shell that runs the line knows nothing of our environment.
    let beside = program.parent().context("this program has no folder")?;
    let line = |what: &str| {
        format!("CXMPUTE_BIN_DIR={} {} in {} {what}", quoted(beside), quoted(&program), quoted(folder))
    };
    Ok(json!({
        "balance": line("balance"),
        "grant": line("grant"),
        "new_key": line("new-key"),
        "running": line("running"),
        "ledger_check": line("ledger-check"),
    }))
}

/// Carries out one.
pub(super) async fn run(folder: &Path, what: What) -> Result<()> {
    let house = House::recall(folder)?;
    let answer = match what {
        What::Balance { key } => {
            let reply = Client::with_key(house.address, &key).call("GET", "/v1/credits", None).await?;
            let balance = reply.json()["data"]["balance_micro"].as_i64();
            balance.with_context(|| format!("{} {}", reply.status, reply.json()))?.to_string()
        }
        What::Grant { key, amount } => {
            // The public part names the account; the key itself stays out of the argument vector.
            let public = key.split('_').nth(2).context("this is no API key")?;
            house.grant_credits(public, amount)?;
            amount.to_string()
        }
        What::NewKey => {
            let name = data_encoding::HEXLOWER.encode(&cxmpute_runtime::random::bytes::<8>());
            let user = house.create_user(&format!("guest-{name}@example.org"))?;
            house.create_key(&user)?
        }
        What::Running => Money::open(&house.database_url()).await?.running().await?.to_string(),
        What::LedgerCheck => house.check_ledger()?.to_string(),
    };
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}")?;
    Ok(out.flush()?)
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.to_string_lossy().replace('\'', "'\\''"))
}
