//! `x-ratelimit-*`: OpenAI's names and formats. Of key and account the one with less left speaks.

use cxmpute_market::limit::{Bucket, Rate, print_reset};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::permit::Standing;
use super::tally::{State, Subject};

/// The headers, first those of requests, then those of tokens; each limit, remaining, reset.
pub const HEADERS: [HeaderName; 6] = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

impl Standing {
    /// Writes what is left at this moment. Nothing where nothing is limited.
    pub fn print(&self, headers: &mut HeaderMap) {
        /// A rate of a subject, and how much of it is used.
        type Kind = (fn(&Subject) -> Option<Rate>, fn(&State) -> Bucket);
        let kinds: [Kind; 2] = [
            (|subject| subject.bounds.requests, |state| state.requests),
            (|subject| subject.bounds.tokens, |state| state.tokens),
        ];
        let now = self.clock.mono();
        for (at, (rate, bucket)) in kinds.into_iter().enumerate() {
            let rows = self.subjects().filter_map(|subject| {
                let rate = rate(subject)?;
                let bucket = bucket(&subject.tally.lock());
                Some((bucket.left(rate, now), rate, bucket))
            });
            let Some((left, rate, bucket)) = rows.min_by_key(|(left, ..)| *left) else { continue };
            let [limit, remaining, reset] = [&HEADERS[at * 3], &HEADERS[at * 3 + 1], &HEADERS[at * 3 + 2]];
            headers.insert(limit, HeaderValue::from(rate.get()));
            headers.insert(remaining, HeaderValue::from(left));
            if let Ok(value) = HeaderValue::from_str(&print_reset(bucket.until_full(rate, now))) {
                headers.insert(reset, value);
            }
        }
    }
}
