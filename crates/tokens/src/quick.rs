//! Counting without tokens: most texts that are billed are short and plain, and for them the library's bookkeeping (where
//! in the text each token came from, and what it was before) costs ten times what the count does. A byte-level vocabulary
//! cuts a text into words that are tokenized each by itself, so the count of a text is the sum over its words, and the
//! counts of words repeat. Whatever is not plain is left to the library; tests hold both to the same numbers.

use std::collections::HashMap;

use aho_corasick::{AhoCorasick, MatchKind};
use parking_lot::RwLock;
use tokenizers::{Model, Tokenizer};

/// Longest text that is counted here. The library gives up on a word whose search goes back a million steps, and that
/// must not make a difference.
const LONGEST_TEXT: usize = 64 * 1024;
/// Words whose counts are kept, and the longest of them, in bytes: at most 2 MiB with the table around them.
const WORDS: usize = 16 * 1024;
const LONGEST_WORD: usize = 32;

/// How a vocabulary cuts a text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// As GPT-2: words with the space before them.
    Gpt2,
    /// As GPT-2, but each digit by itself (`SmolLM`).
    Gpt2Digits,
    /// As Llama 3: words with any one sign before them, and numbers of at most so many digits.
    Signs {
        /// 3 for Llama 3, 1 for Qwen 2.
        digits: usize,
    },
}

/// Counts the tokens of plain texts.
#[derive(Debug)]
pub struct QuickCounter {
    cut: Cut,
    /// Texts that are one token each wherever they stand.
    whole: Option<AhoCorasick>,
    /// The character that stands for each byte.
    alphabet: Vec<char>,
    known: RwLock<HashMap<Box<[u8]>, u32>>,
}

impl QuickCounter {
    /// A counter for a byte-level vocabulary that reads each of `whole` as one token.
    ///
    /// Gives `None` where the texts cannot be searched for.
    pub fn new(cut: Cut, whole: &[&str], alphabet: Vec<char>) -> Option<Self> {
        let finder = || AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(whole).ok();
        let whole = if whole.is_empty() { None } else { Some(finder()?) };
        (alphabet.len() == 256).then(|| Self { cut, whole, alphabet, known: RwLock::default() })
    }

    /// The number of tokens of `text`, if it is plain: as many as `tokenizer`, whose vocabulary this is, makes of it.
    pub fn count(&self, tokenizer: &Tokenizer, text: &str) -> Option<usize> {
        if text.len() > LONGEST_TEXT || !text.is_ascii() {
            return None;
        }
        let bytes = text.as_bytes();
        let (mut count, mut from) = (0, 0);
        for found in self.whole.iter().flat_map(|whole| whole.find_iter(bytes)) {
            count += 1 + self.count_part(tokenizer, &bytes[from..found.start()])?;
            from = found.end();
        }
        Some(count + self.count_part(tokenizer, &bytes[from..])?)
    }

    fn count_part(&self, tokenizer: &Tokenizer, part: &[u8]) -> Option<usize> {
        let mut count = 0;
        let mut unknown = Vec::new();
        {
            let known = self.known.read();
            let words = Words { cut: self.cut, rest: part };
            for word in words {
                match known.get(word) {
                    Some(tokens) => count += *tokens as usize,
                    None => unknown.push(word),
                }
            }
        }
        for word in unknown {
            count += self.count_word(tokenizer, word)?;
        }
        Some(count)
    }

    #[cfg(test)]
    pub fn known_words(&self) -> usize {
        self.known.read().len()
    }

    /// Asks the library, and remembers its answer.
    fn count_word(&self, tokenizer: &Tokenizer, word: &[u8]) -> Option<usize> {
        let written: String = word.iter().map(|byte| self.alphabet[usize::from(*byte)]).collect();
        let count = tokenizer.get_model().tokenize(&written).ok()?.len();
        if word.len() <= LONGEST_WORD {
            let mut known = self.known.write();
            if known.len() < WORDS {
                known.insert(word.into(), u32::try_from(count).ok()?);
            }
        }
        Some(count)
    }
}

/// The words of a plain text.
struct Words<'t> {
    cut: Cut,
    rest: &'t [u8],
}

impl<'t> Iterator for Words<'t> {
    type Item = &'t [u8];

    fn next(&mut self) -> Option<&'t [u8]> {
        if self.rest.is_empty() {
            return None;
        }
        let length = match self.cut {
            Cut::Gpt2 => gpt2_word(self.rest, false),
            Cut::Gpt2Digits => gpt2_word(self.rest, true),
            Cut::Signs { digits } => signs_word(self.rest, digits),
        };
        let (word, rest) = self.rest.split_at(length);
        self.rest = rest;
        Some(word)
    }
}

/// Unicode's white space, as far as it is ASCII.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t'..=b'\r')
}

fn is_letter(byte: u8) -> bool {
    byte.is_ascii_alphabetic()
}

fn is_digit(byte: u8) -> bool {
    byte.is_ascii_digit()
}

/// Neither space nor letter nor digit.
fn is_sign(byte: u8) -> bool {
    !is_space(byte) && !byte.is_ascii_alphanumeric()
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// How many bytes from the first on are of a kind.
fn run(text: &[u8], is: fn(u8) -> bool) -> usize {
    text.iter().position(|byte| !is(*byte)).unwrap_or(text.len())
}

/// Length of `'s`, `'t`, `'re` and so on.
fn contraction(text: &[u8], any_case: bool) -> Option<usize> {
    if text[0] != b'\'' {
        return None;
    }
    ["s", "t", "re", "ve", "m", "ll", "d"].iter().map(|ending| ending.as_bytes()).find_map(|ending| {
        let there = text.get(1..=ending.len())?;
        let same = if any_case { there.eq_ignore_ascii_case(ending) } else { there == ending };
        same.then_some(1 + ending.len())
    })
}

/// White space that nothing else took: what follows it keeps one of them, unless there is only one.
fn spaces(text: &[u8]) -> usize {
    let length = run(text, is_space);
    if length < text.len() && length > 1 { length - 1 } else { length }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, where `single_digits` has cut the text
/// around every digit before.
fn gpt2_word(text: &[u8], single_digits: bool) -> usize {
    if single_digits && is_digit(text[0]) {
        return 1;
    }
    if let Some(length) = contraction(text, false) {
        return length;
    }
    let space = usize::from(text[0] == b' ');
    let digit: fn(u8) -> bool = if single_digits { |_| false } else { is_digit };
    for is in [is_letter, digit, is_sign] {
        let length = run(&text[space..], is);
        if length > 0 {
            return space + length;
        }
    }
    let white = run(text, is_space);
    if single_digits && text.get(white).copied().is_some_and(is_digit) { white } else { spaces(text) }
}

/// `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn signs_word(text: &[u8], digits: usize) -> usize {
    if let Some(length) = contraction(text, true) {
        return length;
    }
    let first = text[0];
    let before = usize::from(!is_line_end(first) && !first.is_ascii_alphanumeric());
    let letters = run(&text[before..], is_letter);
    if letters > 0 {
        return before + letters;
    }
    if is_digit(first) {
        return run(&text[..text.len().min(digits)], is_digit);
    }
    let space = usize::from(first == b' ');
    let signs = run(&text[space..], is_sign);
    if signs > 0 {
        let end = space + signs;
        return end + run(&text[end..], is_line_end);
    }
    let white = &text[..run(text, is_space)];
    match white.iter().rposition(|byte| is_line_end(*byte)) {
        Some(last) => last + 1,
        None => spaces(text),
    }
}

#[cfg(test)]
mod tests;
