//! Embeddings by all-MiniLM-L6-v2, where `scripts/fetch-models` has put it.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_tokens::TokenCounter;
use cxmpute_wire::unit::Tokens;
use serde_json::{Value, json};

use crate::program::Program;

const NAME: &str = "all-minilm";

#[expect(
    clippy::disallowed_methods,
    reason = "the place of the models is a matter of the machine, not of the program"
)]
fn directory() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    let models =
        std::env::var_os("CXMPUTE_MODELS_DIR").map_or_else(|| cache.join("cxmpute/models"), PathBuf::from);
    let directory = models.join(NAME);
    directory.join("model.safetensors").is_file().then_some(directory)
}

async fn engine() -> Option<Program> {
    let Some(directory) = directory() else {
        eprintln!("SKIPPED: all-minilm is absent; run scripts/fetch-models");
        return None;
    };
    Some(
        Program::start_with(&["--embeddings", &format!("{NAME}={}", directory.display()), "--slots", "2"])
            .await,
    )
}

fn vectors(answer: &Value) -> Vec<Vec<f32>> {
    let item = |item: &Value| serde_json::from_value(item["embedding"].clone()).unwrap();
    answer["data"].as_array().unwrap().iter().map(item).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[tokio::test]
async fn related_sentences_are_near_and_counts_are_the_counters() {
    let Some(engine) = engine().await else { return };
    let texts = [
        "A cat sits on the mat.",
        "A kitten is lying on the carpet.",
        "The stock market fell sharply today.",
    ];
    let request = json!({"model": NAME, "input": texts});
    let answer = engine.connect().await.post("/v1/embeddings", &request).await.json();
    let vectors = vectors(&answer);
    assert!(vectors.iter().all(|vector| vector.len() == 384 && (cosine(vector, vector) - 1.0).abs() < 1e-4));
    let (near, far) = (cosine(&vectors[0], &vectors[1]), cosine(&vectors[0], &vectors[2]));
    assert!(near > 0.4 && far < 0.2, "near {near}, far {far}");
    let counter = TokenCounter::from_tokenizer_json(&directory().unwrap().join("tokenizer.json")).unwrap();
    let counted: u64 =
        texts.iter().map(|text| counter.count_embedding_input(text, Tokens(256)).unwrap().0).sum();
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": counted, "completion_tokens": 0, "total_tokens": counted})
    );
    // The first numbers of this sentence as the reference implementation prints them.
    let known = json!({"model": NAME, "input": "hello world"});
    let answer = engine.connect().await.post("/v1/embeddings", &known).await.json();
    let expected = [-0.034_477, 0.031_023, 0.006_735, 0.026_109];
    for (number, expected) in self::vectors(&answer)[0].iter().zip(expected) {
        assert!((number - expected).abs() < 1e-4, "{number} {expected}");
    }
}

#[tokio::test]
async fn both_formats_hold_the_same_numbers_and_long_inputs_are_cut() {
    let Some(engine) = engine().await else { return };
    let ask = async |fields: Value| {
        let mut request = json!({"model": NAME, "input": "a word"});
        fields.as_object().unwrap().iter().for_each(|(name, value)| request[name] = value.clone());
        engine.connect().await.post("/v1/embeddings", &request).await
    };
    let float = vectors(&ask(json!({"encoding_format": "float"})).await.json());
    let base64 = ask(json!({"encoding_format": "base64"})).await.json();
    let bytes = STANDARD.decode(base64["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f32> = bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
    assert_eq!(decoded, float[0]);

    let long = "word ".repeat(1000);
    let cut = ask(json!({"input": long})).await.json();
    assert_eq!(cut["usage"]["prompt_tokens"], 256);
    let refused = ask(json!({"input": long, "truncate": false})).await;
    assert_eq!(refused.error(), (400, "context_length_exceeded".into()));
    assert_eq!(ask(json!({"input": []})).await.error(), (400, "invalid_parameter".into()));
    assert_eq!(ask(json!({"input": ["a", ""]})).await.error(), (400, "invalid_parameter".into()));
    assert_eq!(ask(json!({"dimensions": 100})).await.error(), (400, "unsupported_parameter".into()));
    assert_eq!(ask(json!({"model": "m"})).await.error(), (404, "model_not_found".into()));
}
