//! The quick count is the library's count, for every way of cutting and whatever the text.

use std::path::Path;

use proptest::prelude::*;

use crate::gguf::Header;
use crate::tokenizer::TextTokenizer;

/// Texts of the kinds that the patterns tell apart, mixed.
fn texts() -> impl Strategy<Value = String> {
    let kinds = prop_oneof![
        "[a-zA-Z]{1,6}",
        "[0-9]{1,5}",
        "[ ]{1,4}",
        "[ \\t\\r\\n\\x0b\\x0c]{1,4}",
        "'(s|t|re|ve|m|ll|d|S|RE|Ll|x|)",
        "[!-/:-@\\[-`{-~]{1,4}",
        "[\\x00-\\x7f]{1,4}",
        "<\\|im_(start|end)\\|>",
        "<\\|(im_|end|<)",
        "(hello|world| the|  )",
        "[é日\u{a0}ſK]{0,1}",
    ];
    proptest::collection::vec(kinds, 0..12).prop_map(|parts| parts.concat())
}

/// A byte-level vocabulary of the given kind with some merges and two texts that are one token each.
fn tokenizer(pre: &str) -> TextTokenizer {
    let alphabet = crate::vocabulary::byte_alphabet();
    let mut tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
    let merges = [
        "h e", "l l", "he ll", "hell o", "Ġ t", "Ġt he", "Ġ Ġ", "1 2", "12 3", "' s", "Ċ Ċ", "! !", "Ġ Ċ",
        "o !",
    ];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let mut types = vec![1; tokens.len()];
    for (text, kind) in [("<|im_start|>", 3), ("<|im_end|>", 3), ("<|im_", 4), ("world", 4), ("  w", 4)] {
        tokens.push(text.to_owned());
        types.push(kind);
    }
    let merges: Vec<String> = merges.map(String::from).to_vec();
    let header = header_of(pre, &tokens, &types, &merges);
    TextTokenizer::from_header(&header).unwrap()
}

/// Writes a header of the `gpt2` kind and reads it back.
fn header_of(pre: &str, tokens: &[String], types: &[i32], merges: &[String]) -> Header {
    fn text(out: &mut Vec<u8>, text: &str) {
        out.extend((text.len() as u64).to_le_bytes());
        out.extend(text.as_bytes());
    }
    fn array(out: &mut Vec<u8>, key: &str, kind: u32, count: usize) {
        text(out, key);
        out.extend(9u32.to_le_bytes());
        out.extend(kind.to_le_bytes());
        out.extend((count as u64).to_le_bytes());
    }
    let mut out = b"GGUF\x03\0\0\0".to_vec();
    out.extend(0u64.to_le_bytes());
    out.extend(5u64.to_le_bytes());
    for (key, value) in [("model", "gpt2"), ("pre", pre)] {
        text(&mut out, &format!("tokenizer.ggml.{key}"));
        out.extend(8u32.to_le_bytes());
        text(&mut out, value);
    }
    for (key, texts) in [("tokens", tokens), ("merges", merges)] {
        array(&mut out, &format!("tokenizer.ggml.{key}"), 8, texts.len());
        texts.iter().for_each(|value| text(&mut out, value));
    }
    array(&mut out, "tokenizer.ggml.token_type", 5, types.len());
    types.iter().for_each(|kind| out.extend(kind.to_le_bytes()));
    Header::from_reader(out.as_slice()).unwrap()
}

const KINDS: [&str; 5] = ["gpt-2", "llama-bpe", "dbrx", "qwen2", "smollm"];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn the_quick_count_is_the_librarys(text in texts(), kind in 0..KINDS.len()) {
        thread_local! {
            static TOKENIZERS: [TextTokenizer; 5] = KINDS.map(tokenizer);
        }
        TOKENIZERS.with(|tokenizers| {
            let tokenizer = &tokenizers[kind];
            let quick = tokenizer.quick_count(&text);
            prop_assert_eq!(quick.is_some(), text.is_ascii());
            let whole = tokenizer.encode(&text).unwrap().len();
            // Once with words that nobody has seen, once with known ones.
            prop_assert_eq!(quick.unwrap_or(whole), whole, "{} {:?}", KINDS[kind], text);
            prop_assert_eq!(tokenizer.count(&text).unwrap(), whole, "{} {:?}", KINDS[kind], text);
            Ok(())
        })?;
    }

    #[test]
    fn the_model_of_this_repository_is_counted_alike(text in texts()) {
        thread_local! {
            static TOKENIZER: TextTokenizer = {
                let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tools/tiny-model/cxm-tiny-q8.gguf");
                TextTokenizer::from_header(&Header::read(&model).unwrap()).unwrap()
            };
        }
        TOKENIZER.with(|tokenizer| {
            prop_assert_eq!(tokenizer.quick_count(&text).is_some(), text.is_ascii());
            prop_assert_eq!(tokenizer.count(&text).unwrap(), tokenizer.encode(&text).unwrap().len());
            Ok(())
        })?;
    }
}

#[test]
fn a_text_that_is_long_or_not_plain_is_left_to_the_library() {
    let tokenizer = tokenizer("gpt-2");
    assert_eq!(tokenizer.quick_count("hello"), Some(1));
    assert_eq!(tokenizer.quick_count("héllo"), None);
    assert_eq!(tokenizer.quick_count(&"hello ".repeat(20_000)), None);
}

#[test]
fn junk_does_not_grow_the_memory_of_words_for_ever() {
    let tokenizer = tokenizer("gpt-2");
    for number in 0..40_000 {
        let text = format!("{number} {number:x}");
        assert_eq!(tokenizer.count(&text).unwrap(), tokenizer.encode(&text).unwrap().len());
    }
    assert!(tokenizer.known_words() <= super::WORDS);
}
