//! The bound on the tokens of a choice by our own count, while the answer comes: a node that packs many tokens into one
//! event is stopped where an honest one would have ended (P1).

use super::so_far::SLACK;

/// How far each choice has been counted.
#[derive(Debug, Default)]
pub(super) struct Bound {
    choices: Vec<Counted>,
}

/// Never fewer than the true count: a text that is cut in two has at least as many tokens as the whole.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    bytes: usize,
    tokens: u64,
}

impl Bound {
    /// Nothing is counted yet.
    pub fn new(choices: usize) -> Self {
        Self { choices: vec![Counted::default(); choices] }
    }

    /// Whether `so_far` and `more` together have over `limit` tokens. A token has at least one byte, so most texts are
    /// not counted at all, and a long one only now and then.
    pub fn exceeded(
        &mut self,
        choice: usize,
        so_far: &str,
        more: &str,
        limit: u64,
        count: impl Fn(&str) -> u64,
    ) -> bool {
        let most = limit.saturating_add(SLACK);
        let counted = &mut self.choices[choice];
        let open = (so_far.len() - counted.bytes + more.len()) as u64;
        if counted.tokens.saturating_add(open) <= most {
            return false;
        }
        counted.tokens += count(&[&so_far[counted.bytes..], more].concat());
        counted.bytes = so_far.len() + more.len();
        if counted.tokens <= most {
            return false;
        }
        counted.tokens = count(&[so_far, more].concat());
        counted.tokens > most
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A tokenizer with tokens of up to four bytes.
    fn count(text: &str) -> u64 {
        text.len().div_ceil(4) as u64
    }

    proptest! {
        #[test]
        fn the_bound_is_kept_to_the_token(pieces in proptest::collection::vec("[a-z ]{1,30}", 0..200), limit in 1u64..300) {
            let (mut bound, mut text) = (Bound::new(2), String::new());
            for piece in pieces {
                let whole = format!("{text}{piece}");
                let exceeded = bound.exceeded(1, &text, &piece, limit, count);
                prop_assert_eq!(exceeded, count(&whole) > limit + SLACK);
                if exceeded {
                    break;
                }
                text = whole;
            }
        }
    }

    #[test]
    fn a_short_text_is_not_counted_and_a_long_one_seldom() {
        let calls = std::cell::Cell::new(0);
        let counting = |text: &str| {
            calls.set(calls.get() + 1);
            count(text)
        };
        let (mut bound, mut text) = (Bound::new(1), String::new());
        for _ in 0..1000 {
            assert!(!bound.exceeded(0, &text, "four", 1000, counting));
            text.push_str("four");
        }
        assert!(calls.get() < 40, "{} counts", calls.get());
    }
}
