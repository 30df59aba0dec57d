//! `cxmpute` as a program: what is wrong is said in one sentence, with a documented exit code.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use cxmpute_runtime::exit;

fn cxmpute(directory: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cxmpute"))
        .current_dir(directory)
        .env_remove("CXMPUTE_CONFIG")
        .args(["--data-dir", "data"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn serve(directory: &Path, args: &[&str]) -> (i32, String) {
    let mut all = vec!["serve", "--bind", "127.0.0.1:0", "--metrics-bind", "off"];
    all.extend(args);
    let output = cxmpute(directory, &all);
    (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_gateway_that_cannot_start_says_why_and_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    std::fs::write(here.join("typo.toml"), "[server]\nbnd = 1\n").unwrap();
    std::fs::write(here.join("file"), "").unwrap();
    std::fs::write(here.join("broken.toml"), "[[model]]\nid = 3\n").unwrap();
    std::fs::write(here.join("notes.db"), "this is no database, however long it is".repeat(100)).unwrap();
    let cases: [(&[&str], u8, &[&str]); 9] = [
        (&["--bind", "0.0.0.0:0"], exit::CONFIG, &["server.bind", "tls", "trusted_proxies"]),
        (&["--config", "typo.toml"], exit::CONFIG, &["typo.toml", "server.bnd", "server.bind"]),
        (&["--config", "none.toml"], exit::CONFIG, &["none.toml"]),
        (&["--log-level", "no=such=level"], exit::CONFIG, &["log.level"]),
        (&["--catalogue", "none.toml"], exit::MODEL_MISSING, &["none.toml", "catalogue.path"]),
        (&["--catalogue", "broken.toml"], exit::CONFIG, &["broken.toml"]),
        (&["--models-dir", "none"], exit::MODEL_MISSING, &["none", "catalogue.models_dir"]),
        (&["--database", "mysql://x"], exit::CONFIG, &["sqlite:", "postgres://"]),
        (&["--database", "sqlite:notes.db"], exit::DATABASE, &["database"]),
    ];
    for (args, code, words) in cases {
        // A flag given twice is wrong usage, so these come alone.
        let (found, said) = if args[0] == "--bind" {
            let output = cxmpute(here, &["serve", args[0], args[1]]);
            (output.status.code().unwrap_or(-1), String::from_utf8(output.stderr).unwrap())
        } else {
            serve(here, args)
        };
        assert_eq!(found, i32::from(code), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?} should name {word}: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
    let output = cxmpute(here, &["serve", "--bind", &taken, "--metrics-bind", "off"]);
    assert_eq!(output.status.code(), Some(i32::from(exit::PORT_TAKEN)));
    let output = cxmpute(here, &["serve", "--bind", "127.0.0.1:0", "--metrics-bind", &taken]);
    assert_eq!(output.status.code(), Some(i32::from(exit::PORT_TAKEN)));
    let output = cxmpute(here, &["serve", "--bind", "127.0.0.1:0", "--metrics-bind", "here"]);
    assert_eq!(output.status.code(), Some(i32::from(exit::CONFIG)));
    let output = Command::new(env!("CARGO_BIN_EXE_cxmpute"))
        .current_dir(here)
        .args(["serve", "--bind", "127.0.0.1:0", "--metrics-bind", "off", "--data-dir", "file/below"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(i32::from(exit::DIR_UNWRITABLE)));
    assert_eq!(cxmpute(here, &["serve", "--nonsense"]).status.code(), Some(i32::from(exit::USAGE)));
}

#[test]
fn the_catalogue_is_checked_listed_and_shown() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let run = |args: &[&str]| {
        let output = cxmpute(here, args);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    };
    let (code, said, _) = run(&["catalogue", "check"]);
    assert!(code == 0 && said.starts_with("79 entries are good"), "{said}");

    let own = "[[model]]\nid = \"own\"\nkind = \"stt\"\nengines = [\"whisper\"]\nprice = { version = 1, second = 5 }\n";
    std::fs::write(here.join("own.toml"), own).unwrap();
    let (code, said, _) = run(&["catalogue", "check", "own.toml"]);
    assert!(code == 0 && said.starts_with("80 entries are good"), "{said}");
    std::fs::write(here.join("bad.toml"), own.replace("second = 5", "second = 0")).unwrap();
    let (code, _, said) = run(&["catalogue", "check", "own.toml", "bad.toml"]);
    assert_eq!(code, i32::from(exit::CONFIG), "{said}");
    assert!(said.contains("bad.toml:5: model.price.second: 0 is not above 0"), "{said}");

    std::fs::write(here.join("cxmpute.toml"), "[catalogue]\nfiles = [\"own.toml\"]\n").unwrap();
    let (code, said, _) = run(&["--config", "cxmpute.toml", "catalogue", "list"]);
    assert!(code == 0 && said.lines().count() == 80 && said.lines().all(|line| line.len() <= 80), "{said}");
    let (_, said, _) = run(&["catalogue", "list", "--json"]);
    let ids: Vec<String> = said
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].as_str().unwrap().to_owned()
        })
        .collect();
    assert!(ids.len() == 79 && ids.contains(&"qwen2.5vl:72b".to_owned()));
    let (code, said, _) = run(&["catalogue", "show", "tts-1"]);
    assert!(code == 0 && said.contains("espeak-ng") && said.contains("18.75 /1M char"), "{said}");
    let (code, _, said) = run(&["catalogue", "show", "gpt-9"]);
    assert!(code == 1 && said.contains("`gpt-9`"), "{said}");
}

#[test]
fn a_database_of_a_newer_program_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    // Only a table `schema_version` with the row 9999: what every later program's database has too.
    std::fs::write(directory.path().join("newer.db"), include_bytes!("newer.db")).unwrap();
    let (code, said) = serve(directory.path(), &["--database", "sqlite:newer.db"]);
    assert_eq!(code, i32::from(exit::DATABASE), "{said}");
    assert!(said.contains("newer"), "{said}");
}

#[test]
fn accounts_keys_and_credits_are_made_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let here = directory.path();
    let json = |args: &[&str]| -> serde_json::Value {
        let mut all = vec!["--json"];
        all.extend(args);
        let output = cxmpute(here, &all);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let user = json(&["admin", "user", "create", "A@Example.org"]);
    assert_eq!(user["email"], "a@example.org");
    assert_eq!(
        json(&["admin", "user", "create", "a@example.org"])["id"],
        user["id"],
        "creating is idempotent"
    );
    let key = json(&["keys", "create", "a@example.org", "--name", "k", "--budget", "2.5"]);
    let text = key["key"].as_str().unwrap();
    assert!(text.starts_with("cxk_live_") && cxmpute_gateway::auth::parse(text).is_some());
    let provider = json(&["keys", "create", "a@example.org", "--provider"]);
    assert!(provider["key"].as_str().unwrap().starts_with("cxp_live_"));
    let granted = json(&["admin", "credits", "grant", "a@example.org", "1.25", "--reason", "test"]);
    assert_eq!(granted["balance_micro"], 1_250_000);
    let micro = [
        "admin",
        "credits",
        "grant",
        key["id"].as_str().unwrap(),
        "--micro",
        "7",
        "--reason",
        "t",
        "--key",
        "k1",
    ];
    assert_eq!(json(&micro)["balance_micro"], 1_250_007);
    assert_eq!(json(&micro)["changed"], false, "one business key, one grant");
    assert_eq!(json(&["admin", "credits", "show", text])["balance_micro"], 1_250_007);
    assert_eq!(json(&["admin", "ledger", "check"])["explained"], 1);
    assert_eq!(json(&["admin", "running"])["running"], 0);
    let listed = cxmpute(here, &["keys", "list", "a@example.org"]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(key["id"].as_str().unwrap()) && !listed.contains(text), "a secret is shown once");
    assert_eq!(json(&["keys", "revoke", key["id"].as_str().unwrap()])["changed"], true);
    assert!(
        json(&["admin", "grant", "create", "a@example.org"])["grant"].as_str().unwrap().starts_with("cxg_")
    );
    for wrong in [
        &["admin", "user", "create", "nobody"][..],
        &["keys", "create", "b@example.org"],
        &["admin", "credits", "grant", "a@example.org", "-1", "--reason", "x"],
        &["admin", "credits", "grant", "a@example.org", "1.0000001", "--reason", "x"],
        &["keys", "revoke", "AAAAAAAAAAAA"],
    ] {
        let output = cxmpute(here, wrong);
        assert!(!output.status.success() && output.stdout.is_empty(), "{wrong:?}");
        assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
    }
}
