//! Whether files may be fetched now: the owner's day has so many bytes, and a network may cost by the byte. What is being
//! fetched stops where the gate closes, and goes on at that byte when it opens.

use std::sync::atomic::{AtomicU64, Ordering};

use cxmpute_wire::Bytes;
use tokio::sync::watch;

/// Why nothing is fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The day's transfers are used up.
    TransferUsedUp,
    /// The network is metered.
    Metered,
    /// Nobody knows yet whether it is: nothing is fetched on a guess.
    Asking,
}

impl Wait {
    /// One sentence for the owner.
    #[must_use]
    pub const fn sentence(self) -> &'static str {
        match self {
            Self::TransferUsedUp => {
                "it waits: the day's transfers are used up (owner.caps.daily_transfer_mib); a day begins at 00:00 UTC"
            }
            Self::Asking => {
                "it waits until it is known whether the network is metered (owner.metered_downloads)"
            }
            Self::Metered => "it waits: the network is metered (owner.metered_downloads = true lets it come)",
        }
    }
}

/// The gate of everything that the node fetches. It is open until somebody closes it.
#[derive(Debug)]
pub struct Gate {
    wait: watch::Sender<Option<Wait>>,
    /// Bytes that may still come.
    left: AtomicU64,
    /// Bytes that came and that nobody has counted yet.
    came: AtomicU64,
}

impl Default for Gate {
    fn default() -> Self {
        Self { wait: watch::Sender::new(None), left: AtomicU64::new(u64::MAX), came: AtomicU64::new(0) }
    }
}

impl Gate {
    /// Closes it, or opens it for so many bytes; `None` is without end.
    pub fn set(&self, wait: Option<Wait>, left: Option<Bytes>) {
        self.left.store(left.map_or(u64::MAX, |left| left.0), Ordering::Relaxed);
        self.turn(wait);
    }

    fn turn(&self, wait: Option<Wait>) {
        self.wait.send_if_modified(|now| std::mem::replace(now, wait) != wait);
    }

    /// Notes bytes that came; whether more may come.
    pub fn count(&self, bytes: u64) -> bool {
        self.came.fetch_add(bytes, Ordering::Relaxed);
        let less = |left: u64| (left < u64::MAX).then(|| left.saturating_sub(bytes));
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        if before.is_ok_and(|before| before <= bytes) {
            self.turn(Some(Wait::TransferUsedUp));
        }
        self.waits().is_none()
    }

    /// Bytes that were not taken from here yet.
    #[must_use]
    pub const fn came(&self) -> &AtomicU64 {
        &self.came
    }

    /// Why nothing is fetched now.
    #[must_use]
    pub fn waits(&self) -> Option<Wait> {
        *self.wait.borrow()
    }

    /// Returns when it is open.
    pub async fn opened(&self) {
        // The sender lives as long as this borrow.
        let _ = self.wait.subscribe().wait_for(Option::is_none).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn so_many_bytes_come_and_then_it_waits_for_another_day() {
        let gate = Gate::default();
        assert!(gate.count(u64::MAX / 2) && gate.waits().is_none(), "nobody set a bound");
        gate.came().store(0, Ordering::Relaxed);
        gate.set(None, Some(Bytes(10)));
        assert!(gate.count(9));
        assert!(!gate.count(1), "this was the last one");
        assert_eq!((gate.waits(), gate.came().load(Ordering::Relaxed)), (Some(Wait::TransferUsedUp), 10));
        assert!(!gate.count(5), "what was on its way still counts");
        let opened = gate.opened();
        tokio::pin!(opened);
        assert!(futures_util::poll!(&mut opened).is_pending());
        gate.set(Some(Wait::Metered), None);
        assert!(futures_util::poll!(&mut opened).is_pending());
        gate.set(None, Some(Bytes(3)));
        assert!(futures_util::poll!(&mut opened).is_ready());
        assert!(gate.count(2));
    }
}
