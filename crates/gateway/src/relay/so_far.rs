//! What one attempt has said so far, kept for the count at the end (DESIGN D5) and for whole answers.

use cxmpute_wire::openai::{FinishReason, ToolCallDelta};

use super::answer::Output;

/// Pieces of content beyond the bound on tokens that are let pass: engines hold text back for stop strings and for
/// split characters, and release it in a piece of its own.
const SLACK: u64 = 8;

/// The answer of one attempt.
#[derive(Debug, Default)]
pub struct SoFar {
    choices: Vec<Choice>,
    /// The node's claim: prompt and completion tokens.
    pub claim: Option<(u64, u64)>,
}

#[derive(Debug, Default)]
struct Choice {
    /// What is billed: visible text, names and arguments of calls, in the order of relaying (MR20).
    billed: String,
    output: Output,
    pieces: u64,
    opened: bool,
}

impl SoFar {
    /// Nothing yet, of so many choices.
    #[must_use]
    pub fn new(choices: usize) -> Self {
        Self { choices: (0..choices).map(|_| Choice::default()).collect(), claim: None }
    }

    /// Adds text; returns the length of the choice's billed text. `keep` keeps the text for a whole answer.
    pub fn add_text(&mut self, choice: usize, text: &str, keep: bool) -> usize {
        let choice = &mut self.choices[choice];
        choice.pieces += 1;
        choice.billed.push_str(text);
        if keep {
            choice.output.text.push_str(text);
        }
        choice.billed.len()
    }

    /// Adds parts of tool calls; returns the length of the choice's billed text.
    pub fn add_calls(&mut self, choice: usize, calls: &[ToolCallDelta], keep: bool) -> usize {
        let choice = &mut self.choices[choice];
        choice.pieces += 1;
        for function in calls.iter().filter_map(|call| call.function.as_ref()) {
            choice.billed.push_str(function.name.as_deref().unwrap_or_default());
            choice.billed.push_str(function.arguments.as_deref().unwrap_or_default());
        }
        if keep {
            choice.output.add_calls(calls);
        }
        choice.billed.len()
    }

    /// Notes the end of a choice; false when it had ended before.
    pub fn finish(&mut self, choice: usize, reason: FinishReason) -> bool {
        let finish = &mut self.choices[choice].output.finish;
        let first = finish.is_none();
        finish.get_or_insert(reason);
        first
    }

    /// Whether a choice has ended.
    #[must_use]
    pub fn is_finished(&self, choice: usize) -> bool {
        self.choices[choice].output.finish.is_some()
    }

    /// Whether all choices have ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.choices.iter().all(|choice| choice.output.finish.is_some())
    }

    /// Choices that have not ended.
    #[must_use]
    pub fn unfinished(&self) -> Vec<usize> {
        (0..self.choices.len()).filter(|choice| !self.is_finished(*choice)).collect()
    }

    /// Whether there was content.
    #[must_use]
    pub fn has_content(&self) -> bool {
        self.choices.iter().any(|choice| choice.pieces > 0)
    }

    /// Whether the first chunk of a choice is due; true once.
    pub fn open(&mut self, choice: usize) -> bool {
        !std::mem::replace(&mut self.choices[choice].opened, true)
    }

    /// Pieces of content of the longest choice: a lower bound of its tokens for engines that send token by token.
    #[must_use]
    pub fn longest(&self) -> u64 {
        self.choices.iter().map(|choice| choice.pieces).max().unwrap_or(0)
    }

    /// Whether a choice is longer than its bound on tokens by our own rough count, or than its bound on bytes
    /// (GR section 9: 64 per token, and as much as 256 tokens more).
    #[must_use]
    pub fn is_overlong(&self, choice: usize, limit: u64) -> bool {
        let choice = &self.choices[choice];
        choice.pieces > limit.saturating_add(SLACK)
            || choice.billed.len() as u64 > limit.saturating_add(256).saturating_mul(64)
    }

    /// Why the first choice ended.
    #[must_use]
    pub fn finish_reason(&self) -> Option<FinishReason> {
        self.choices.first().and_then(|choice| choice.output.finish)
    }

    /// The billed texts, each up to the length that `upto` gives for its choice.
    #[must_use]
    pub fn billed(&self, upto: impl Fn(usize) -> usize) -> Vec<String> {
        let cut = |(place, choice): (usize, &Choice)| {
            let text = &choice.billed;
            // Marks stand between pieces, so they never split a character; anything else counts as nothing.
            text.get(..upto(place).min(text.len())).unwrap_or_default().to_owned()
        };
        self.choices.iter().enumerate().map(cut).collect()
    }

    /// A part of a choice's billed text; marks stand between pieces, so they never split a character.
    #[must_use]
    pub fn segment(&self, choice: usize, from: usize, upto: usize) -> &str {
        let text = &self.choices[choice].billed;
        text.get(from..upto.min(text.len())).unwrap_or_default()
    }

    /// Moves the billed texts out.
    #[must_use]
    pub fn take_billed(&mut self) -> Vec<String> {
        self.choices.iter_mut().map(|choice| std::mem::take(&mut choice.billed)).collect()
    }

    /// Moves the whole outputs out.
    #[must_use]
    pub fn take_outputs(&mut self) -> Vec<Output> {
        self.choices.iter_mut().map(|choice| std::mem::take(&mut choice.output)).collect()
    }
}

/// A text cut before its last word: what is counted for a checkpoint, so that a word whose rest is still to come
/// never counts more tokens now than it will in the end.
#[must_use]
pub fn whole_words(text: &str) -> &str {
    text.rfind(char::is_whitespace).map_or("", |end| &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn billed_text_is_cut_at_what_was_handed_out() {
        let mut so_far = SoFar::new(2);
        let marks: Vec<usize> =
            ["hé", "llo", " 世界"].iter().map(|text| so_far.add_text(0, text, false)).collect();
        so_far.add_text(1, "other", false);
        assert_eq!(so_far.billed(|choice| if choice == 0 { marks[1] } else { 0 }), ["héllo", ""]);
        assert_eq!(so_far.billed(|_| usize::MAX), ["héllo 世界", "other"]);
        assert_eq!(so_far.longest(), 3);
    }

    #[test]
    fn a_choice_ends_once_and_stays_ended() {
        let mut so_far = SoFar::new(2);
        assert!(so_far.finish(0, FinishReason::Stop));
        assert!(!so_far.finish(0, FinishReason::Length));
        assert_eq!(so_far.finish_reason(), Some(FinishReason::Stop));
        assert_eq!(so_far.unfinished(), [1]);
        assert!(!so_far.is_complete());
    }

    #[test]
    fn only_whole_words_are_checkpointed() {
        for (text, cut) in
            [("", ""), ("hel", ""), ("hello wor", "hello"), ("a b ", "a b"), ("é 世\n界", "é 世")]
        {
            assert_eq!(whole_words(text), cut, "{text}");
        }
    }

    #[test]
    fn more_pieces_than_tokens_are_noticed() {
        let mut so_far = SoFar::new(1);
        for _ in 0..10 + SLACK {
            so_far.add_text(0, "x", false);
            assert!(!so_far.is_overlong(0, 10));
        }
        so_far.add_text(0, "x", false);
        assert!(so_far.is_overlong(0, 10));
    }
}
