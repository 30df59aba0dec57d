//! What people and programs read on standard output.

use serde::Serialize;

/// How results are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
}

impl Output {
    /// One result: `value` for programs, `text` for people.
    #[expect(clippy::print_stdout, reason = "this is the door to standard output")]
    pub fn result(self, value: &impl Serialize, text: &str) {
        match self {
            Self::Human => println!("{text}"),
            Self::Json => println!("{}", serde_json::to_string(value).unwrap_or_else(|_| "null".into())),
        }
    }
}

/// A failure, with all its causes, for people.
#[expect(clippy::print_stderr, reason = "this is the door to standard error")]
pub fn failure(error: &anyhow::Error) {
    eprintln!("{error:#}");
}
