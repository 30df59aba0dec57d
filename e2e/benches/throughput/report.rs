//! The table of DESIGN section 8, as Markdown and as JSON.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::books::Books;

/// One load against one peer.
#[derive(Clone, Debug)]
pub struct Figure {
    /// `nginx`, `cxmpute`, or `direct`.
    pub peer: &'static str,
    /// Keep-alive connections.
    pub connections: usize,
    /// Length of the window.
    pub wall: Duration,
    /// CPU time of the peer in the window.
    pub cpu: Duration,
    /// Whole answers in the window.
    pub answers: u64,
    /// Events in the window.
    pub events: u64,
    /// Times to the first byte of the body, microseconds.
    pub first_us: Vec<u32>,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
impl Figure {
    fn us_per_answer(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.answers as f64
    }

    fn us_per_event(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.events.max(1) as f64
    }

    fn answers_per_second(&self) -> f64 {
        self.answers as f64 / self.wall.as_secs_f64()
    }

    /// Share of one core that the peer used.
    fn busy(&self) -> f64 {
        self.cpu.as_secs_f64() / self.wall.as_secs_f64()
    }

    fn first_ms(&self, share: f64) -> f64 {
        let mut sorted = self.first_us.clone();
        sorted.sort_unstable();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "an index below the length"
        )]
        let at = ((sorted.len().saturating_sub(1)) as f64 * share) as usize;
        f64::from(sorted.get(at).copied().unwrap_or(0)) / 1000.0
    }

    fn to_json(&self) -> Value {
        json!({
            "peer": self.peer, "connections": self.connections, "seconds": self.wall.as_secs_f64(),
            "cpu_seconds": self.cpu.as_secs_f64(), "answers": self.answers, "events": self.events,
            "cpu_us_per_answer": self.us_per_answer(),
            "cpu_us_per_event": (self.events > 0).then(|| self.us_per_event()),
            "answers_per_second": self.answers_per_second(), "core_busy": self.busy(),
            "first_byte_ms": {"p50": self.first_ms(0.5), "p99": self.first_ms(0.99)},
        })
    }
}

/// Memory of the gateway, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// After its first answer.
    pub idle: u64,
    /// After the load, before the streams were opened.
    pub before: u64,
    /// With the streams open.
    pub with_streams: u64,
    /// How many.
    pub streams: usize,
}

impl Memory {
    fn kib_per_stream(&self) -> f64 {
        mib(self.with_streams.saturating_sub(self.before)) * 1024.0 / self.streams.max(1) as f64
    }
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Version of nginx; `None` when it was left out.
    pub nginx: Option<String>,
    /// Answers in one piece.
    pub whole: Vec<Figure>,
    /// Streams without delay between events.
    pub streamed: Vec<Figure>,
    /// Streams at an engine's pace.
    pub paced: Vec<Figure>,
    /// Memory.
    pub memory: Option<Memory>,
    /// The database afterwards.
    pub books: Option<Books>,
    /// From the start of the process to ready, and to the first paid answer (which waits for a node to come back).
    pub start_to_first_answer: Option<(Duration, Duration)>,
}

fn mib(bytes: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let bytes = bytes as f64;
    bytes / 1024.0 / 1024.0
}

/// The figures of nginx and of the gateway under one load.
fn pair(figures: &[Figure], connections: usize) -> (Option<&Figure>, Option<&Figure>) {
    let of = |peer| figures.iter().find(|figure| figure.peer == peer && figure.connections == connections);
    (of("nginx"), of("cxmpute"))
}

impl Report {
    /// Prints the table.
    #[expect(clippy::print_stdout, reason = "the table is what this program is for")]
    pub fn print(&self) {
        println!("{}", self.to_markdown());
    }

    fn to_markdown(&self) -> String {
        let mut table = String::new();
        let _ = writeln!(table, "| figure | nginx | cxmpute | ratio | budget |\n|---|---|---|---|---|");
        let mut row = |figure: &str, unit: &str, nginx: Option<f64>, ours: Option<f64>, budget: &str| {
            let show = |value: Option<f64>| {
                value.map_or("–".to_owned(), |value| {
                    format!("{value:.*}{unit}", if value.abs() < 10.0 { 2 } else { 1 })
                })
            };
            let ratio = match (nginx, ours) {
                (Some(nginx), Some(ours)) if nginx > 0.0 => format!("{:.2} ×", ours / nginx),
                _ => "–".to_owned(),
            };
            let _ = writeln!(table, "| {figure} | {} | {} | {ratio} | {budget} |", show(nginx), show(ours));
        };
        for (connections, budget) in [(256, "≤ 2.0 ×"), (64, "≤ 2.5 ×")] {
            let (nginx, ours) = pair(&self.whole, connections);
            let name = format!("CPU per non-streamed request, {connections} connections");
            row(&name, " µs", nginx.map(Figure::us_per_answer), ours.map(Figure::us_per_answer), budget);
        }
        for (connections, budget) in [(256, "≥ 0.45 ×"), (64, "≥ 0.45 ×")] {
            let (nginx, ours) = pair(&self.whole, connections);
            let possible = |figure: &Figure| 1e6 / figure.us_per_answer();
            let name = format!("requests/s one core can do, {connections} connections");
            row(&name, "", nginx.map(possible), ours.map(possible), budget);
            let measured = |figure: &Figure| figure.answers_per_second();
            let name = format!("requests/s as measured, {connections} connections");
            row(&name, "", nginx.map(measured), ours.map(measured), "–");
            let busy = |figure: &Figure| figure.busy() * 100.0;
            row("… while its core was busy for", " %", nginx.map(busy), ours.map(busy), "–");
        }
        let (nginx, ours) = pair(&self.streamed, 64);
        let per_event = "CPU per relayed stream event, 64 streams, no delay";
        row(per_event, " µs", nginx.map(Figure::us_per_event), ours.map(Figure::us_per_event), "≤ 1.25 ×");
        let direct = self.paced.iter().find(|figure| figure.peer == "direct");
        let (nginx, ours) = pair(&self.paced, 64);
        let added =
            |figure: &Figure| figure.first_ms(0.5) - direct.map_or(0.0, |direct| direct.first_ms(0.5));
        row(
            "added time to first token, 64 streams, median",
            " ms",
            nginx.map(added),
            ours.map(added),
            "≤ 1.5 ×",
        );
        let late = |figure: &Figure| figure.first_ms(0.99);
        row("time to first token, 64 streams, p99", " ms", nginx.map(late), ours.map(late), "–");
        if let Some(memory) = &self.memory {
            row("memory, idle", " MiB", None, Some(mib(memory.idle)), "≤ 25 MiB");
            row("memory, after the load", " MiB", None, Some(mib(memory.before)), "–");
            let name = format!("memory per open stream ({} open)", memory.streams);
            row(&name, " KiB", None, Some(memory.kib_per_stream()), "≤ 64 KiB");
        }
        if let Some((ready, answered)) = self.start_to_first_answer {
            row("start to ready", " ms", None, Some(ready.as_secs_f64() * 1e3), "≤ 100 ms");
            row(
                "start to first paid answer (a node dials in first)",
                " ms",
                None,
                Some(answered.as_secs_f64() * 1e3),
                "–",
            );
        }
        let _ = writeln!(
            table,
            "\nEverything on: key, size and time limits, hold, durable settlement, metrics, token counting `always`; TLS off."
        );
        match &self.nginx {
            Some(version) => drop(writeln!(
                table,
                "Yardstick: {version}, one worker, `proxy_pass` to a plain HTTP upstream, on the same core in the same run."
            )),
            None => drop(writeln!(table, "SKIPPED: nginx is missing, so there are no ratios.")),
        }
        if let Some(books) = &self.books {
            let commits = books.commits.map_or("not told".to_owned(), |commits| commits.to_string());
            let _ = writeln!(
                table,
                "SQLite journal `{}`, `synchronous={}`, {commits} commits; {} answers, {} settlements, {} streams hung up on; ledger \
                 explained {}, {} open holds.",
                books.journal_mode,
                books.synchronous,
                books.answers,
                books.settlements,
                books.hung_up,
                books.explained,
                books.open_holds
            );
        }
        table
    }

    /// The figures for programs.
    pub fn to_json(&self) -> Value {
        let list = |figures: &[Figure]| figures.iter().map(Figure::to_json).collect::<Vec<_>>();
        json!({
            "nginx": self.nginx,
            "whole": list(&self.whole),
            "streamed": list(&self.streamed),
            "paced": list(&self.paced),
            "memory": self.memory.map(|memory| json!({
                "idle_bytes": memory.idle, "loaded_bytes": memory.before, "with_streams_bytes": memory.with_streams,
                "streams": memory.streams, "kib_per_stream": memory.kib_per_stream(),
            })),
            "start_ms": self.start_to_first_answer.map(|(ready, answered)| json!({
                "ready": ready.as_secs_f64() * 1e3, "first_paid_answer": answered.as_secs_f64() * 1e3,
            })),
            "books": self.books.as_ref().map(|books| json!({
                "journal_mode": books.journal_mode, "synchronous": books.synchronous, "commits": books.commits,
                "answers": books.answers, "settlements": books.settlements, "hung_up": books.hung_up,
                "explained": books.explained, "open_holds": books.open_holds,
            })),
            "tls": false,
            "counting": "always",
        })
    }

    /// Whether the figures count.
    ///
    /// # Errors
    /// The books are missing or wrong.
    pub fn verdict(&self) -> Result<()> {
        self.books.as_ref().context("the books were not read")?.verdict()
    }
}
