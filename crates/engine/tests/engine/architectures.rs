//! The built program with a very small model of every supported architecture (`tools/fixtures`).

use std::path::{Path, PathBuf};
use std::process::Stdio;

use cxmpute_tokens::TokenCounter;
use serde_json::{Value, json};

use crate::chat::CHAT;
use crate::program::{Program, TINY, command};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/fixtures")
}

fn fixtures() -> Vec<Value> {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

#[tokio::test]
async fn every_architecture_answers_what_its_reference_answers() {
    for fixture in fixtures() {
        let path = folder().join(fixture["file"].as_str().unwrap());
        let counter = TokenCounter::from_gguf(&path).unwrap();
        let engine = Program::start_with(&["--model", &format!("m={}", path.display())]).await;
        for case in fixture["cases"].as_array().unwrap() {
            let answer: Vec<u32> = serde_json::from_value(case["answer"].clone()).unwrap();
            // The far one takes long; the test of the computation reads it.
            if answer.is_empty() || case["name"] == "far" {
                continue;
            }
            // The reference goes on after a token that ends an answer.
            let tokens = answer.iter().take_while(|token| !counter.tokenizer().is_end(**token));
            let bytes: Vec<u8> =
                tokens.flat_map(|token| counter.tokenizer().token_bytes(*token)).copied().collect();
            let expected = String::from_utf8_lossy(&bytes).into_owned();
            let mut request = json!({"model": "m", "temperature": 0, "max_tokens": answer.len()});
            let (path, key) =
                if case["text"].is_string() { ("/v1/completions", "prompt") } else { (CHAT, "messages") };
            request[key] = case[if key == "prompt" { "text" } else { key }].clone();
            // The reference begins every prompt with the mark; see the test of the prompts.
            let own = engine.connect().await.post(path, &request).await.json();
            let same = own["usage"]["prompt_tokens"] == case["tokens"].as_array().unwrap().len();
            let choice = &own["choices"][0];
            let text = choice["text"].as_str().or(choice["message"]["content"].as_str());
            let text = text.unwrap_or_else(|| panic!("{own}"));
            let expected = if counter.tokenizer().leading_space() {
                expected.strip_prefix(' ').unwrap_or(&expected).to_owned()
            } else {
                expected
            };
            if same {
                assert_eq!(text, expected, "{} {}", fixture["file"], case["name"]);
            }
        }
    }
}

#[tokio::test]
async fn a_second_turn_reads_only_what_is_new_and_answers_the_same() {
    let kept = Program::start(&[]).await;
    let fresh = Program::start(&["--prefix-cache", "0"]).await;
    let mut messages = Vec::new();
    let mut known = 0;
    for question in ["What is the capital of Japan?", "Tell me a story.", "What is 3 plus 4?", "Count to 10."]
    {
        messages.push(json!({"role": "user", "content": question}));
        let request = json!({"model": TINY, "temperature": 0, "messages": messages});
        let answer = kept.connect().await.post(CHAT, &request).await;
        let other = fresh.connect().await.post(CHAT, &request).await;
        assert_eq!(answer.content(), other.content());
        let (usage, other) = (answer.json()["usage"].clone(), other.json()["usage"].clone());
        assert_eq!(other["prompt_tokens_details"]["cached_tokens"], 0);
        assert_eq!(usage["total_tokens"], other["total_tokens"]);
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        // What was read before: the last prompt and all of its answer; only its end was never read.
        assert!(cached >= known, "{cached} of {known} tokens were known");
        known = usage["total_tokens"].as_u64().unwrap() - 1;
        messages.push(json!({"role": "assistant", "content": answer.content()}));
    }
    // The same with chance, as a stream: a seed gives the same answer whether the prompt was known or not.
    let request = json!({"model": TINY, "seed": 5, "temperature": 1.2, "n": 3, "messages": messages[..3]});
    let answers = [&kept, &kept, &fresh].map(|engine| {
        let request = request.clone();
        async move { engine.connect().await.post(CHAT, &request).await.json()["choices"].clone() }
    });
    let [first, second, third] = answers;
    let (first, second, third) = (first.await, second.await, third.await);
    assert_eq!((&first, &second), (&third, &third));
}

#[tokio::test]
async fn slots_share_what_they_read() {
    let engine = Program::start(&["--slots", "2", "--pace", "40"]).await;
    let request = json!({"model": TINY, "temperature": 0, "max_tokens": 60,
        "messages": [{"role": "user", "content": "Tell me a story."}]});
    let mut first = engine.connect().await.stream(CHAT, &request).await;
    // The first answer has begun: its prompt is known while it goes on.
    assert!(first.next().await.is_some() && first.next().await.is_some());
    let second = engine.connect().await.post(CHAT, &request).await.json();
    let prompt = second["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(second["usage"]["prompt_tokens_details"]["cached_tokens"], prompt - 1);
    let told: String = first
        .rest()
        .await
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert!(second["choices"][0]["message"]["content"].as_str().unwrap().ends_with(&told));
}

#[tokio::test]
async fn an_architecture_that_is_not_supported_ends_the_program_with_a_list_of_those_that_are() {
    let directory = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(folder().join("llama.gguf")).unwrap();
    let at = bytes.windows(5).position(|window| window == b"llama").unwrap();
    bytes[at..at + 5].copy_from_slice(b"mamba");
    let path = directory.path().join("other.gguf");
    std::fs::write(&path, bytes).unwrap();
    let mut program = command(directory.path());
    program.args(["--model", &format!("m={}", path.display())]).stderr(Stdio::piped());
    let ended = program.output().unwrap();
    assert_eq!(ended.status.code(), Some(3));
    let said = String::from_utf8_lossy(&ended.stderr);
    let expected = "cannot be served: architecture `mamba` is not supported; supported: llama, qwen2, qwen3, phi3, gemma, gemma2, gemma3";
    assert!(said.lines().last().unwrap().contains(expected), "{said}");
}
