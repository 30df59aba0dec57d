//! The program that confines others, and what the system lets it take away.

use std::path::PathBuf;
use std::process::Stdio;

use super::{Terms, Without};
use crate::once::Sandbox;

/// A program of ours whose arguments `front` make it [`super::become_program`], and with `--check` [`super::check`].
#[derive(Clone, Debug)]
pub struct Confiner {
    front: Vec<String>,
    without: Without,
}

impl Confiner {
    /// Finds out what this system lets `program` take away, by trying; says with a warning what not. Takes some milliseconds.
    #[must_use]
    pub fn probe(program: PathBuf, words: &[&str]) -> Option<Self> {
        let tried = std::process::Command::new(&program)
            .args(words)
            .arg("--check")
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .output();
        let done = match tried {
            Ok(done) => done,
            Err(error) => {
                tracing::warn!(%error, program = %program.display(), "no program to confine others with");
                return None;
            }
        };
        for reason in String::from_utf8_lossy(&done.stderr).lines().filter(|line| !line.trim().is_empty()) {
            tracing::warn!(reason, "this system does not let programs be confined fully");
        }
        let without = serde_json::from_slice(&done.stdout).ok().filter(|_| done.status.success())?;
        let front =
            [program.display().to_string()].into_iter().chain(words.iter().map(|&word| word.to_owned()));
        Some(Self { front: front.collect(), without })
    }

    /// What the system cannot take away.
    #[must_use]
    pub const fn without(&self) -> Without {
        self.without
    }

    /// A sandbox with these terms.
    #[must_use]
    pub fn sandbox(&self, terms: &Terms) -> Sandbox {
        let terms = Terms { without: self.without, ..terms.clone() };
        let terms = serde_json::to_string(&terms).unwrap_or_default();
        let mut front = self.front.clone();
        front.extend([format!("--terms={terms}"), "--".to_owned()]);
        Sandbox::behind(front)
    }
}
