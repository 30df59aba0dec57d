//! What people and programs read on standard output.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;

/// Columns of the narrowest terminal that is thought of.
const COLUMNS: usize = 79;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
}

impl Output {
    /// One result: `value` for programs, `text` for people. A reader that has read enough (`status | head`) hears no more.
    pub fn result(self, value: &impl Serialize, text: &str) {
        let mut out = std::io::stdout().lock();
        let _ = match self {
            Self::Human => writeln!(out, "{text}"),
            Self::Json => {
                writeln!(out, "{}", serde_json::to_string(value).unwrap_or_else(|_| "null".into()))
            }
        };
    }
}

/// A sentence about what cannot be done, beside the result.
#[expect(clippy::print_stderr, reason = "the same for standard error")]
pub fn complain(sentence: &str) {
    eprintln!("{sentence}");
}

/// One line of a terminal that is written again and again. It is no result: nothing of it reaches pipes and files.
#[derive(Debug)]
pub struct ProgressLine {
    terminal: bool,
    /// Columns that are written now.
    width: usize,
}

impl ProgressLine {
    /// Shown where people read the output on a terminal.
    #[must_use]
    pub fn of(output: Output) -> Self {
        let terminal = output == Output::Human && std::io::stdout().is_terminal();
        Self { terminal, width: 0 }
    }

    /// Whether somebody can see it.
    #[must_use]
    pub const fn is_shown(&self) -> bool {
        self.terminal
    }

    /// Writes it anew; a line that is too long is cut.
    #[expect(clippy::print_stdout, reason = "this is the door to standard output")]
    pub fn show(&mut self, text: &str) {
        let text: String = text.chars().take(COLUMNS).collect();
        if self.terminal && (self.width > 0 || !text.is_empty()) {
            print!("\r{text:<width$}", width = self.width);
            self.width = text.chars().count();
            let _ = std::io::stdout().flush();
        }
    }

    /// Takes it away before something else is printed.
    #[expect(clippy::print_stdout, reason = "this is the door to standard output")]
    pub fn clear(&mut self) {
        if self.width > 0 {
            print!("\r{:width$}\r", "", width = self.width);
            self.width = 0;
        }
    }
}

/// A failure, with all its causes, for people.
#[expect(clippy::print_stderr, reason = "this is the door to standard error")]
pub fn failure(error: &anyhow::Error) {
    eprintln!("{}", chain(error));
}

/// An error with its causes on one line; a cause that its error has quoted already is not said twice.
#[must_use]
pub fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    #[test]
    fn a_quoted_cause_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot connect: {0}")]
        struct Connect(#[source] std::io::Error);
        let error =
            Err::<(), _>(Connect(std::io::Error::other("refused"))).context("no gateway").unwrap_err();
        assert_eq!(super::chain(&error), "no gateway: cannot connect: refused");
    }
}
