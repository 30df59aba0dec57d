//! The only place that prints: results on standard output, complaints on standard error.

use std::fmt::Display;

use serde::Serialize;

/// How results are printed.
#[derive(Debug, Clone, Copy)]
pub struct Output {
    json: bool,
}

impl Output {
    /// Text for people, or JSON.
    #[must_use]
    pub const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Prints one result: the object, or what people want to read of it.
    #[expect(clippy::print_stdout, reason = "the result of a command is its standard output")]
    pub fn show(&self, object: &impl Serialize, text: impl Display) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(object)?);
        } else {
            println!("{text}");
        }
        Ok(())
    }

    /// Prints a list under a heading that only people want to read.
    #[expect(clippy::print_stdout, reason = "the result of a command is its standard output")]
    pub fn explain<T: Serialize>(
        &self,
        rows: &[T],
        heading: impl Display,
        text: impl Fn(&T) -> String,
    ) -> anyhow::Result<()> {
        if !self.json {
            println!("{heading}");
        }
        self.show_all(rows, text)
    }

    /// Prints a list, one object per line.
    pub fn show_all<T: Serialize>(&self, rows: &[T], text: impl Fn(&T) -> String) -> anyhow::Result<()> {
        rows.iter().try_for_each(|row| self.show(row, text(row)))
    }
}

/// Prints why a command failed: one sentence, then what is behind it.
#[expect(clippy::print_stderr, reason = "a failed command says why on standard error")]
pub fn complain(error: &anyhow::Error) {
    eprintln!("cxmpute: {error}");
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !said.to_lowercase().contains(&cause.to_lowercase()) {
            eprintln!("  because: {cause}");
        }
        said = cause;
    }
}
