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
