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

/// The last measured round trip, readable while the tunnel lives.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoundTrip(Arc<AtomicU64>, Arc<parking_lot::Mutex<Option<Instant>>>);

impl RoundTrip {
    fn set(&self, time: Duration) {
        // Zero means "not measured yet".
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
        self.0.store(us, Ordering::Relaxed);
    }

    fn owed(&self, since: Option<Instant>) {
        *self.1.lock() = since;
    }

    /// How long the other end has owed an answer to a ping; zero when it owes none.
    pub(crate) fn quiet(&self) -> Duration {
        self.1.lock().map_or(Duration::ZERO, |since| since.elapsed())
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
        round_trip.owed(Some(sent));
        let dead_at = last_answer + config.timeout;
        match timeout_at(dead_at, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {
                last_answer = Instant::now();
                round_trip.set(last_answer - sent);
                round_trip.owed(None);
            }
            Ok(Err(_)) => std::future::pending().await,
            Err(_) => return,
        }
        sleep_until(sent + config.interval).await;
    }
}
