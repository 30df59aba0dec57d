//! The secret scan (K5): our own keys by pattern and checksum, and the well-known shapes of other people's secrets.
//!
//! Our key is `cxk_<live|test>_<12 base62>_<43 base62><6 base62 CRC-32>`; the checksum throws away look-alikes, so a
//! documented placeholder is no hit and a real key always is.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// One finding; the secret itself is never repeated.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hit {
    /// Which pattern.
    pub pattern: &'static str,
    /// File, or commit object, it stands in.
    pub place: String,
    /// 1-based line.
    pub line: usize,
}

/// Scans one text.
pub fn scan(place: &str, text: &str, hits: &mut BTreeSet<Hit>) {
    for (number, line) in text.lines().enumerate() {
        for pattern in patterns_in(line) {
            hits.insert(Hit { pattern, place: place.to_owned(), line: number + 1 });
        }
    }
}

fn patterns_in(line: &str) -> Vec<&'static str> {
    let mut found = Vec::new();
    for prefix in ["cxk_live_", "cxk_test_", "cxp_live_", "cxp_test_"] {
        if line.match_indices(prefix).any(|(at, _)| is_own_key(&line[at..])) {
            found.push("cxmpute key");
        }
    }
    if follows(line, "tskey-", |rest| run(rest, |c| c.is_ascii_alphanumeric() || c == '-') >= 16) {
        found.push("overlay-network key");
    }
    if follows(line, "-----BEGIN ", is_private_key) {
        found.push("PEM private key");
    }
    if follows(line, "eyJ", is_jwt) {
        found.push("JSON web token");
    }
    for prefix in ["AKIA", "ASIA"] {
        if follows(line, prefix, |rest| run(rest, |c| c.is_ascii_uppercase() || c.is_ascii_digit()) == 16) {
            found.push("AWS key id");
        }
    }
    if follows(line, "AIza", |rest| run(rest, |c| c.is_ascii_alphanumeric() || c == '_' || c == '-') == 35) {
        found.push("Google key");
    }
    for prefix in [
        "sk_live_",
        "rk_live_",
        "ghp_",
        "gho_",
        "github_pat_",
        "xoxb-",
        "xoxp-",
        "hf_",
        "sk-proj-",
        "sk-ant-",
        "glpat-",
        "npm_",
    ] {
        if follows(line, prefix, |rest| {
            run(rest, |c| c.is_ascii_alphanumeric() || c == '_' || c == '-') >= 24 && mixed(rest)
        }) {
            found.push("service token");
        }
    }
    found
}

/// Whether the text begins with a key of ours whose checksum fits.
#[must_use]
pub fn is_own_key(text: &str) -> bool {
    let length = "cxk_live_".len() + 12 + 1 + 49;
    let Some(key) = text.get(..length) else { return false };
    !text[length..].starts_with(|c: char| c.is_ascii_alphanumeric())
        && cxmpute_gateway::auth::key::parse(key).is_some()
}

fn follows(line: &str, prefix: &str, fits: impl Fn(&str) -> bool) -> bool {
    line.match_indices(prefix).any(|(at, _)| {
        let free = !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        free && fits(&line[at + prefix.len()..])
    })
}

fn run(text: &str, fits: impl Fn(char) -> bool) -> usize {
    text.chars().take_while(|c| fits(*c)).count()
}

/// Secrets of services mix digits and both cases; names in code rarely do.
fn mixed(text: &str) -> bool {
    let head: Vec<char> = text.chars().take(24).collect();
    head.iter().filter(|c| c.is_ascii_digit()).count() >= 2
        && head.iter().any(char::is_ascii_uppercase)
        && head.iter().any(char::is_ascii_lowercase)
}

/// `RSA PRIVATE KEY-----` and its like: capitals only, so that code which looks for the marker is no hit.
fn is_private_key(rest: &str) -> bool {
    let label = rest.split("-----").next().unwrap_or_default();
    rest.len() > label.len()
        && label.ends_with("PRIVATE KEY")
        && run(label, |c| c.is_ascii_uppercase() || c == ' ') == label.len()
}

fn is_jwt(rest: &str) -> bool {
    let mut parts = rest.splitn(3, '.');
    let long = |part: Option<&str>| {
        part.is_some_and(|part| run(part, |c| c.is_ascii_alphanumeric() || c == '_' || c == '-') >= 16)
    };
    long(parts.next()) && parts.next().is_some_and(|part| part.starts_with("eyJ")) && long(parts.next())
}

/// Scans every file of the working tree that git would carry, and every blob of the whole history.
///
/// # Errors
/// Not a git repository, or git failed.
pub fn scan_repository(root: &Path) -> Result<(BTreeSet<Hit>, usize)> {
    let mut hits = BTreeSet::new();
    let mut seen = 0;
    let listed = git(root, &["ls-files", "--cached", "--others", "--exclude-standard", "-z"])?;
    for name in listed.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = String::from_utf8_lossy(name).into_owned();
        if let Ok(bytes) = std::fs::read(root.join(&name)) {
            seen += 1;
            scan(&name, &String::from_utf8_lossy(&bytes), &mut hits);
        }
    }
    if git(root, &["rev-parse", "--verify", "HEAD"]).is_ok() {
        // Added lines of every commit on every branch: what was once committed is published for ever.
        let history =
            git(root, &["log", "--all", "--text", "--no-color", "--unified=0", "--format=commit %h", "-p"])?;
        let mut commit = String::new();
        for line in String::from_utf8_lossy(&history).lines() {
            if let Some(id) = line.strip_prefix("commit ") {
                commit = format!("history {id}");
                seen += 1;
            } else if let Some(added) = line.strip_prefix('+') {
                scan(&commit, added, &mut hits);
            }
        }
    }
    Ok((hits, seen))
}

fn git(root: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let done = Command::new("git").args(arguments).current_dir(root).output().context("git")?;
    ensure!(done.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(done.stdout)
}
