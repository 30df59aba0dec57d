//! Probabilities of tokens as the model gave them: the log-softmax of its unchanged scores, at temperature 1, before
//! bias, penalties, bounds and constraints.

use std::collections::BTreeMap;

use cxmpute_tokens::TextTokenizer;
use cxmpute_wire::openai::{ChatLogprobs, CompletionLogprobs, TokenLogprob, TopLogprob};

use crate::text::{Mark, Span};

/// What stands for "practically none"; JSON has no infinity.
const LEAST: f64 = -9999.0;

/// A token of an answer with its probability.
#[derive(Debug, Clone, PartialEq)]
pub struct Scored {
    /// The bytes it adds to the text.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability; absent for the first token of a prompt.
    pub logprob: Option<f64>,
    /// The likeliest tokens at its place, likeliest first: bytes and natural logarithm.
    pub top: Vec<(Vec<u8>, f64)>,
}

/// Measures a token: its probability and that of the `count` likeliest ones.
pub fn score_token(tokenizer: &TextTokenizer, scores: &[f32], token: u32, count: usize) -> Scored {
    let finite = || scores.iter().copied().filter(|score| score.is_finite()).map(f64::from);
    let best = finite().max_by(f64::total_cmp).unwrap_or(0.0);
    let norm = best + finite().map(|score| (score - best).exp()).sum::<f64>().ln();
    let logprob = |id: u32| {
        let score = scores.get(id as usize).copied().map_or(f64::NEG_INFINITY, f64::from);
        let value = score - norm;
        if value.is_finite() { value.clamp(LEAST, 0.0) } else { LEAST }
    };
    let top = likeliest(scores, count);
    Scored {
        bytes: tokenizer.shown_bytes(token).to_vec(),
        logprob: Some(logprob(token)),
        top: top.into_iter().map(|id| (tokenizer.shown_bytes(id).to_vec(), logprob(id))).collect(),
    }
}

/// The ids of the highest scores, highest first; ties in the order of the vocabulary.
fn likeliest(scores: &[f32], count: usize) -> Vec<u32> {
    let mut ids: Vec<u32> =
        (0..).zip(scores).filter(|(_, score)| score.is_finite()).map(|(id, _)| id).collect();
    let order = |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
    if (1..ids.len()).contains(&count) {
        ids.select_nth_unstable_by(count - 1, order);
    }
    ids.truncate(count);
    ids.sort_unstable_by(order);
    ids
}

/// The tokens of a part of a chat answer.
pub fn of_chat(tokens: Vec<Mark>) -> ChatLogprobs {
    let lossy = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let content = tokens.into_iter().map(|mark| {
        let Scored { bytes, logprob, top } = mark.scored;
        TokenLogprob {
            token: lossy(&bytes),
            logprob: logprob.unwrap_or(LEAST),
            bytes: Some(bytes),
            top_logprobs: top
                .into_iter()
                .map(|(bytes, logprob)| TopLogprob { token: lossy(&bytes), logprob, bytes: Some(bytes) })
                .collect(),
        }
    });
    ChatLogprobs { content: Some(content.collect()), refusal: None }
}

/// Collects the tokens of one legacy completion in the shape of its lists.
#[derive(Debug, Default)]
pub struct CompletionOffsets {
    characters: u64,
}

impl CompletionOffsets {
    /// The tokens of a further part of the text. Without likeliest tokens that list is absent.
    pub fn place(&mut self, span: Span, listed: bool) -> CompletionLogprobs {
        let mut out = CompletionLogprobs::default();
        let mut tops = Vec::new();
        let mut begin = 0;
        for mark in span.tokens {
            out.text_offset.push(self.characters);
            let end = begin + mark.len;
            self.characters += span.text.get(begin..end).map_or(0, |text| text.chars().count() as u64);
            begin = end;
            let first = mark.scored.logprob.is_none();
            out.tokens.push(readable(&mark.scored.bytes));
            out.token_logprobs.push(mark.scored.logprob);
            let top: BTreeMap<String, f64> =
                mark.scored.top.into_iter().map(|(bytes, logprob)| (readable(&bytes), logprob)).collect();
            tops.push(Some(top).filter(|_| !first));
        }
        out.top_logprobs = listed.then_some(tops);
        out
    }
}

/// A token's text; bytes that are no text are written out (`bytes:\xe2\x82`), so that different tokens stay different.
fn readable(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    std::str::from_utf8(bytes).map_or_else(
        |_| {
            bytes.iter().fold(String::from("bytes:"), |mut text, byte| {
                let _ = write!(text, "\\x{byte:02x}");
                text
            })
        },
        str::to_owned,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_likeliest_come_first_and_ties_keep_their_order() {
        assert_eq!(likeliest(&[1.0, 3.0, f32::NAN, 3.0, 2.0], 3), [1, 3, 4]);
        assert_eq!(likeliest(&[1.0, 3.0], 5), [1, 0]);
        assert!(likeliest(&[1.0], 0).is_empty());
    }

    #[test]
    fn bytes_that_are_no_text_are_written_out() {
        assert_eq!(readable("é".as_bytes()), "é");
        assert_eq!(readable(&[0xE2, 0x82]), "bytes:\\xe2\\x82");
    }
}
