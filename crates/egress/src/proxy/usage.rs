//! What one proxy has let through, and how much more it lets.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::ProxyLimits;
use crate::connect::ConnectError;
use crate::judge::Target;

/// Refusals that are remembered word by word.
const REFUSALS_KEPT: usize = 32;

/// What went through one proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Connections to the outside.
    pub connections: u32,
    /// Bytes in both directions.
    pub bytes: u64,
    /// What was refused, the first ones.
    pub refused: Vec<RefusedTarget>,
}

/// Something a browser wanted and did not get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedTarget {
    /// Host and port as asked for.
    pub authority: String,
    /// The code of the refusal.
    pub code: &'static str,
}

#[derive(Debug)]
pub(super) struct Counter {
    pub limits: ProxyLimits,
    connections: AtomicU32,
    bytes: AtomicU64,
    refused: Mutex<Vec<RefusedTarget>>,
}

impl Counter {
    pub fn new(limits: ProxyLimits) -> Self {
        Self { limits, connections: AtomicU32::new(0), bytes: AtomicU64::new(0), refused: Mutex::default() }
    }

    pub fn usage(&self) -> Usage {
        Usage {
            connections: self.connections.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            refused: self.refused.lock().clone(),
        }
    }

    /// Takes one connection; `false` when there are none left, or no bytes.
    pub fn take_connection(&self) -> bool {
        let more = |taken: u32| (taken < self.limits.connections).then_some(taken + 1);
        self.bytes.load(Ordering::Relaxed) < self.limits.bytes
            && self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Counts bytes of a connection that has had `before`; `false` when it must end.
    pub fn take_bytes(&self, before: &mut u64, count: usize) -> bool {
        let count = count as u64;
        *before += count;
        let all = self.bytes.fetch_add(count, Ordering::Relaxed) + count;
        *before <= self.limits.connection_bytes && all <= self.limits.bytes
    }

    pub fn note_refusal(&self, authority: &str, error: &ConnectError) {
        let mut refused = self.refused.lock();
        if matches!(error, ConnectError::Refused(_)) && refused.len() < REFUSALS_KEPT {
            refused
                .push(RefusedTarget { authority: authority.chars().take(300).collect(), code: error.code() });
        }
    }

    /// The same for a target.
    pub fn note(&self, target: &Target, error: &ConnectError) {
        self.note_refusal(&target.authority(), error);
    }
}
