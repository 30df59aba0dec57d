//! What one key or account has used lately.

use std::sync::Arc;

use cxmpute_market::limit::{Bucket, Rate, Slots};
use cxmpute_store::Limits;
use parking_lot::{Mutex, MutexGuard};

/// Buckets and slots of one subject.
#[derive(Debug, Default)]
pub(super) struct Tally(Mutex<State>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) requests: Bucket,
    pub(super) tokens: Bucket,
    pub(super) slots: Slots,
}

impl Tally {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }
}

/// The limits of a subject as this replica keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    pub(super) requests: Option<Rate>,
    pub(super) tokens: Option<Rate>,
    pub(super) concurrent: Option<u64>,
}

impl Bounds {
    pub(super) fn of(limits: &Limits, replicas: u64) -> Self {
        let share = |rate: Option<u64>| rate.map(|rate| Rate::per_minute(rate).shared_by(replicas));
        Self {
            requests: share(limits.requests_per_minute),
            tokens: share(limits.tokens_per_minute),
            concurrent: limits.concurrent.map(|most| (most / replicas.max(1)).max(1)),
        }
    }

    pub(super) fn any(&self) -> bool {
        self.requests.is_some() || self.tokens.is_some() || self.concurrent.is_some()
    }
}

/// A tally with the limits that hold for it.
#[derive(Debug)]
pub(super) struct Subject {
    pub(super) tally: Arc<Tally>,
    pub(super) bounds: Bounds,
    /// For people.
    pub(super) name: &'static str,
}

impl Subject {
    pub(super) fn new(tally: Arc<Tally>, bounds: Bounds, name: &'static str) -> Self {
        Self { tally, bounds, name }
    }
}
