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

/// Files that open connections or look names up, each to an address of its own operator or owner. Everything else goes
/// out through `egress` (SR28).
const SOCKET_FILES: [&str; 2] = ["crates/node/src/engines/endpoint.rs", "crates/tunnel/src/transport.rs"];
/// Where the one way out opens them.
const WAY_OUT: &str = "crates/egress/src/connect/";
/// What opens a connection or asks a resolver.
const OPENERS: [&str; 6] =
    ["TcpStream::connect", "TcpSocket", "UdpSocket", "lookup_host", "to_socket_addrs", "HttpConnector"];

/// Places in the crates' sources, outside of tests, that open sockets and may not. Empty is good.
///
/// # Errors
/// The sources cannot be read.
pub fn stray_sockets() -> Result<Vec<String>> {
    let root = settings::repository();
    let mut stray = Vec::new();
    let mut folders = vec![root.join("crates")];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.strip_prefix(&root)?.to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(".rs") && name.contains("/src/") {
                files += 1;
                stray.extend(judge_sockets(&name, &std::fs::read_to_string(&path)?));
            }
        }
    }
    ensure!(files > 100, "only {files} source files were found");
    Ok(stray)
}

/// Judges one source file; what follows its tests is not looked at.
#[must_use]
pub fn judge_sockets(name: &str, source: &str) -> Vec<String> {
    if name.starts_with(WAY_OUT) || SOCKET_FILES.contains(&name) {
        return Vec::new();
    }
    let product = source.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let opens =
        |line: &&str| !line.trim_start().starts_with("//") && OPENERS.iter().any(|word| line.contains(word));
    product.lines().filter(opens).map(|line| format!("{name}: {}", line.trim())).collect()
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
