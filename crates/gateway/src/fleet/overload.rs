//! How busy this process is, so that it can say no while saying no is still cheap (GR34, GR36).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cxmpute_market::queue::Class;
use cxmpute_market::shed::{Bounds, Load, Overload, overload};
use cxmpute_runtime::CancellationToken;
use tokio::time::Instant;

use super::registry::Fleet;

/// How often the event loops are asked.
const ASK: Duration = Duration::from_millis(100);
/// A single late answer is a hiccup of the machine; only when this many in a row are late is it load.
const IN_A_ROW: usize = 5;

/// The lateness of the process's own timers, in milliseconds: the least of the last few samples.
#[derive(Debug, Default)]
pub(super) struct Lag(AtomicU64);

impl Lag {
    pub(super) fn get(&self) -> Duration {
        Duration::from_millis(self.0.load(Ordering::Relaxed))
    }

    /// Measures until the process stops.
    pub(super) async fn measure(fleet: Fleet, soft: CancellationToken) {
        let mut samples = [0u64; IN_A_ROW];
        let mut at = 0;
        loop {
            let due = Instant::now() + ASK;
            tokio::select! {
                () = soft.cancelled() => return,
                () = tokio::time::sleep_until(due) => {}
            }
            samples[at] = u64::try_from(due.elapsed().as_millis()).unwrap_or(u64::MAX);
            at = (at + 1) % IN_A_ROW;
            let lag = samples.iter().copied().min().unwrap_or(0);
            fleet.lag().0.store(lag, Ordering::Relaxed);
            metrics::gauge!("cxmpute_loop_lag_seconds").set(Duration::from_millis(lag).as_secs_f64());
        }
    }
}

impl Fleet {
    /// Whether a new request of this class must be refused because the process itself has too much to do.
    /// `admissions` is how many wait for the store.
    #[must_use]
    pub fn overload(&self, admissions: usize, class: Class) -> Option<Overload> {
        let relay = &self.parts().relay;
        let load = Load { running: self.running(), admissions, lag: self.lag().get() };
        let bounds = Bounds {
            running: relay.running_cap,
            admissions: relay.admissions_cap,
            lag: Duration::from_millis(relay.lag_ms),
        };
        let found = overload(&load, &bounds, class);
        if let Some(reason) = found {
            metrics::counter!("cxmpute_shed_total", "reason" => reason.label()).increment(1);
        }
        found
    }
}
