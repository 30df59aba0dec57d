//! When the events of numbered streams were sent, so that whoever receives them can tell how long they were on the way.
//! Sender and receiver are tasks of this one process and read the same clock.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The moments of all streams.
#[derive(Debug, Default)]
pub struct Emissions {
    streams: Mutex<Vec<Vec<Instant>>>,
}

impl Emissions {
    /// Forgets everything; from now on there are so many streams.
    pub fn begin(&self, streams: usize) {
        *self.streams.lock() = vec![Vec::new(); streams];
    }

    /// The next event of a stream is being sent.
    pub fn note(&self, stream: Option<usize>) {
        let Some(stream) = stream else { return };
        if let Some(moments) = self.streams.lock().get_mut(stream) {
            moments.push(Instant::now());
        }
    }

    /// How long ago event number `event` of a stream was sent; `None` when it never was.
    pub fn age(&self, stream: usize, event: usize, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(*self.streams.lock().get(stream)?.get(event)?))
    }
}
