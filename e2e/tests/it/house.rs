//! The house as a whole: who may call whom, what never enters the tree, what never ships.

use std::collections::BTreeSet;

use cxmpute_e2e::settings::{program, repository};
use cxmpute_e2e::verdict::Verdict;
use cxmpute_e2e::{layering, secrets};

#[test]
fn crates_use_only_the_doors_of_the_house() {
    assert_eq!(layering::forbidden_edges().unwrap(), Vec::<String>::new());
}

#[test]
fn a_crate_that_calls_the_gateway_is_caught() {
    let metadata = serde_json::json!({"packages": [
        {"name": "cxmpute-node", "dependencies": [{"name": "cxmpute-gateway"}, {"name": "serde"}]},
        {"name": "cxmpute-attic", "dependencies": []},
    ]});
    let wrong = layering::judge(&metadata).unwrap();
    assert_eq!(wrong, ["node -> gateway is no door", "crate attic has no row in the table of doors"]);
}

#[test]
fn only_the_way_out_opens_sockets_to_what_others_name() {
    assert_eq!(layering::stray_sockets().unwrap(), Vec::<String>::new());
}

#[test]
fn a_stray_socket_is_noticed() {
    let source =
        "let s = TcpStream::connect(url).await?;\n#[cfg(test)]\nmod tests { TcpStream::connect() }\n";
    assert_eq!(layering::judge_sockets("crates/gateway/src/x.rs", source).len(), 1);
    assert!(layering::judge_sockets("crates/egress/src/connect/dial.rs", source).is_empty());
}

#[test]
fn the_node_carries_no_client_of_a_database_server() {
    assert_eq!(layering::database_clients_of_the_node().unwrap(), Vec::<String>::new());
}

/// K5 over the tree and the whole history; the known-bad variant is a key-shaped fixture made here.
#[test]
fn k5_no_secret_is_in_the_tree_or_its_history() {
    let mut verdict = Verdict::new("K5");
    let (hits, seen) = secrets::scan_repository(&repository()).unwrap();
    verdict.count = seen as u64;
    verdict.check("files and commits were scanned", seen > 50, seen);
    verdict.check("no secret is found", hits.is_empty(), format!("{hits:?}"));
    verdict.must_hold();
}

#[test]
fn k5_catches_a_key_shaped_fixture() {
    let folder = tempfile::tempdir().unwrap();
    let git = |arguments: &[&str]| {
        let settings =
            ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "core.hooksPath=/dev/null"];
        let done = std::process::Command::new("git")
            .args(settings)
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let key = cxmpute_gateway::auth::key::mint(cxmpute_store::KeyKind::Api);
    let typo = key.text.expose().replace("cxk_live_", "cxk_test_");
    // Built from halves, so that this file is no hit itself.
    let others = [
        "tskey-auth-",
        "kAbCdEfGh1CNTRL-0123456789abcdef",
        "\n-----BEGIN OPENSSH",
        " PRIVATE KEY-----\n",
        "AKIA",
        "ABCDEFGHIJKLMNOP",
    ];
    let jwt =
        ["eyJhbGciOiJFZERTQSJ9AAAA", ".eyJzdWIiOiIxMjM0NTY3ODkwIn0.", "c2lnbmF0dXJlc2lnbmF0dXJl"].concat();
    git(&["init", "--quiet"]);
    std::fs::write(
        folder.path().join("fixture"),
        format!("{}\n{}\n{jwt}\n", key.text.expose(), others.concat()),
    )
    .unwrap();
    git(&["add", "."]);
    git(&["commit", "--quiet", "-m", "a key slips in"]);
    std::fs::write(
        folder.path().join("fixture"),
        format!("a look-alike without a fitting checksum: {typo}\n"),
    )
    .unwrap();
    git(&["commit", "--quiet", "-a", "-m", "and is removed again"]);

    let (hits, _) = secrets::scan_repository(folder.path()).unwrap();
    let found: BTreeSet<&str> = hits.iter().map(|hit| hit.pattern).collect();
    let wanted = BTreeSet::from([
        "cxmpute key",
        "overlay-network key",
        "PEM private key",
        "AWS key id",
        "JSON web token",
    ]);
    let only_history = hits.iter().all(|hit| hit.place.starts_with("history"));
    let mut verdict = Verdict::new("K5");
    verdict.count = hits.len() as u64;
    // The scan of a clean repository finds nothing; here it must find every kind, in the history alone.
    verdict.check("no secret is found", !(found == wanted && only_history), format!("{hits:?}"));
    verdict.must_break("no secret is found", "key-shaped fixture");
}

/// The names of the known-bad variants are in the sabotaged program and in no other.
#[test]
fn the_shipped_gateway_holds_no_sabotage() {
    let bytes = std::fs::read(program("cxmpute").unwrap()).unwrap();
    let holds = ["check_then_debit", "done_before_commit", "no_owner_check"]
        .iter()
        .filter(|name| bytes.windows(name.len()).any(|window| window == name.as_bytes()))
        .count();
    let wanted = if cfg!(feature = "sabotage") { 3 } else { 0 };
    assert_eq!(holds, wanted, "the names of sabotage in {}", program("cxmpute").unwrap().display());
}

#[cfg(feature = "sabotage")]
#[test]
fn sabotaged_programs_are_told_apart() {
    the_shipped_gateway_holds_no_sabotage();
}
