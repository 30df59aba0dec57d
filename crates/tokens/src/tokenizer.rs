//! Tokenizers made from the vocabulary inside a GGUF file, or from a `tokenizer.json`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use tokenizers::Tokenizer;

use crate::gguf::{GgufError, Header};
use crate::quick::QuickCounter;
use crate::vocabulary::Vocabulary;

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
    /// For vocabularies whose words can be told apart without the library.
    quick: Option<QuickCounter>,
    /// Bytes of each token; empty for control tokens. Empty as a whole for a tokenizer that only counts.
    bytes: Vec<Box<[u8]>>,
    /// Texts of the control tokens.
    control: BTreeMap<u32, String>,
    /// Texts that a vocabulary's maker had read as one token each.
    defined: Vec<String>,
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
        let (mut inner, quick, bytes, leading_space) = match kind {
            "gpt2" => {
                let (inner, cut) = vocabulary.byte_level(header)?;
                (inner, vocabulary.quick_counter(cut), vocabulary.byte_level_bytes(), false)
            }
            "llama" => {
                let prefix = header.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
                (vocabulary.sentence_piece(header, prefix)?, None, vocabulary.sentence_piece_bytes(), prefix)
            }
            other => {
                return Err(TokenizerError::Unsupported {
                    given: other.to_owned(),
                    supported: "gpt2, llama",
                });
            }
        };
        vocabulary.add_special(header, &mut inner)?;
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
            quick,
            bytes,
            defined: vocabulary.defined().map(str::to_owned).collect(),
            control: vocabulary.control().map(|(id, text)| (id, text.to_owned())).collect(),
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
            quick: None,
            bytes: Vec::new(),
            control: BTreeMap::new(),
            defined: Vec::new(),
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

    /// How many tokens [`Self::encode`] makes of a text, in a fraction of the time where the text is short and plain.
    ///
    /// # Errors
    /// When the vocabulary has no way to write the text.
    pub fn count(&self, text: &str) -> Result<usize, TokenizerError> {
        match self.quick_count(text) {
            Some(count) => Ok(count),
            None => self.encode(text).map(|ids| ids.len()),
        }
    }

    pub(crate) fn quick_count(&self, text: &str) -> Option<usize> {
        self.quick.as_ref()?.count(&self.inner, text)
    }

    #[cfg(test)]
    pub(crate) fn known_words(&self) -> usize {
        self.quick.as_ref().map_or(0, QuickCounter::known_words)
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

    /// The bytes a token is shown with where tokens are listed: those it stands for, or a control token's name.
    #[must_use]
    pub fn shown_bytes(&self, id: u32) -> &[u8] {
        self.control.get(&id).map_or_else(|| self.token_bytes(id), |text| text.as_bytes())
    }

    /// The control tokens with their names.
    pub fn control_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.control.iter().map(|(id, text)| (*id, text.as_str()))
    }

    /// Texts that are read as one token each and are no control tokens.
    pub(crate) fn defined_tokens(&self) -> impl Iterator<Item = &String> {
        self.defined.iter()
    }

    /// Number of tokens that can be generated; 0 for a tokenizer that only counts.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.bytes.len()
    }

    /// The tokens that end an answer.
    pub fn end_tokens(&self) -> impl Iterator<Item = u32> {
        self.ends.iter().copied()
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

#[cfg(test)]
mod tests {
    use super::*;

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
