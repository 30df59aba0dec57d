//! From the vocabulary of a GGUF header to a tokenizer of the `tokenizers` library.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_json::json;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PreTokenizerWrapper, Tokenizer};

use crate::gguf::Header;
use crate::quick::{Cut, QuickCounter};
use crate::tokenizer::TokenizerError;

/// Token types of a GGUF vocabulary.
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;
const UNUSED: i64 = 5;

/// How Llama 3 splits text before merging (`tokenizer.ggml.pre = llama-bpe`).
const LLAMA3_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// How Qwen 2 splits text: the same with single digits.
const QWEN2_SPLIT: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The vocabulary of a header, checked for consistency.
pub struct Vocabulary<'a> {
    /// The texts of the tokens, by id.
    pub tokens: &'a [String],
    types: &'a [i64],
}

impl<'a> Vocabulary<'a> {
    /// Reads and checks the vocabulary.
    ///
    /// # Errors
    /// When it is absent or contradicts itself.
    pub fn read(header: &'a Header) -> Result<Self, TokenizerError> {
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

    /// Control tokens with their ids.
    pub fn control(&self) -> impl Iterator<Item = (u32, &str)> {
        let numbered = (0_u32..).zip(self.tokens);
        numbered.filter(|(id, _)| self.kind(*id as usize) == CONTROL).map(|(id, text)| (id, text.as_str()))
    }

    /// Tokens that the vocabulary's maker added for texts of their own.
    pub fn defined(&self) -> impl Iterator<Item = &str> {
        let numbered = self.tokens.iter().enumerate();
        numbered.filter(|(id, _)| self.kind(*id) == USER_DEFINED).map(|(_, text)| text.as_str())
    }

    fn ids(&self) -> Vocab {
        self.tokens.iter().cloned().zip(0..).collect()
    }

    /// Byte-level BPE: GPT-2, Llama 3, Qwen, `SmolLM`.
    ///
    /// # Errors
    /// When the merges are malformed or the way of splitting is unknown.
    pub fn byte_level(&self, header: &Header) -> Result<(Tokenizer, Cut), TokenizerError> {
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
        let (pre_tokenizer, cut, whole_words) = match pre {
            "gpt-2" | "default" => (plain, Cut::Gpt2, false),
            "llama-bpe" | "llama3" | "llama-v3" => (split(LLAMA3_SPLIT), Cut::Signs { digits: 3 }, true),
            "dbrx" => (split(LLAMA3_SPLIT), Cut::Signs { digits: 3 }, false),
            "qwen2" | "deepseek-r1-qwen" => (split(QWEN2_SPLIT), Cut::Signs { digits: 1 }, false),
            "smollm" => {
                let digits = json!({"type": "Digits", "individual_digits": true});
                (json!({"type": "Sequence", "pretokenizers": [digits, plain]}), Cut::Gpt2Digits, false)
            }
            other => {
                return Err(TokenizerError::Unsupported {
                    given: format!("gpt2/{other}"),
                    supported: "gpt2 with gpt-2, default, llama-bpe, dbrx, qwen2, deepseek-r1-qwen or smollm",
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
        Ok((tokenizer, cut))
    }

    /// Counts plain texts as a tokenizer of [`Self::byte_level`] does that has the special tokens.
    pub fn quick_counter(&self, cut: Cut) -> Option<QuickCounter> {
        let whole: Vec<&str> = self.whole().map(|(_, text)| text.as_str()).collect();
        QuickCounter::new(cut, &whole, byte_alphabet())
    }

    /// Control tokens and the user's own ones, which are read as one each.
    fn whole(&self) -> impl Iterator<Item = (usize, &String)> {
        let numbered = self.tokens.iter().enumerate();
        numbered.filter(|(id, text)| matches!(self.kind(*id), CONTROL | USER_DEFINED) && !text.is_empty())
    }

    /// The bytes of each token of a byte-level vocabulary.
    pub fn byte_level_bytes(&self) -> Vec<Box<[u8]>> {
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
    ///
    /// # Errors
    /// When the scores are absent.
    pub fn sentence_piece(&self, header: &Header, prefix: bool) -> Result<Tokenizer, TokenizerError> {
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

    /// The bytes of each token of a `SentencePiece` vocabulary.
    pub fn sentence_piece_bytes(&self) -> Vec<Box<[u8]>> {
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

    /// Makes control tokens and the user's own tokens be read as one each.
    ///
    /// # Errors
    /// When the tokenizer refuses them.
    pub fn add_special(&self, header: &Header, tokenizer: &mut Tokenizer) -> Result<(), TokenizerError> {
        // The marks of Phi 3 take the white space behind them along; nothing in the file says so.
        let greedy = header.architecture() == "phi3" && header.text("tokenizer.ggml.model") == Some("llama");
        let takes_space =
            |text: &str| greedy && text != "<s>" && text != "<|endoftext|>" && text.starts_with('<');
        let added: Vec<AddedToken> = self
            .whole()
            .map(|(id, text)| {
                let control = self.kind(id) == CONTROL;
                AddedToken::from(text.clone(), control).normalized(false).rstrip(control && takes_space(text))
            })
            .collect();
        tokenizer.add_tokens(added).map_err(|error| TokenizerError::Vocabulary(error.to_string()))?;
        Ok(())
    }
}

/// The characters that stand for bytes 0 to 255 in a byte-level vocabulary: printable ones for themselves, the rest
/// from U+0100 on (GPT-2's `bytes_to_unicode`).
pub fn byte_alphabet() -> Vec<char> {
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
}
