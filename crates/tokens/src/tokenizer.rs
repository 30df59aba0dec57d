//! Tokenizers made from the vocabulary inside a GGUF file, or from a `tokenizer.json`.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::json;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use crate::gguf::{GgufError, Header};

/// Token types of a GGUF vocabulary.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// Control tokens that end an answer in one family of models or another; a vocabulary marks one of them as its end
/// of sequence, and chat models often end a turn with another.
const TURN_ENDS: [&str; 8] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<end_of_turn>",
    "</s>",
    "<|end_of_text|>",
];

/// How Llama 3 splits text before merging (`tokenizer.ggml.pre = llama-bpe`).
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen 2 splits text: the same with single digits.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Why a tokenizer could not be made or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The vocabulary in the header is absent or malformed.
    #[error(transparent)]
    Header(#[from] GgufError),
    /// A kind of tokenizer that this program does not know.
    #[error("tokenizer `{given}` is not supported; supported: {supported}")]
    Unsupported {
        /// What the file asks for.
        given: String,
        /// What there is.
        supported: &'static str,
    },
    /// The vocabulary contradicts itself.
    #[error("the vocabulary is unusable: {0}")]
    Vocabulary(String),
    /// A tokenizer file cannot be read.
    #[error("{}: {message}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A text cannot be tokenized.
    #[error("the text cannot be tokenized: {0}")]
    Encode(String),
}

/// A tokenizer with what generation needs to know about its tokens.
#[derive(Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
    /// Bytes of each token; empty for control tokens. Empty as a whole for a tokenizer that only counts.
    bytes: Vec<Box<[u8]>>,
    bos: Option<u32>,
    adds_bos: bool,
    ends: BTreeSet<u32>,
    bos_text: String,
    eos_text: String,
    /// SentencePiece writes a space before the first word.
    leading_space: bool,
}

impl TextTokenizer {
    /// Makes the tokenizer of a GGUF file.
    ///
    /// # Errors
    /// When the vocabulary is absent, contradicts itself or is of an unknown kind.
    pub fn from_header(header: &Header) -> Result<Self, TokenizerError> {
        let kind = header.text("tokenizer.ggml.model").unwrap_or_default();
        let vocabulary = Vocabulary::read(header)?;
        let (mut inner, bytes, leading_space) = match kind {
            "gpt2" => (vocabulary.byte_level(header)?, vocabulary.byte_level_bytes(), false),
            "llama" => {
                let prefix = header.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
                (vocabulary.sentence_piece(header, prefix)?, vocabulary.sentence_piece_bytes(), prefix)
            }
            other => {
                return Err(TokenizerError::Unsupported {
                    given: other.to_owned(),
                    supported: "gpt2, llama",
                });
            }
        };
        vocabulary.add_special(&mut inner)?;
        let id = |name: &str| {
            let id = header.number(&format!("tokenizer.ggml.{name}_token_id"))?;
            u32::try_from(id).ok().filter(|id| (*id as usize) < vocabulary.tokens.len())
        };
        let text = |id: Option<u32>| id.map(|id| vocabulary.tokens[id as usize].clone()).unwrap_or_default();
        let mut ends: BTreeSet<u32> = ["eos", "eot", "eom"].into_iter().filter_map(id).collect();
        ends.extend(vocabulary.control().filter(|(_, text)| TURN_ENDS.contains(text)).map(|(id, _)| id));
        let bos = id("bos");
        Ok(Self {
            inner,
            bytes,
            bos,
            adds_bos: header.flag("tokenizer.ggml.add_bos_token").unwrap_or(kind == "llama"),
            ends,
            bos_text: text(bos),
            eos_text: text(id("eos")),
            leading_space,
        })
    }

    /// Reads a `tokenizer.json`. Truncation and padding that the file asks for are switched off: they would change
    /// counts.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn from_json_file(path: &Path) -> Result<Self, TokenizerError> {
        let failed = |message: String| TokenizerError::File { path: path.to_owned(), message };
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let mut inner = Tokenizer::from_bytes(&bytes).map_err(|error| failed(error.to_string()))?;
        inner.with_truncation(None).map_err(|error| failed(error.to_string()))?;
        inner.with_padding(None);
        Ok(Self {
            inner,
            bytes: Vec::new(),
            bos: None,
            adds_bos: false,
            ends: BTreeSet::new(),
            bos_text: String::new(),
            eos_text: String::new(),
            leading_space: false,
        })
    }

    /// Tokens of a text. Control tokens written out in the text are read as such; nothing is added.
    ///
    /// # Errors
    /// When the vocabulary has no way to write the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_as(text, false)
    }

    /// Tokens of a bare prompt: as [`Self::encode`], with the token that begins a sequence if the model wants it.
    ///
    /// # Errors
    /// When the vocabulary has no way to write the text.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = self.encode(text)?;
        if let Some(bos) = self.bos.filter(|bos| self.adds_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    /// Tokens of a text between the marks that an embedding model wants around it, at most `limit` of them. The
    /// closing mark is kept when the text is cut.
    ///
    /// # Errors
    /// When the vocabulary has no way to write the text.
    pub fn encode_marked(&self, text: &str, limit: usize) -> Result<(Vec<u32>, bool), TokenizerError> {
        let mut ids = self.encode_as(text, true)?;
        let cut = ids.len() > limit;
        if cut && limit > 0 {
            let last = ids[ids.len() - 1];
            ids.truncate(limit);
            ids[limit - 1] = last;
        }
        Ok((ids, cut))
    }

    fn encode_as(&self, text: &str, marks: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding =
            self.inner.encode_fast(text, marks).map_err(|error| TokenizerError::Encode(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The bytes a token stands for; empty for control tokens. Bytes of one character may be spread over tokens.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |bytes| bytes)
    }

    /// Whether a token ends an answer.
    #[must_use]
    pub fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// The text of the token that begins a sequence; empty if there is none.
    #[must_use]
    pub fn bos_text(&self) -> &str {
        &self.bos_text
    }

    /// The text of the token that ends a sequence; empty if there is none.
    #[must_use]
    pub fn eos_text(&self) -> &str {
        &self.eos_text
    }

    /// Whether the first token of an answer begins with a space that is not part of it.
    #[must_use]
    pub fn leading_space(&self) -> bool {
        self.leading_space
    }
}

/// The vocabulary of a header, checked for consistency.
struct Vocabulary<'a> {
    tokens: &'a [String],
    types: &'a [i64],
}

impl<'a> Vocabulary<'a> {
    fn read(header: &'a Header) -> Result<Self, TokenizerError> {
        let tokens = header.texts("tokenizer.ggml.tokens")?;
        let types = header.integers("tokenizer.ggml.token_type").unwrap_or_default();
        if tokens.is_empty() || !(types.is_empty() || types.len() == tokens.len()) {
            let message = format!("{} tokens and {} token types", tokens.len(), types.len());
            return Err(TokenizerError::Vocabulary(message));
        }
        Ok(Self { tokens, types })
    }

    fn kind(&self, id: usize) -> i64 {
        self.types.get(id).copied().unwrap_or(1)
    }

    fn control(&self) -> impl Iterator<Item = (u32, &str)> {
        let numbered = (0_u32..).zip(self.tokens);
        numbered.filter(|(id, _)| self.kind(*id as usize) == CONTROL).map(|(id, text)| (id, text.as_str()))
    }

    fn ids(&self) -> Vocab {
        self.tokens.iter().cloned().zip(0..).collect()
    }

    /// Byte-level BPE: GPT-2, Llama 3, Qwen, `SmolLM`.
    fn byte_level(&self, header: &Header) -> Result<Tokenizer, TokenizerError> {
        let merges = header.texts("tokenizer.ggml.merges")?;
        let merges = merges
            .iter()
            .map(|merge| merge.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| TokenizerError::Vocabulary("a merge is not two tokens".into()))?;
        let split = |pattern: &str| {
            json!({"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
                {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]})
        };
        let plain =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let pre = header.text("tokenizer.ggml.pre").unwrap_or("gpt-2");
        let (pre_tokenizer, whole_words) = match pre {
            "gpt-2" | "default" => (plain, false),
            "llama-bpe" | "llama3" | "llama-v3" => (split(LLAMA3_SPLIT), true),
            "qwen2" => (split(QWEN2_SPLIT), false),
            "smollm" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                (json!({"type": "Sequence", "pretokenizers": [digits, plain]}), false)
            }
            other => {
                return Err(TokenizerError::Unsupported {
                    given: format!("gpt2/{other}"),
                    supported: "gpt2 with gpt-2, default, llama-bpe, qwen2 or smollm",
                });
            }
        };
        let model = BPE::builder()
            .vocab_and_merges(self.ids(), merges)
            .ignore_merges(whole_words)
            .build()
            .map_err(|error| TokenizerError::Vocabulary(error.to_string()))?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer.with_pre_tokenizer(Some(component::<PreTokenizerWrapper>(pre_tokenizer)?));
        Ok(tokenizer)
    }

    fn byte_level_bytes(&self) -> Vec<Box<[u8]>> {
        let alphabet = byte_alphabet();
        let bytes_of = |token: &String| -> Box<[u8]> {
            let mapped: Option<Vec<u8>> = token
                .chars()
                .map(|character| alphabet.iter().position(|known| *known == character))
                .map(|place| place.and_then(|place| u8::try_from(place).ok()))
                .collect();
            mapped.unwrap_or_else(|| token.as_bytes().to_vec()).into()
        };
        self.bytes(bytes_of)
    }

    /// SentencePiece BPE: Llama 2, Mistral. The scores give the order of merges, as in `transformers`.
    fn sentence_piece(&self, header: &Header, prefix: bool) -> Result<Tokenizer, TokenizerError> {
        let scores = header.floats("tokenizer.ggml.scores").unwrap_or_default();
        if scores.len() != self.tokens.len() {
            let message = format!("{} tokens and {} scores", self.tokens.len(), scores.len());
            return Err(TokenizerError::Vocabulary(message));
        }
        let ids: HashMap<&str, u32> = self.tokens.iter().map(String::as_str).zip(0..).collect();
        let mut merges = Vec::new();
        for (token, score) in self.tokens.iter().zip(scores) {
            for (place, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(place);
                if let (Some(left_id), Some(right_id)) = (ids.get(left), ids.get(right)) {
                    merges.push((*score, *left_id, *right_id, left, right));
                }
            }
        }
        merges.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2).cmp(&(b.1, b.2))));
        let merges = merges.into_iter().map(|merge| (merge.3.to_owned(), merge.4.to_owned())).collect();
        let unknown = header.number("tokenizer.ggml.unknown_token_id").unwrap_or(0);
        let unknown = usize::try_from(unknown).ok().and_then(|id| self.tokens.get(id));
        let mut builder =
            BPE::builder().vocab_and_merges(self.ids(), merges).fuse_unk(true).byte_fallback(true);
        if let Some(unknown) = unknown {
            builder = builder.unk_token(unknown.clone());
        }
        let model = builder.build().map_err(|error| TokenizerError::Vocabulary(error.to_string()))?;
        let mut steps = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
        if prefix {
            steps.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        }
        let normalizer = component::<NormalizerWrapper>(json!({"type": "Sequence", "normalizers": steps}))?;
        let mut tokenizer = Tokenizer::new(model);
        tokenizer
            .with_normalizer(Some(normalizer))
            .map_err(|error| TokenizerError::Vocabulary(error.to_string()))?;
        tokenizer.with_decoder(Some(component::<DecoderWrapper>(json!({"type": "ByteFallback"}))?));
        Ok(tokenizer)
    }

    fn sentence_piece_bytes(&self) -> Vec<Box<[u8]>> {
        self.bytes(|token| {
            let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
            match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                Some(byte) => Box::new([byte]),
                None => token.replace('▁', " ").into_bytes().into(),
            }
        })
    }

    fn bytes(&self, bytes_of: impl Fn(&String) -> Box<[u8]>) -> Vec<Box<[u8]>> {
        let kinds = (0..self.tokens.len()).map(|id| self.kind(id));
        self.tokens
            .iter()
            .zip(kinds)
            .map(|(token, kind)| match kind {
                CONTROL | UNUSED => Box::default(),
                USER_DEFINED => token.as_bytes().into(),
                _ => bytes_of(token),
            })
            .collect()
    }

    fn add_special(&self, tokenizer: &mut Tokenizer) -> Result<(), TokenizerError> {
        let numbered = self.tokens.iter().enumerate();
        let added: Vec<AddedToken> = numbered
            .filter(|(id, text)| matches!(self.kind(*id), CONTROL | USER_DEFINED) && !text.is_empty())
            .map(|(id, text)| AddedToken::from(text.clone(), self.kind(id) == CONTROL).normalized(false))
            .collect();
        tokenizer.add_tokens(added).map_err(|error| TokenizerError::Vocabulary(error.to_string()))?;
        Ok(())
    }
}

/// The characters that stand for bytes 0 to 255 in a byte-level vocabulary: printable ones for themselves, the rest
/// from U+0100 on (GPT-2's `bytes_to_unicode`).
fn byte_alphabet() -> Vec<char> {
    let mut next = 0x100_u32;
    (0..=255_u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap_or(char::REPLACEMENT_CHARACTER)
            }
        })
        .collect()
}

/// A part of a tokenizer from its description, as it stands in a `tokenizer.json`.
fn component<T: DeserializeOwned>(description: serde_json::Value) -> Result<T, TokenizerError> {
    serde_json::from_value(description).map_err(|error| TokenizerError::Vocabulary(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_is_gpt2s() {
        let alphabet = byte_alphabet();
        assert_eq!((alphabet.len(), alphabet[b' ' as usize], alphabet[b'\n' as usize]), (256, 'Ġ', 'Ċ'));
        assert_eq!((alphabet[0], alphabet[0x7F], alphabet[0xAD], alphabet[0xE9]), ('Ā', 'ġ', 'Ń', 'é'));
    }

    #[test]
    fn sentence_piece_merges_by_score_and_falls_back_to_bytes() {
        let tokens: Vec<String> = ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "▁", "a", "b", "ab", "▁ab"]
            .map(String::from)
            .to_vec();
        let types = [2, 3, 3, 6, 6, 1, 1, 1, 1, 1];
        let header = header_of(&tokens, &types, &[0., 0., 0., 0., 0., -3., -4., -5., -1., -2.]);
        let tokenizer = TextTokenizer::from_header(&header).unwrap();
        let texts = |ids: Vec<u32>| ids.into_iter().map(|id| tokens[id as usize].clone()).collect::<Vec<_>>();
        assert_eq!(texts(tokenizer.encode("ab ab").unwrap()), ["▁ab", "▁ab"]);
        assert_eq!(
            texts(tokenizer.encode_prompt("é</s>").unwrap()),
            ["<s>", "▁", "<0xC3>", "<0xA9>", "</s>"]
        );
        assert_eq!(tokenizer.token_bytes(3), [0xC3]);
        assert_eq!(tokenizer.token_bytes(9), b" ab");
        assert!(tokenizer.token_bytes(2).is_empty() && tokenizer.is_end(2) && tokenizer.leading_space());
    }

    /// Writes a header of the `llama` kind and reads it back.
    fn header_of(tokens: &[String], types: &[i32], scores: &[f32]) -> Header {
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
        out.extend(6u64.to_le_bytes());
        text(&mut out, "tokenizer.ggml.model");
        out.extend(8u32.to_le_bytes());
        text(&mut out, "llama");
        for (key, id) in [("bos", 1u32), ("eos", 2)] {
            text(&mut out, &format!("tokenizer.ggml.{key}_token_id"));
            out.extend(4u32.to_le_bytes());
            out.extend(id.to_le_bytes());
        }
        array(&mut out, "tokenizer.ggml.tokens", 8, tokens.len());
        tokens.iter().for_each(|token| text(&mut out, token));
        array(&mut out, "tokenizer.ggml.token_type", 5, types.len());
        types.iter().for_each(|kind| out.extend(kind.to_le_bytes()));
        array(&mut out, "tokenizer.ggml.scores", 6, scores.len());
        scores.iter().for_each(|score| out.extend(score.to_le_bytes()));
        Header::from_reader(out.as_slice()).unwrap()
    }
}
