//! Every supported architecture against its reference (`tools/fixtures`), reading in pieces, and damaged files.

use std::path::{Path, PathBuf};

use cxmpute_tokens::TokenCounter;
use cxmpute_tokens::gguf::Header;
use cxmpute_wire::openai::ChatRequest;
use serde::Deserialize;
use serde_json::{Value, json};

use std::sync::Arc;

use super::Decoder;
use super::cache::Cache;
use super::shape::{Architecture, Gate, Shape};
use crate::digest;
use crate::run::Run;

/// How far a log probability may be from the reference's, which computes the same sums in another order, and looks
/// GELU up in a table of half precision.
fn tolerance(shape: &Shape) -> f64 {
    match shape.gate {
        Gate::Silu => 5e-4,
        Gate::Gelu => 1.5e-2,
    }
}

#[derive(Deserialize)]
struct Fixture {
    file: String,
    sha256: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    messages: Option<Value>,
    prompt: Option<String>,
    text: Option<String>,
    tokens: Vec<u32>,
    answer: Vec<u32>,
    likeliest: Vec<Vec<(u32, f64)>>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/fixtures")
}

fn fixtures() -> Vec<Fixture> {
    serde_json::from_slice(&std::fs::read(folder().join("golden.json")).unwrap()).unwrap()
}

fn load(path: &Path) -> anyhow::Result<Decoder> {
    let header = Header::read(path)?;
    let shape = Shape::read(&header)?;
    let context = shape.context;
    Decoder::load(path, &header, shape, context)
}

fn logarithms(scores: &[f32]) -> Vec<f64> {
    let scores: Vec<f64> = scores.iter().map(|score| f64::from(*score)).collect();
    let best = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = scores.iter().map(|score| (score - best).exp()).sum();
    scores.iter().map(|score| score - best - sum.ln()).collect()
}

fn likeliest(scores: &[f32]) -> u32 {
    let best = (0..).zip(scores).max_by(|a: &(u32, &f32), b| a.1.total_cmp(b.1));
    best.unwrap().0
}

#[test]
fn every_architecture_computes_what_its_reference_computes() {
    let fixtures = fixtures();
    let mut worst = Vec::new();
    for fixture in &fixtures {
        let path = folder().join(&fixture.file);
        assert_eq!(
            digest::of_file(&path).unwrap(),
            fixture.sha256,
            "golden.json belongs to another {}",
            fixture.file
        );
        let tolerance = tolerance(&Shape::read(&Header::read(&path).unwrap()).unwrap());
        let run = Run::new(load(&path).unwrap(), 0);
        let mut furthest = 0.0_f64;
        for case in &fixture.cases {
            let mut reading = run.begin(&Arc::default(), &[]);
            let mut scores = reading.feed(&case.tokens).unwrap();
            for (step, listed) in case.likeliest.iter().enumerate() {
                let place = format!("{} {} step {step}", fixture.file, case.name);
                let own = logarithms(&scores);
                for (id, expected) in listed {
                    furthest = furthest.max((own[*id as usize] - expected).abs());
                }
                // The last step may be one where two tokens are too close to be told apart.
                let Some(token) = case.answer.get(step) else { break };
                assert_eq!(likeliest(&scores), *token, "{place}");
                scores = reading.feed(&[*token]).unwrap();
            }
        }
        worst.push((fixture.file.as_str(), furthest, furthest < tolerance));
    }
    assert!(worst.iter().all(|(_, _, near)| *near), "{worst:?}");
    let known: Vec<_> = fixtures
        .iter()
        .map(|fixture| Header::read(&folder().join(&fixture.file)).unwrap().architecture().to_owned())
        .collect();
    for architecture in Architecture::ALL {
        assert!(known.iter().any(|name| name == architecture.name()), "{architecture:?} has no fixture");
    }
}

#[test]
fn prompts_and_tokens_are_those_of_the_reference() {
    for fixture in fixtures() {
        let counter = TokenCounter::from_gguf(&folder().join(&fixture.file)).unwrap();
        let bos = counter.tokenizer().bos_text();
        for case in &fixture.cases {
            let place = format!("{} {}", fixture.file, case.name);
            if let Some(text) = &case.text {
                assert_eq!(counter.encode_completion_prompt(text).unwrap(), case.tokens, "{place}");
                continue;
            }
            let request = json!({"model": "m", "messages": case.messages});
            let request: ChatRequest = serde_json::from_value(request).unwrap();
            let prompt = counter.render_prompt(&request).unwrap();
            let expected = case.prompt.as_deref().unwrap();
            let begins = !bos.is_empty() && prompt.starts_with(bos);
            assert_eq!(prompt.strip_prefix(bos).unwrap_or(&prompt), expected, "{place}");
            // The reference begins every prompt with the mark, `transformers` and this engine where the template does.
            let tokens = counter.encode_prompt(&request).unwrap();
            let first = usize::from(!begins && tokens.len() < case.tokens.len());
            assert_eq!(tokens, case.tokens[first..], "{place}");
        }
    }
}

#[test]
fn a_template_without_a_system_role_refuses_one() {
    let counter = TokenCounter::from_gguf(&folder().join("gemma2.gguf")).unwrap();
    let request = json!({"model": "m", "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]});
    let refused = counter.render_prompt(&serde_json::from_value(request).unwrap()).unwrap_err();
    assert!(
        refused.is_request_fault() && refused.to_string().contains("System role not supported"),
        "{refused}"
    );
}

#[test]
fn reading_in_pieces_or_from_a_kept_beginning_gives_the_same_bits() {
    for fixture in fixtures() {
        let case = fixture.cases.iter().find(|case| case.name == "long").unwrap();
        let tokens = &case.tokens;
        let run = Run::new(load(&folder().join(&fixture.file)).unwrap(), 64 << 20);
        let whole = run.begin(&Arc::default(), tokens).feed(tokens).unwrap();
        for size in [1, 45] {
            let mut reading = run.begin(&Arc::default(), &[]);
            let mut scores = Vec::new();
            tokens.chunks(size).for_each(|piece| scores = reading.feed(piece).unwrap());
            assert!(scores == whole, "{} in pieces of {size}", fixture.file);
            reading.keep();
        }
        let mut again = run.begin(&Arc::default(), tokens);
        assert_eq!(again.position(), tokens.len() - 1, "only the last token is read again");
        assert!(
            again.feed(&tokens[tokens.len() - 1..]).unwrap() == whole,
            "{} from a beginning",
            fixture.file
        );
        // A prompt that leaves the kept one in the middle of a block, and another reading that goes on meanwhile.
        let other: Vec<u32> = tokens[..50.min(tokens.len() - 2)].iter().chain(&[3, 4, 5]).copied().collect();
        let fresh = Run::new(load(&folder().join(&fixture.file)).unwrap(), 0);
        let expected = fresh.begin(&Arc::default(), &other).feed(&other).unwrap();
        let mut branch = run.begin(&Arc::default(), &other);
        assert!(branch.position() >= other.len() - 3, "{}", branch.position());
        let read = branch.position();
        assert!(branch.feed(&other[read..]).unwrap() == expected, "{} on a branch", fixture.file);
        assert!(
            run.begin(&Arc::default(), tokens).feed(&tokens[tokens.len() - 1..]).unwrap() == whole,
            "the branch changed what is kept"
        );
    }
}

#[test]
fn tokens_outside_the_vocabulary_are_an_error() {
    let decoder = load(&folder().join("llama.gguf")).unwrap();
    let mut cache = Cache::new(decoder.layout());
    assert!(decoder.read(&[1_000_000], &mut cache).is_err());
    assert!(decoder.read(&[], &mut cache).is_err());
    assert!(decoder.read(&[1], &mut cache).is_ok() && cache.length() == 1);
}

/// What is said of the fixture of an architecture after bytes of it were changed.
fn complaint(file: &str, damage: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut bytes = std::fs::read(folder().join(file)).unwrap();
    damage(&mut bytes);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("damaged.gguf");
    std::fs::write(&path, bytes).unwrap();
    match load(&path) {
        Ok(_) => panic!("{file} was loaded although it was damaged"),
        Err(error) => format!("{error:#}"),
    }
}

fn find(bytes: &[u8], text: &str) -> usize {
    bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap()
}

/// Writes a whole number behind its key; between them lies its type.
fn set(key: &'static str, value: u32) -> impl FnOnce(&mut Vec<u8>) {
    move |bytes| {
        let at = find(bytes, key) + key.len() + 4;
        bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

#[test]
fn impossible_files_are_refused_with_a_sentence() {
    let said = complaint("llama.gguf", |bytes| {
        let at = find(bytes, "llama");
        bytes[at..at + 5].copy_from_slice(b"mamba");
    });
    assert_eq!(
        said,
        "architecture `mamba` is not supported; supported: llama, qwen2, qwen3, phi3, gemma, gemma2, gemma3"
    );
    for (file, key, value, expected) in [
        ("llama.gguf", "llama.block_count", 0, "`llama.block_count` is 0"),
        ("llama.gguf", "llama.block_count", u32::MAX, "1 to 1024 is possible"),
        ("llama.gguf", "llama.block_count", 900, "layer 3: the tensor blk.3.attn_q.weight is missing"),
        ("llama.gguf", "llama.attention.head_count_kv", 3, "do not fit together"),
        (
            "llama.gguf",
            "llama.attention.head_count_kv",
            4,
            "attn_k.weight is of size [16, 32]; [32, 32] is expected",
        ),
        ("llama.gguf", "llama.embedding_length", 1 << 20, "is expected"),
        ("llama.gguf", "llama.embedding_length", 30, "do not divide"),
        ("qwen2.gguf", "qwen2.feed_forward_length", 1 << 22, "is expected"),
        ("qwen3.gguf", "qwen3.attention.key_length", 18, "do not fit together"),
        ("phi3.gguf", "phi3.rope.dimension_count", 10, "do not fit together"),
        ("gemma.gguf", "gemma.context_length", 0, "`gemma.context_length` is 0"),
        ("gemma3.gguf", "gemma3.attention.layer_norm_rms_epsilon", 0, "not a number above 0"),
        ("gemma3.gguf", "gemma3.rope.scaling.factor", f32::NAN.to_bits(), "not a number above 0"),
    ] {
        let said = complaint(file, set(key, value));
        assert!(said.contains(expected), "{key} = {value}: {said}");
    }
    let said = complaint("gemma2.gguf", |bytes| bytes.truncate(bytes.len() / 2));
    assert!(said.contains("reading the tensor"), "{said}");
    let said = complaint("gemma3.gguf", |bytes| {
        let at = find(bytes, "linear");
        bytes[at..at + 6].copy_from_slice(b"yarnly");
    });
    assert!(said.contains("`yarnly` is not supported"), "{said}");
}

#[test]
fn the_first_bytes_of_a_file_never_panic() {
    let whole = std::fs::read(folder().join("qwen2.gguf")).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("cut.gguf");
    for part in 0..40 {
        std::fs::write(&path, &whole[..whole.len() * part / 40]).unwrap();
        assert!(load(&path).is_err(), "{part} of 40 parts");
    }
}
