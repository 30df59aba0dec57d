//! Start, stop, secrets and bad command lines.

use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::program::{Program, TINY, command, tiny_model};

/// The engine promises to end within a second; tests on a loaded machine allow four.
const STOP: Duration = Duration::from_secs(4);

#[tokio::test]
async fn a_signal_ends_the_program_with_a_word_to_its_callers() {
    let mut engine = Program::start(&["--pace", "5"]).await;
    let socket = engine.directory().join("engine.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let story = json!({"model": TINY, "messages": [{"role": "user", "content": "Tell me a story."}]});
    let mut events = engine.connect().await.stream("/v1/chat/completions", &story).await;
    assert!(events.next().await.is_some());
    engine.terminate();
    let last = events.rest().await.pop().unwrap();
    assert_eq!(last["error"]["code"], "draining");
    assert!(engine.ended(STOP).await.success());
    assert!(!socket.exists(), "the socket's file is removed");
}

#[tokio::test]
async fn the_engine_ends_with_the_program_that_holds_its_input() {
    let mut engine = Program::start(&["--while-stdin-open"]).await;
    engine.close_stdin();
    assert!(engine.ended(STOP).await.success());
}

#[tokio::test]
async fn models_and_slots_are_shown() {
    let engine = Program::start(&["--slots", "3", "--context", "512"]).await;
    assert_eq!(engine.connect().await.get("/health").await.json(), json!({"status": "ok"}));
    assert_eq!(
        engine.connect().await.get("/slots").await.json(),
        json!({"slots": 3, "busy": 0, "queued": 0})
    );
    let models = engine.connect().await.get("/v1/models").await.json();
    let model = &models["data"][0];
    assert_eq!((&model["id"], &model["context_length"]), (&json!(TINY), &json!(512)));
    let file = std::fs::read(tiny_model()).unwrap();
    let digest = data_encoding::HEXLOWER.encode(&<sha2::Sha256 as sha2::Digest>::digest(&file));
    assert_eq!(model["digest"], digest);
}

#[tokio::test]
async fn a_port_is_guarded_by_a_secret() {
    let secret = "0123456789abcdef-secret";
    let engine = Program::start_on_port(secret).await;
    let denied = (401, "invalid_api_key".to_owned());
    assert_eq!(engine.connect().await.get("/v1/models").await.error(), denied);
    let wrong = engine.connect().await.with_header("x-cxmpute-engine-secret", "0123456789abcdef-secreT");
    assert_eq!(wrong.get("/v1/models").await.error(), denied);
    let right = engine.connect().await.with_header("x-cxmpute-engine-secret", secret);
    assert_eq!(right.get("/v1/models").await.status, 200);
    let bearer = engine.connect().await.with_header("authorization", &format!("Bearer {secret}"));
    assert_eq!(bearer.get("/v1/models").await.status, 200);
}

#[tokio::test]
async fn bad_command_lines_end_with_a_sentence_and_a_code() {
    let running = Program::start(&[]).await;
    let directory = tempfile::tempdir().unwrap();
    let broken = directory.path().join("broken.gguf");
    std::fs::write(&broken, b"GGUF\x03\0\0\0").unwrap();
    let model = format!("{TINY}={}", tiny_model().display());
    let taken = format!("unix:{}", running.directory().join("engine.sock").display());
    for (flags, code, word) in [
        (vec!["--model".to_owned(), "m=/no/such.gguf".into()], 7, "/no/such.gguf"),
        (vec!["--embeddings".into(), format!("m={}", directory.path().display())], 7, "model.safetensors"),
        (vec!["--model".into(), format!("m={}", broken.display())], 1, "ends within its header"),
        (vec!["--model".into(), model.clone(), "--listen".into(), "127.0.0.1:0".into()], 3, "--secret-file"),
        (vec!["--model".into(), model.clone(), "--listen".into(), taken], 4, "another process"),
        (
            vec!["--model".into(), model.clone(), "--listen".into(), "unix:/no/such/place".into()],
            5,
            "--listen",
        ),
        (vec!["--model".into(), model, "--slots".into(), "0".into()], 2, "--slots"),
    ] {
        let mut command = command(directory.path());
        if flags.iter().any(|flag| flag == "--listen") {
            command = std::process::Command::new(env!("CARGO_BIN_EXE_cxmpute-engine"));
        }
        let ended = command.args(&flags).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{flags:?}: {said}");
        assert!(said.contains(word) && !said.contains("panicked"), "{flags:?}: {said}");
    }
}
