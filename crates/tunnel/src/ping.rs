//! Liveness of a tunnel: HTTP/2 PING both ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use h2::{Ping, PingPong};
use tokio::time::{Instant, sleep_until, timeout_at};

/// When to ping and when to give up.
#[derive(Clone, Copy, Debug)]
pub struct PingConfig {
    /// Time between pings.
    pub interval: Duration,
    /// Time since the last answer after which the other end counts as dead.
    pub timeout: Duration,
}

impl Default for PingConfig {
    fn default() -> Self {
        // NR14: a vanished node is seen within 6 s.
        Self { interval: Duration::from_secs(2), timeout: Duration::from_secs(6) }
    }
}

/// The last measured round trip and the last sign of life, readable while the tunnel lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoundTrip(Arc<AtomicU64>, Arc<parking_lot::Mutex<Signs>>);

#[derive(Debug, Default)]
struct Signs {
    /// When the ping was sent whose answer is missing.
    owed: Option<Instant>,
    answered: Option<Instant>,
}

impl RoundTrip {
    fn set(&self, time: Duration) {
        // Zero means "not measured yet".
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        self.0.store(us, Ordering::Relaxed);
    }

    fn sent(&self, at: Instant) {
        self.1.lock().owed = Some(at);
    }

    fn answered(&self, at: Instant) {
        *self.1.lock() = Signs { owed: None, answered: Some(at) };
    }

    /// How long the other end has owed an answer to a ping; zero when it owes none.
    pub(crate) fn quiet(&self) -> Duration {
        self.1.lock().owed.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether a ping was answered within the last `span`.
    pub(crate) fn answered_within(&self, span: Duration) -> bool {
        self.1.lock().answered.is_some_and(|at| at.elapsed() <= span)
    }

    pub(crate) fn get(&self) -> Option<Duration> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            us => Some(Duration::from_micros(us)),
        }
    }
}

/// Pings until the other end is silent for too long; then returns. A broken connection is noticed by whoever drives
/// it, so this waits for ever in that case.
pub(crate) async fn watch(mut pings: PingPong, config: PingConfig, round_trip: RoundTrip) {
    let mut last_answer = Instant::now();
    loop {
        let sent = Instant::now();
        round_trip.sent(sent);
        let dead_at = last_answer + config.timeout;
        match timeout_at(dead_at, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {
                last_answer = Instant::now();
                round_trip.set(last_answer - sent);
                round_trip.answered(last_answer);
            }
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
        sleep_until(sent + config.interval).await;
    }
}
