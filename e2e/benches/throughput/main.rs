//! `cxmpute-bench`: what a request costs the gateway, beside nginx `proxy_pass` in the same run (DESIGN section 8).
//!
//! The gateway is the real program, on SQLite, with everything on, pinned to one core. Its node is a stand-in: the
//! tunnel crate's node end, enrolled and signed, that answers at once. nginx proxies to an equivalent plain HTTP
//! upstream and is pinned likewise. This process (load, stand-in, upstream) is pinned to another core. Every row has a
//! gateway of its own, so that rows can be run alone and none inherits the memory of another.
#![cfg_attr(test, allow(clippy::unwrap_used))]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the real clock and owns its tasks")]

mod books;
mod cost;
mod emissions;
mod load;
mod measure;
mod nginx;
mod node;
mod report;
mod rows;
mod stage;
mod tls;
mod upstream;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum as _};

use report::Report;
use rows::Row;
use stage::Plan;

/// Measures the gateway beside nginx and prints a table.
#[derive(Parser)]
struct Arguments {
    /// Only these rows.
    #[arg(long, value_name = "ROW[,ROW]", value_delimiter = ',')]
    only: Vec<Row>,
    /// Prints the rows there are, and ends.
    #[arg(long)]
    list: bool,
    /// Records the gateway with `perf` while a figure is taken, and says how to read it.
    #[arg(long, value_name = "FOLDER")]
    profile: Option<PathBuf>,
    /// Where the figures go as JSON.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Seconds per figure.
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    /// Streams held open for the memory figure; fewer where the limit of open files demands it.
    #[arg(long, default_value_t = 10_000)]
    open_streams: usize,
    /// Slow streams at once, and the milliseconds between two events of each.
    #[arg(long, default_value_t = 1_000)]
    slow_streams: usize,
    #[arg(long, default_value_t = 200)]
    slow_pace_ms: u32,
    /// Core of the gateway and of nginx.
    #[arg(long, default_value_t = 0)]
    proxy_core: usize,
    /// Core of everything else.
    #[arg(long, default_value_t = 1)]
    load_core: usize,
    /// The nginx program; without it the ratios are left out.
    #[arg(long, value_name = "FILE")]
    nginx: Option<PathBuf>,
    /// Leaves nginx out.
    #[arg(long)]
    without_nginx: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.list {
        rows::list();
        return Ok(());
    }
    if let Some(folder) = &arguments.profile {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    cost::pin(std::process::id(), arguments.load_core)?;
    let plan = Plan {
        window: Duration::from_secs_f64(arguments.seconds),
        open_streams: arguments.open_streams.min(most_streams()?),
        slow_streams: arguments.slow_streams.min(most_streams()?),
        slow_pace_ms: arguments.slow_pace_ms,
        proxy_core: arguments.proxy_core,
        nginx: arguments.nginx.filter(|_| !arguments.without_nginx),
        profile: arguments.profile,
    };
    let wanted = |row: &&Row| arguments.only.is_empty() || arguments.only.contains(row);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let report = runtime.block_on(async {
        let mut report = Report::new(&plan)?;
        for row in Row::value_variants().iter().filter(wanted) {
            say(&format!("Taking {row}."));
            report.add(*row, row.take(&plan).await.with_context(|| format!("row {row}"))?);
        }
        anyhow::Ok(report)
    })?;
    report.print();
    if let Some(out) = arguments.out {
        let json = serde_json::to_string_pretty(&report.to_json())?;
        std::fs::write(&out, json + "\n").with_context(|| format!("writing {}", out.display()))?;
    }
    report.verdict()
}

/// Tells how far the run is, beside its table.
#[expect(clippy::print_stderr, reason = "a run takes minutes, and its output is the table")]
fn say(line: &str) {
    eprintln!("{line}");
}

/// Each stream is a file here and one in the gateway, which inherits the limit; some are needed for everything else.
fn most_streams() -> Result<usize> {
    let (soft, _hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)?;
    Ok(usize::try_from(soft)?.saturating_sub(1_000).max(1))
}
