//! How a tunnel ends, and who learns it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use cxmpute_runtime::CancellationToken;
use cxmpute_wire::Code;

/// Time for the last frames (a `closing` message, a GOAWAY) to leave before the connection is dropped.
pub(crate) const FLUSH: Duration = Duration::from_millis(100);

/// Why a tunnel ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// We ended it, for this reason (`epoch_stale`, `node_revoked`, `draining` …).
    Local(Code),
    /// The other end said goodbye.
    Remote,
    /// The connection broke.
    Lost(String),
    /// The other end stopped answering pings.
    Silent,
    /// Our own process stops.
    Stopping,
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CloseReason::Local(code) => write!(f, "closed here: {code}"),
            CloseReason::Remote => f.write_str("closed by the other end"),
            CloseReason::Lost(error) => write!(f, "connection lost: {error}"),
            CloseReason::Silent => f.write_str("no answer to pings"),
            CloseReason::Stopping => f.write_str("this process stops"),
        }
    }
}

/// The end of one tunnel, shared by everyone who may cause it or wait for it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ending {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    asked: OnceLock<CloseReason>,
    ask: CancellationToken,
    drain: CancellationToken,
    reason: OnceLock<CloseReason>,
    closed: CancellationToken,
}

impl Ending {
    /// Asks the task that owns the connection to end it. The first reason wins.
    pub(crate) fn ask(&self, reason: CloseReason) {
        let _ = self.inner.asked.set(reason);
        self.inner.ask.cancel();
    }

    pub(crate) async fn asked(&self) -> CloseReason {
        self.inner.ask.cancelled().await;
        self.inner.asked.get().cloned().unwrap_or(CloseReason::Remote)
    }

    pub(crate) fn ask_drain(&self) {
        self.inner.drain.cancel();
    }

    pub(crate) async fn drain_asked(&self) {
        self.inner.drain.cancelled().await;
    }

    /// Publishes the end. The first reason wins.
    pub(crate) fn finish(&self, reason: CloseReason) {
        let _ = self.inner.reason.set(reason);
        self.inner.closed.cancel();
    }

    pub(crate) fn reason(&self) -> Option<CloseReason> {
        self.inner.reason.get().cloned()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.inner.closed.is_cancelled()
    }

    pub(crate) async fn closed(&self) -> CloseReason {
        self.inner.closed.cancelled().await;
        self.reason().unwrap_or(CloseReason::Remote)
    }
}

/// Makes sure that an end is published even when the task that owns the connection is dropped.
pub(crate) struct FinishOnDrop(pub(crate) Ending);

impl Drop for FinishOnDrop {
    fn drop(&mut self) {
        self.0.finish(CloseReason::Stopping);
    }
}
