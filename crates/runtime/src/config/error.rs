//! What can be wrong with a configuration, said so that the reader knows what to change and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The program's own defaults.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("built-in defaults"),
            Origin::File(path) => write!(f, "configuration file {}", path.display()),
            Origin::Environment(name) => write!(f, "environment variable {name}"),
            Origin::Flag => f.write_str("command line"),
        }
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("configuration file {} cannot be read: {source}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not TOML.
    #[error("configuration file {}, line {line}: {message}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key that does not exist.
    #[error("{origin}: unknown key `{key}`{}", known_keys(closest.as_deref(), known))]
    UnknownKey {
        /// Where it was given.
        origin: Origin,
        /// The whole key, with its sections.
        key: String,
        /// A known key that is spelled alike.
        closest: Option<String>,
        /// The known keys of that section.
        known: Vec<String>,
    },
    /// An environment variable that is nearly, but not quite, that of a key.
    #[error("environment variable {name} belongs to no key; did you mean {closest}?")]
    UnknownVariable {
        /// As given.
        name: String,
        /// The variable of a known key.
        closest: String,
    },
    /// A value that does not fit its key.
    #[error("{origin}: key `{key}` is {given}, expected {expected}")]
    Value {
        /// Where it was given.
        origin: Origin,
        /// The whole key, with its sections.
        key: String,
        /// The value as given.
        given: String,
        /// The allowed values, or the type.
        expected: String,
    },
    /// A key without a default was not given.
    #[error("key `{key}` is required; set it in the configuration file{}", match variable {
        Some(variable) => format!(" or as environment variable {variable}"),
        None => String::new(),
    })]
    Missing {
        /// The whole key, with its sections.
        key: String,
        /// The environment variable that would set it.
        variable: Option<String>,
    },
    /// The program's own defaults cannot be written as TOML: a fault of the program.
    #[error("the built-in defaults cannot be expressed: {message}")]
    Defaults {
        /// What the serialiser says.
        message: String,
    },
}

fn known_keys(closest: Option<&str>, known: &[String]) -> String {
    match closest {
        Some(closest) => format!("; did you mean `{closest}`?"),
        None => format!("; known keys here: {}", known.join(", ")),
    }
}

/// The known word with the fewest edits, if it is close enough to be meant.
pub(super) fn closest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (edits(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(word.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
pub(super) fn edits(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, b) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(a != *b);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}
