//! What one attempt has said so far, kept for the count at the end (DESIGN D5) and for whole answers.

use cxmpute_wire::RequestId;
use cxmpute_wire::openai::{FinishReason, FunctionDelta, ToolCallDelta};

use super::answer::Output;
use super::events::{CallPart, Claim};
use super::logprobs::{Follower, Logprobs};
use super::retry::Fault;
use super::rules::Rules;

/// Pieces of content beyond the bound on tokens that are let pass: engines hold text back for stop strings and for
/// split characters, and release it in a piece of its own.
pub(super) const SLACK: u64 = 8;

/// The answer of one attempt.
#[derive(Debug, Default)]
pub struct SoFar {
    choices: Vec<Choice>,
    /// The node's claim of tokens.
    pub claim: Option<Claim>,
}

#[derive(Debug, Default)]
struct Choice {
    /// What is billed: visible text, names and arguments of calls, in the order of relaying (MR20).
    billed: String,
    output: Output,
    pieces: u64,
    opened: bool,
    /// Names and, where they are looked at in the end, arguments of the calls.
    calls: Vec<(String, String)>,
    follower: Follower,
}

impl SoFar {
    /// Nothing yet, of so many choices; `before` tells the characters of repeated prompt before each.
    #[must_use]
    pub fn new(choices: usize, before: impl Fn(usize) -> u64) -> Self {
        let choice = |at| Choice { follower: Follower::after(before(at)), ..Choice::default() };
        Self { choices: (0..choices).map(choice).collect(), claim: None }
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

    /// Holds the probabilities of a piece to its text, and keeps them for a whole answer. `limit` is the bound on
    /// tokens.
    ///
    /// # Errors
    /// They are not those of the text.
    pub fn add_logprobs(
        &mut self,
        choice: usize,
        text: &str,
        logprobs: &mut Logprobs,
        limit: u64,
        keep: bool,
    ) -> Result<(), Fault> {
        let choice = &mut self.choices[choice];
        let most = limit.saturating_add(SLACK);
        choice.follower.follow(text, logprobs, most).map_err(|_| Fault::Protocol)?;
        if keep {
            match &mut choice.output.logprobs {
                Some(all) => all.append(logprobs.clone()),
                none => *none = Some(logprobs.clone()),
            }
        }
        Ok(())
    }

    /// Adds parts of tool calls; returns them as they are sent on, with ids of ours, and the length of the choice's
    /// billed text.
    ///
    /// # Errors
    /// A call that may not be made, or that leaves a gap.
    pub fn add_calls(
        &mut self,
        choice: usize,
        parts: Vec<CallPart>,
        rules: &Rules,
        request_id: &RequestId,
        keep: bool,
    ) -> Result<(Vec<ToolCallDelta>, usize), Fault> {
        let place = choice;
        let choice = &mut self.choices[choice];
        choice.pieces += 1;
        choice.follower.blind();
        let mut deltas = Vec::with_capacity(parts.len());
        for part in parts {
            let first = part.index == choice.calls.len();
            if first {
                let name = part.name.ok_or(Fault::Protocol)?;
                rules.may_call(part.index, &name)?;
                choice.billed.push_str(&name);
                choice.calls.push((name, String::new()));
            }
            let (name, arguments) = choice.calls.get_mut(part.index).ok_or(Fault::Protocol)?;
            choice.billed.push_str(&part.arguments);
            if rules.keeps_arguments() {
                arguments.push_str(&part.arguments);
            }
            deltas.push(ToolCallDelta {
                index: part.index as u64,
                id: first.then(|| call_id(request_id, place, part.index)),
                kind: first.then(|| "function".to_owned()),
                function: Some(FunctionDelta {
                    name: first.then(|| name.clone()),
                    arguments: Some(part.arguments),
                }),
            });
        }
        if keep {
            choice.output.add_calls(&deltas);
        }
        Ok((deltas, choice.billed.len()))
    }

    /// Text and calls of a choice, to be looked at in the end. The text is whole as long as there are no calls.
    #[must_use]
    pub fn made(&self, choice: usize) -> (&str, &[(String, String)]) {
        let choice = &self.choices[choice];
        (&choice.billed, &choice.calls)
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

    /// A choice's billed text.
    #[must_use]
    pub fn text(&self, choice: usize) -> &str {
        &self.choices[choice].billed
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

/// The id of a call; a node's own ids are never sent on (GR15).
fn call_id(request_id: &RequestId, choice: usize, call: usize) -> String {
    let id = request_id.as_str();
    let tail = id.strip_prefix(RequestId::PREFIX).unwrap_or(id);
    format!("call_{tail}{choice:02x}{call:02x}")
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
        let mut so_far = SoFar::new(2, |_| 0);
        let marks: Vec<usize> =
            ["hé", "llo", " 世界"].iter().map(|text| so_far.add_text(0, text, false)).collect();
        so_far.add_text(1, "other", false);
        assert_eq!(so_far.billed(|choice| if choice == 0 { marks[1] } else { 0 }), ["héllo", ""]);
        assert_eq!(so_far.billed(|_| usize::MAX), ["héllo 世界", "other"]);
        assert_eq!(so_far.longest(), 3);
    }

    #[test]
    fn a_choice_ends_once_and_stays_ended() {
        let mut so_far = SoFar::new(2, |_| 0);
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
        let mut so_far = SoFar::new(1, |_| 0);
        for _ in 0..10 + SLACK {
            so_far.add_text(0, "x", false);
            assert!(!so_far.is_overlong(0, 10));
        }
        so_far.add_text(0, "x", false);
        assert!(so_far.is_overlong(0, 10));
    }

    #[test]
    fn calls_are_dense_declared_and_get_ids_of_ours() {
        let body = serde_json::json!({"model": "m", "messages": [],
            "tools": [{"type": "function", "function": {"name": "f"}}]});
        let rules = Rules::of_chat(&serde_json::from_value(body).unwrap(), false).unwrap();
        let id = RequestId::from_tail("0197");
        let part = |index: usize, name: Option<&str>, arguments: &str| CallPart {
            index,
            name: name.map(str::to_owned),
            arguments: arguments.to_owned(),
        };
        let mut so_far = SoFar::new(1, |_| 0);
        let mut add = |part| so_far.add_calls(0, vec![part], &rules, &id, true);
        let (deltas, upto) = add(part(0, Some("f"), "{")).unwrap();
        assert_eq!((deltas[0].id.as_deref(), upto), (Some("call_01970000"), 2));
        let (deltas, upto) = add(part(0, Some("f"), "}")).unwrap();
        assert_eq!((&deltas[0].id, upto), (&None, 3), "a name is billed and sent once");
        assert_eq!(add(part(2, Some("f"), "")), Err(Fault::Protocol), "a gap");
        assert_eq!(add(part(1, None, "")), Err(Fault::Protocol), "no name");
        assert_eq!(add(part(1, Some("g"), "")), Err(Fault::Protocol), "not declared");
        add(part(1, Some("f"), "{\"a\":1}")).unwrap();
        add(part(0, None, " ")).unwrap();
        let output = so_far.take_outputs().remove(0);
        assert_eq!(output.calls[0].function.arguments, "{} ");
        assert_eq!(output.calls[1].id, "call_01970001");
        assert_eq!(so_far.take_billed(), ["f{}f{\"a\":1} "]);
    }
}
