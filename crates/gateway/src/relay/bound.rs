//! The bound on the output of a choice by our own count, while the answer comes: a node that packs many tokens into one
//! event is stopped where an honest one would have ended (P1), and nothing is sent on that the hold does not cover
//! (MR14, MR15). Where characters are priced, they are what is counted.

use super::admission::SLICE;
use super::job::Job;
use super::so_far::{SLACK, SoFar};

/// How far each choice has been counted.
#[derive(Debug, Default)]
pub(super) struct Bound {
    choices: Vec<Counted>,
}

/// Never fewer than the true count: a text that is cut in two has at least as many tokens as the whole.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    bytes: usize,
    units: u64,
}

/// What the hold of a request covers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cover {
    /// Output tokens per choice.
    pub tokens: u64,
    /// It could not be extended any more.
    pub exhausted: bool,
}

impl Cover {
    /// So many tokens more per choice are to be bound before a choice has `used` tokens: a slice when four fifths are
    /// used (MR14), and more where one piece brings more.
    fn missing(&self, used: u64, limit: u64) -> Option<u64> {
        if self.exhausted || self.tokens >= limit || used.saturating_mul(10) < self.tokens.saturating_mul(8) {
            return None;
        }
        let wanted = used.saturating_add(used / 4).saturating_sub(self.tokens);
        Some(wanted.max(SLICE).min(limit - self.tokens))
    }
}

impl Bound {
    /// Nothing is counted yet.
    pub fn new(choices: usize) -> Self {
        Self { choices: vec![Counted::default(); choices] }
    }

    /// Whether a choice would have more tokens than it was asked for with `more` (P1). What comes to more characters
    /// may still be so many tokens.
    pub fn exceeded(&mut self, job: &Job, so_far: &SoFar, choice: usize, more: &str) -> bool {
        job.counter.is_some() && self.beyond_limit(job, so_far, choice, more)
    }

    fn beyond_limit(&mut self, job: &Job, so_far: &SoFar, choice: usize, more: &str) -> bool {
        let most = job.limit.saturating_add(SLACK).saturating_mul(job.per_token());
        self.over(choice, so_far.text(choice), more, most, |text| job.count_output(text)).is_some()
    }

    /// Sees to it that the hold covers a choice with `more` before that is sent on: `extend` binds so many tokens more
    /// per choice, where the account can pay for them. False when `more` must not be sent on.
    pub async fn cover<F: Future<Output = bool>>(
        &mut self,
        job: &Job,
        so_far: &SoFar,
        (choice, more): (usize, &str),
        cover: &mut Cover,
        extend: impl FnOnce(u64) -> F,
    ) -> bool {
        if job.counter.is_none() && self.beyond_limit(job, so_far, choice, more) {
            return false;
        }
        let (text, per_token) = (so_far.text(choice), job.per_token());
        let count = |text: &str| job.count_output(text);
        if cover.tokens < job.limit && !cover.exhausted {
            let early = cover.tokens.saturating_mul(per_token) / 10 * 8;
            let units = self.over(choice, text, more, early, count).unwrap_or(0);
            let used = units.div_ceil(per_token).max(so_far.longest().saturating_add(1));
            if let Some(missing) = cover.missing(used, job.limit) {
                if extend(missing).await {
                    cover.tokens += missing;
                } else {
                    cover.exhausted = true;
                }
            }
        }
        let most = cover.tokens.saturating_mul(per_token);
        !cover.exhausted || self.over(choice, text, more, most, count).is_none()
    }

    /// The units of `so_far` and `more` together, if they are more than `most`. A token has at least one byte, so most
    /// texts are not counted at all, and a long one only now and then.
    fn over(
        &mut self,
        choice: usize,
        so_far: &str,
        more: &str,
        most: u64,
        count: impl Fn(&str) -> u64,
    ) -> Option<u64> {
        let counted = &mut self.choices[choice];
        let bytes = so_far.len() + more.len();
        if counted.units.saturating_add((bytes - counted.bytes) as u64) <= most {
            return None;
        }
        if counted.bytes < bytes {
            // What was counted ends between two pieces: before `more`, or behind it.
            counted.units += count(&[so_far.get(counted.bytes..).unwrap_or_default(), more].concat());
            counted.bytes = bytes;
        }
        if counted.units <= most {
            return None;
        }
        counted.units = count(&[so_far, more].concat());
        Some(counted.units).filter(|units| *units > most)
    }
}

#[cfg(test)]
mod tests;
