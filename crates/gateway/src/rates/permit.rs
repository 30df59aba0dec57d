//! A request's place within the limits, as a guard: its slot comes back exactly once and its tokens are put right, also
//! when the client leaves or a task panics.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cxmpute_market::limit::{Bucket, Rate};
use cxmpute_runtime::Clock;
use cxmpute_wire::Code;

use super::seconds;
use super::tally::{State, Subject};
use crate::error::{ApiError, ApiResult};

/// How long a client waits at least before it asks for a slot again; nobody knows when one comes back.
const SLOT_WAIT: Duration = Duration::from_secs(1);

/// Where a key and its account stand; nothing is taken by looking.
#[derive(Debug)]
pub struct Standing {
    pub(super) clock: Clock,
    /// Absent where nothing is limited.
    pub(super) key: Option<Subject>,
    pub(super) account: Option<Subject>,
}

/// One of the two kinds of buckets.
struct Kind {
    what: &'static str,
    rate: fn(&Subject) -> Option<Rate>,
    bucket: fn(&mut State) -> &mut Bucket,
}

const REQUESTS: Kind =
    Kind { what: "requests", rate: |subject| subject.bounds.requests, bucket: |state| &mut state.requests };
const TOKENS: Kind =
    Kind { what: "tokens", rate: |subject| subject.bounds.tokens, bucket: |state| &mut state.tokens };

impl Standing {
    pub(super) fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.key.iter().chain(&self.account)
    }

    /// Takes one request of key and account, or of neither.
    pub(super) fn take_request(&self) -> ApiResult<()> {
        self.take(&REQUESTS, 1)
    }

    fn take(&self, kind: &Kind, amount: u64) -> ApiResult<()> {
        let now = self.clock.mono();
        for (at, subject) in self.subjects().enumerate() {
            let Some(rate) = (kind.rate)(subject) else { continue };
            let taken = (kind.bucket)(&mut subject.tally.lock()).take(rate, amount, now);
            if let Err(wait) = taken {
                self.correct(kind, amount, 0, at);
                return Err(rate_limited(kind, subject, rate, wait));
            }
        }
        Ok(())
    }

    /// Corrects what the first `subjects` took.
    fn correct(&self, kind: &Kind, taken: u64, used: u64, subjects: usize) {
        let now = self.clock.mono();
        for subject in self.subjects().take(subjects) {
            if let Some(rate) = (kind.rate)(subject) {
                (kind.bucket)(&mut subject.tally.lock()).correct(rate, taken, used, now);
            }
        }
    }

    fn take_slot(&self) -> ApiResult<()> {
        for (at, subject) in self.subjects().enumerate() {
            if !subject.tally.lock().slots.take(subject.bounds.concurrent) {
                self.give_slots_back(at);
                return Err(concurrency_limited(subject));
            }
        }
        Ok(())
    }

    fn give_slots_back(&self, subjects: usize) {
        for subject in self.subjects().take(subjects) {
            subject.tally.lock().slots.give_back();
        }
    }
}

/// A running request for paid work.
#[derive(Debug)]
pub struct Permit {
    standing: Arc<Standing>,
    reserved: AtomicU64,
    used: AtomicU64,
}

impl Permit {
    /// Takes a slot and a request.
    pub(super) fn take(standing: Arc<Standing>) -> ApiResult<Self> {
        standing.take_slot()?;
        // From here on dropping it gives the slot back.
        let permit = Self { standing, reserved: AtomicU64::new(0), used: AtomicU64::new(0) };
        permit.standing.take_request()?;
        Ok(permit)
    }

    /// Reserves the tokens that the request will probably need. More than once adds up.
    ///
    /// # Errors
    /// 429: the key or the account has used its tokens of this minute.
    pub fn reserve_tokens(&self, estimate: u64) -> ApiResult<()> {
        self.standing.take(&TOKENS, estimate)?;
        self.reserved.fetch_add(estimate, Ordering::Relaxed);
        Ok(())
    }

    /// Says what was really used; it counts when the permit ends. Without a word nothing was.
    pub fn use_tokens(&self, tokens: u64) {
        self.used.store(tokens, Ordering::Relaxed);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.standing.give_slots_back(usize::MAX);
        let (reserved, used) = (self.reserved.load(Ordering::Relaxed), self.used.load(Ordering::Relaxed));
        if reserved > 0 || used > 0 {
            self.standing.correct(&TOKENS, reserved, used, usize::MAX);
        }
    }
}

fn rate_limited(kind: &Kind, subject: &Subject, rate: Rate, wait: Duration) -> ApiError {
    metrics::counter!("cxmpute_limited_total", "limit" => kind.what).increment(1);
    let message = format!(
        "This {} has used its {} {} per minute; wait as long as `Retry-After` says.",
        subject.name,
        rate.get(),
        kind.what
    );
    ApiError::new(Code::RateLimited, message).retry_after(seconds(wait))
}

fn concurrency_limited(subject: &Subject) -> ApiError {
    metrics::counter!("cxmpute_limited_total", "limit" => "concurrent").increment(1);
    let most = subject.bounds.concurrent.unwrap_or(0);
    let message =
        format!("This {} has {most} requests running, as many as it may; wait until one ends.", subject.name);
    ApiError::new(Code::ConcurrencyLimited, message).retry_after(seconds(SLOT_WAIT))
}
