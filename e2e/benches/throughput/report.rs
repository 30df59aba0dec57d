//! The table of DESIGN section 8, as Markdown and as JSON.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::books::Books;
use crate::rows::Row;
use crate::stage::Plan;

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Line {
    figure: String,
    unit: &'static str,
    nginx: Option<f64>,
    ours: f64,
    budget: &'static str,
}

impl Line {
    /// A figure of ours beside nginx's.
    pub fn beside(
        figure: impl Into<String>,
        unit: &'static str,
        nginx: Option<f64>,
        ours: f64,
        budget: &'static str,
    ) -> Self {
        Self { figure: figure.into(), unit, nginx, ours, budget }
    }

    /// A figure that nginx does not have.
    pub fn alone(figure: impl Into<String>, unit: &'static str, ours: f64, budget: &'static str) -> Self {
        Self::beside(figure, unit, None, ours, budget)
    }

    fn to_markdown(&self) -> String {
        let show = |value: f64| format!("{value:.*}{}", if value.abs() < 10.0 { 2 } else { 1 }, self.unit);
        let nginx = self.nginx.map_or("–".to_owned(), show);
        let ratio = self
            .nginx
            .filter(|nginx| *nginx > 0.0)
            .map_or("–".to_owned(), |nginx| format!("{:.2} ×", self.ours / nginx));
        format!("| {} | {nginx} | {} | {ratio} | {} |", self.figure, show(self.ours), self.budget)
    }
}

/// What a row gave.
#[derive(Clone, Debug)]
pub struct Taken {
    /// Its lines.
    pub lines: Vec<Line>,
    /// Everything that was measured, for programs.
    pub figures: Value,
    /// The books of its gateway, where it has one.
    pub books: Option<Books>,
}

/// Everything that was measured.
#[derive(Clone, Debug)]
pub struct Report {
    nginx: Option<String>,
    profiled: bool,
    lines: Vec<Line>,
    figures: Map<String, Value>,
    books: Option<Books>,
}

impl Report {
    /// Nothing yet.
    ///
    /// # Errors
    /// nginx cannot be run.
    pub fn new(plan: &Plan) -> Result<Self> {
        let version = |program| -> Result<String> {
            let told = Command::new(program).arg("-v").output()?.stderr;
            Ok(String::from_utf8_lossy(&told).trim().trim_start_matches("nginx version: ").to_owned())
        };
        Ok(Self {
            nginx: plan.nginx.as_ref().map(version).transpose().context("running nginx -v")?,
            profiled: plan.profile.is_some(),
            lines: Vec::new(),
            figures: Map::new(),
            books: None,
        })
    }

    /// Takes in what a row gave.
    pub fn add(&mut self, row: Row, taken: Taken) {
        self.lines.extend(taken.lines);
        let mut figures = taken.figures;
        if let Some(books) = &taken.books {
            figures["books"] = books.to_json();
        }
        self.figures.insert(row.to_string(), figures);
        self.books = match (self.books.take(), taken.books) {
            (Some(before), Some(books)) => Some(before.and(books)),
            (before, books) => before.or(books),
        };
    }

    /// Prints the table.
    #[expect(clippy::print_stdout, reason = "the table is what this program is for")]
    pub fn print(&self) {
        println!("{}", self.to_markdown());
    }

    fn to_markdown(&self) -> String {
        let mut table = "| figure | nginx | cxmpute | ratio | budget |\n|---|---|---|---|---|\n".to_owned();
        for line in &self.lines {
            let _ = writeln!(table, "{}", line.to_markdown());
        }
        table.push_str(
            "\nEverything on: key, size and time limits, hold, durable settlement, metrics, token counting `always`; TLS off, where\nno line says otherwise.\n",
        );
        let _ = match &self.nginx {
            Some(version) => writeln!(
                table,
                "Yardstick: {version}, one worker, `proxy_pass` to a plain HTTP upstream, on the same core in the same run."
            ),
            None => writeln!(table, "SKIPPED: nginx is missing or was left out, so there are no ratios."),
        };
        if self.profiled {
            table.push_str("PROFILED: the gateway's figures include what `perf` cost it.\n");
        }
        if let Some(books) = &self.books {
            let _ = writeln!(table, "{books}");
        }
        table
    }

    /// The figures for programs.
    pub fn to_json(&self) -> Value {
        json!({
            "nginx": self.nginx, "profiled": self.profiled, "rows": self.figures,
            "books": self.books.as_ref().map(Books::to_json),
        })
    }

    /// Whether the figures count.
    ///
    /// # Errors
    /// No row was taken, or books are wrong.
    pub fn verdict(&self) -> Result<()> {
        ensure!(!self.lines.is_empty(), "no row was taken");
        self.books.as_ref().map_or(Ok(()), Books::verdict)
    }
}
