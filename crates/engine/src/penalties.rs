//! What a request changes in the scores before a token is chosen: biases and penalties.

use std::collections::{BTreeMap, BTreeSet};

use cxmpute_wire::openai::LogitBias;

/// A bias from this on decides alone: the token is the only one that can be chosen, or cannot be chosen.
const ABSOLUTE: f64 = 100.0;

/// How much a token loses for having occurred.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Subtracted once for each occurrence in the answer.
    pub frequency: f64,
    /// Subtracted if the token occurs in the answer.
    pub presence: f64,
    /// Divides the score (multiplies it below 0) if the token occurs in prompt or answer; 1 changes nothing.
    pub repetition: f64,
}

impl Default for Penalties {
    fn default() -> Self {
        Self { frequency: 0.0, presence: 0.0, repetition: 1.0 }
    }
}

/// Biases on tokens, by id.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Bias {
    added: Vec<(u32, f32)>,
    banned: Vec<u32>,
    forced: Vec<u32>,
}

impl Bias {
    /// Reads `logit_bias`.
    ///
    /// # Errors
    /// One sentence, when a key is no token of a vocabulary of this size or a value is outside -100 to 100.
    pub fn read(bias: &LogitBias, vocabulary: usize) -> Result<Self, String> {
        let mut read = Self::default();
        for (key, value) in bias {
            let shown: String = key.chars().take(40).collect();
            let id = key.parse::<u32>().ok().filter(|id| (*id as usize) < vocabulary).ok_or_else(|| {
                format!(
                    "logit_bias names `{shown}`, which is no token of this model: ids are 0 to {}.",
                    vocabulary.saturating_sub(1)
                )
            })?;
            if !(-ABSOLUTE..=ABSOLUTE).contains(value) {
                return Err(format!("logit_bias of token {id} must be from -100 to 100."));
            }
            if *value <= -ABSOLUTE {
                read.banned.push(id);
            } else if *value >= ABSOLUTE {
                read.forced.push(id);
            } else {
                #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
                read.added.push((id, *value as f32));
            }
        }
        Ok(read)
    }

    fn apply(&self, scores: &mut [f32]) {
        for (id, value) in &self.added {
            if let Some(score) = scores.get_mut(*id as usize) {
                *score += value;
            }
        }
        for id in &self.banned {
            if let Some(score) = scores.get_mut(*id as usize) {
                *score = f32::NEG_INFINITY;
            }
        }
        if self.forced.iter().any(|id| scores.get(*id as usize).is_some_and(|score| score.is_finite())) {
            for (id, score) in (0..).zip(scores) {
                if !self.forced.contains(&id) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
    }
}

/// The tokens so far, as far as penalties care.
#[derive(Debug, Clone)]
pub struct History {
    penalties: Penalties,
    prompt: BTreeSet<u32>,
    answer: BTreeMap<u32, u32>,
}

impl History {
    /// Nothing is generated yet.
    pub fn new(penalties: Penalties, prompt: &[u32]) -> Self {
        let repeats = penalties.repetition != 1.0;
        let prompt = if repeats { prompt.iter().copied().collect() } else { BTreeSet::new() };
        Self { penalties, prompt, answer: BTreeMap::new() }
    }

    /// A token was generated.
    pub fn push(&mut self, token: u32) {
        *self.answer.entry(token).or_default() += 1;
    }

    /// Applies bias and penalties to the scores of the next token.
    #[expect(clippy::cast_possible_truncation, reason = "scores are f32")]
    pub fn adjust(&self, bias: &Bias, scores: &mut [f32]) {
        let Penalties { frequency, presence, repetition } = self.penalties;
        if repetition != 1.0 {
            for id in self.prompt.iter().chain(self.answer.keys().filter(|id| !self.prompt.contains(id))) {
                if let Some(score) = scores.get_mut(*id as usize) {
                    *score = if *score > 0.0 {
                        (f64::from(*score) / repetition) as f32
                    } else {
                        (f64::from(*score) * repetition) as f32
                    };
                }
            }
        }
        if frequency != 0.0 || presence != 0.0 {
            for (id, count) in &self.answer {
                if let Some(score) = scores.get_mut(*id as usize) {
                    *score -= (f64::from(*count) * frequency + presence) as f32;
                }
            }
        }
        bias.apply(scores);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bias(entries: &[(&str, f64)]) -> Result<Bias, String> {
        Bias::read(&entries.iter().map(|(id, value)| ((*id).to_owned(), *value)).collect(), 4)
    }

    fn adjusted(
        penalties: Penalties,
        prompt: &[u32],
        answer: &[u32],
        bias: &Bias,
        scores: &[f32],
    ) -> Vec<f32> {
        let mut history = History::new(penalties, prompt);
        answer.iter().for_each(|token| history.push(*token));
        let mut scores = scores.to_vec();
        history.adjust(bias, &mut scores);
        scores
    }

    #[test]
    fn penalties_follow_the_published_formula() {
        let both = Penalties { frequency: 0.5, presence: 0.25, repetition: 1.0 };
        let scores = adjusted(both, &[3], &[1, 1, 2], &Bias::default(), &[1.0, 1.0, 1.0, 1.0]);
        assert_eq!(scores, [1.0, 1.0 - 2.0 * 0.5 - 0.25, 1.0 - 0.5 - 0.25, 1.0]);
        let repetition = Penalties { repetition: 2.0, ..Penalties::default() };
        let scores = adjusted(repetition, &[0, 1], &[1, 2], &Bias::default(), &[4.0, -1.0, 2.0, 5.0]);
        assert_eq!(scores, [2.0, -2.0, 1.0, 5.0]);
    }

    #[test]
    fn a_bias_adds_bans_and_forces() {
        let scores = [1.0, 2.0, 3.0, 4.0];
        let none = Penalties::default();
        let (ban, force) = (f32::NEG_INFINITY, bias(&[("1", 100.0), ("3", -2.0)]).unwrap());
        let added = bias(&[("0", 1.5), ("3", -100.0)]).unwrap();
        assert_eq!(adjusted(none, &[], &[], &added, &scores), [2.5, 2.0, 3.0, ban]);
        assert_eq!(adjusted(none, &[], &[], &force, &scores), [ban, 2.0, ban, ban]);
        for wrong in [("4", 1.0), ("-1", 1.0), ("a", 1.0), ("1", 100.5), ("1", f64::NAN)] {
            assert!(bias(&[wrong]).is_err(), "{wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn only_tokens_that_occurred_change_and_positive_penalties_never_raise(
            scores in prop::collection::vec(-20f32..20.0, 8),
            prompt in prop::collection::vec(0u32..8, 0..6),
            answer in prop::collection::vec(0u32..8, 0..12),
            frequency in 0f64..2.0, presence in 0f64..2.0, repetition in 1f64..2.0,
        ) {
            let penalties = Penalties { frequency, presence, repetition };
            let after = adjusted(penalties, &prompt, &answer, &Bias::default(), &scores);
            for (id, (before, after)) in (0..).zip(scores.iter().zip(&after)) {
                prop_assert!(after <= before);
                if !prompt.contains(&id) && !answer.contains(&id) {
                    prop_assert_eq!(after, before);
                }
            }
        }
    }
}
