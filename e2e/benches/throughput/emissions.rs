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
    /// Makes room for so many more streams; gives the number of the first. Senders of former streams may not have noticed
    /// yet that nobody listens, so their numbers are never used again.
    pub fn begin(&self, streams: usize) -> usize {
        let mut all = self.streams.lock();
        let first = all.len();
        all.resize_with(first + streams, Vec::new);
        first
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
