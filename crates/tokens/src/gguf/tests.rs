//! Headers are written by hand here and read back.

use super::*;

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn start(entries: u64) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend(7u64.to_le_bytes());
    out.extend(entries.to_le_bytes());
    out
}

fn small() -> Vec<u8> {
    let mut out = start(4);
    text(&mut out, "general.architecture");
    out.extend(8u32.to_le_bytes());
    text(&mut out, "llama");
    text(&mut out, "llama.context_length");
    out.extend(4u32.to_le_bytes());
    out.extend(512u32.to_le_bytes());
    text(&mut out, "tokenizer.ggml.tokens");
    out.extend(9u32.to_le_bytes());
    out.extend(8u32.to_le_bytes());
    out.extend(2u64.to_le_bytes());
    text(&mut out, "a");
    text(&mut out, "b");
    text(&mut out, "tokenizer.ggml.scores");
    out.extend(9u32.to_le_bytes());
    out.extend(6u32.to_le_bytes());
    out.extend(1u64.to_le_bytes());
    out.extend((-1f32).to_le_bytes());
    out
}

#[test]
fn a_small_header_is_read() {
    let header = Header::from_reader(small().as_slice()).unwrap();
    assert_eq!(header.architecture(), "llama");
    assert_eq!(header.context_length(), Some(512));
    assert_eq!(header.texts("tokenizer.ggml.tokens").unwrap(), ["a", "b"]);
    assert_eq!(header.floats("tokenizer.ggml.scores"), Some([-1.0].as_slice()));
    assert_eq!(header.tensor_count(), 7);
    assert!(header.texts("tokenizer.ggml.merges").is_err());
}

#[test]
fn every_cut_is_an_error_and_no_panic() {
    let whole = small();
    for end in 0..whole.len() {
        assert!(matches!(Header::from_reader(&whole[..end]), Err(GgufError::Truncated)), "{end}");
    }
}

#[test]
fn claims_beyond_the_bounds_are_refused_before_anything_is_allocated() {
    let too_large = |bytes: &[u8]| matches!(Header::from_reader(bytes), Err(GgufError::TooLarge { .. }));
    assert!(too_large(&start(u64::MAX)));
    let mut key = start(1);
    key.extend(u64::MAX.to_le_bytes());
    assert!(too_large(&key));
    let mut value = start(1);
    text(&mut value, "k");
    value.extend(8u32.to_le_bytes());
    value.extend((MAX_TEXT_BYTES + 1).to_le_bytes());
    assert!(too_large(&value));
    let mut elements = start(1);
    text(&mut elements, "k");
    elements.extend(9u32.to_le_bytes());
    elements.extend(0u32.to_le_bytes());
    elements.extend(u64::MAX.to_le_bytes());
    assert!(too_large(&elements));
    let mut nested = start(1);
    text(&mut nested, "k");
    nested.extend(9u32.to_le_bytes());
    for _ in 0..1000 {
        nested.extend(9u32.to_le_bytes());
        nested.extend(1u64.to_le_bytes());
    }
    assert!(too_large(&nested));
}

#[test]
fn other_files_are_named_as_such() {
    assert!(matches!(Header::from_reader(b"PK\x03\x04....".as_slice()), Err(GgufError::Magic)));
    assert!(matches!(Header::from_reader(b"GGUF\x01\0\0\0".as_slice()), Err(GgufError::Version(1))));
    let mut odd = start(1);
    text(&mut odd, "k");
    odd.extend(99u32.to_le_bytes());
    assert!(matches!(Header::from_reader(odd.as_slice()), Err(GgufError::ValueType(99))));
}
