//! Who may call whom: the doors of the house, read from `cargo metadata` and `cargo tree`.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::settings;

/// Each crate and the only crates of ours it may name.
const DOORS: [(&str, &[&str]); 11] = [
    ("wire", &[]),
    ("runtime", &["wire"]),
    ("market", &["wire"]),
    ("tunnel", &["wire", "runtime"]),
    ("egress", &["runtime"]),
    ("store", &["wire", "market"]),
    ("tokens", &["wire"]),
    ("engine", &["wire", "runtime", "tokens"]),
    ("gateway", &["wire", "market", "runtime", "egress", "store", "tunnel", "tokens"]),
    ("node", &["wire", "market", "runtime", "egress", "tunnel", "tokens"]),
    ("e2e", &["wire", "market", "runtime", "egress", "store", "tunnel", "tokens", "gateway", "node"]),
];

/// Crates that speak to a database server. A provider's machine has no business with one.
const SERVER_CLIENTS: [&str; 6] =
    ["sqlx-postgres", "sqlx-mysql", "tokio-postgres", "postgres", "mysql_async", "mongodb"];

/// The edges that no door allows, as sentences. Empty is good.
///
/// # Errors
/// `cargo metadata` did not run.
pub fn forbidden_edges() -> Result<Vec<String>> {
    let text = cargo(&["metadata", "--format-version", "1", "--no-deps"])?;
    let metadata: Value = serde_json::from_str(&text).context("cargo metadata")?;
    judge(&metadata)
}

/// Judges the packages of one `cargo metadata` document.
///
/// # Errors
/// The document has no packages.
pub fn judge(metadata: &Value) -> Result<Vec<String>> {
    let doors: BTreeMap<&str, &[&str]> = DOORS.into_iter().collect();
    let packages = metadata["packages"].as_array().context("no packages")?;
    ensure!(!packages.is_empty(), "no packages");
    let mut wrong = Vec::new();
    for package in packages {
        let Some(from) = package["name"].as_str().and_then(|name| name.strip_prefix("cxmpute-")) else {
            continue;
        };
        let Some(allowed) = doors.get(from) else {
            wrong.push(format!("crate {from} has no row in the table of doors"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let Some(to) = dependency["name"].as_str().and_then(|name| name.strip_prefix("cxmpute-")) else {
                continue;
            };
            if !allowed.contains(&to) {
                wrong.push(format!("{from} -> {to} is no door"));
            }
        }
    }
    Ok(wrong)
}

/// Database server clients in the node's tree of normal and build dependencies. Empty is good.
///
/// # Errors
/// `cargo tree` did not run.
pub fn database_clients_of_the_node() -> Result<Vec<String>> {
    let tree = cargo(&[
        "tree",
        "--package",
        "cxmpute-node",
        "--edges",
        "no-dev",
        "--prefix",
        "none",
        "--format",
        "{p}",
    ])?;
    ensure!(tree.contains("cxmpute-node"), "cargo tree said nothing of the node");
    let mut found: Vec<String> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .filter(|name| SERVER_CLIENTS.contains(name))
        .map(str::to_owned)
        .collect();
    found.dedup();
    Ok(found)
}

fn cargo(arguments: &[&str]) -> Result<String> {
    let program = settings::variable("CARGO").unwrap_or_else(|| "cargo".to_owned());
    let done = Command::new(program)
        .args(arguments)
        .arg("--offline")
        .current_dir(settings::repository())
        .output()?;
    ensure!(done.status.success(), "cargo {arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}
