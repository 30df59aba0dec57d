//! The official client for Python, as it is published, run against a world; where a stand-in serves, nothing is skipped.

use std::net::SocketAddr;
use std::time::Duration;

use cxmpute_e2e::settings::{repository, variable};
use cxmpute_e2e::world::Account;

/// Runs one file of its tests as an account; fails with what it said when a test fails or is skipped.
pub async fn pytest(file: &str, address: SocketAddr, account: &Account, more: &[(&str, &str)]) {
    let python = variable("CXMPUTE_CLIENT_PYTHON");
    let python =
        python.expect("CXMPUTE_CLIENT_PYTHON is not set: run scripts/test, which makes the environment");
    let mut pytest = tokio::process::Command::new(python);
    pytest
        .args(["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"])
        .arg(repository().join("e2e/clients/python").join(file))
        .env("CXMPUTE_BASE_URL", format!("http://{address}/v1"))
        .env("CXMPUTE_API_KEY", account.client.key.clone().unwrap())
        .envs(more.iter().copied())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .kill_on_drop(true);
    let done = tokio::time::timeout(Duration::from_secs(300), pytest.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(done.status.success() && !said.contains("skipped"), "{said}{complaint}");
}
