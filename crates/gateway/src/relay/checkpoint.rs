//! Checkpoints of a stream: every 2 s or 256 tokens the count of what was delivered is noted, so that a request
//! whose gateway dies is settled for what the client got, and never for more (MR26).

use std::sync::Arc;
use std::time::Duration;

use cxmpute_market::price::Units;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::delivery::Outlet;
use super::job::Job;
use super::so_far::{SoFar, whole_words};
use crate::meter::Hold;

const EVERY: Duration = Duration::from_secs(2);
const EVERY_PIECES: u64 = 256;

/// When the next checkpoint is due, and the count that is being made for it off the async threads.
#[derive(Debug)]
pub(super) struct Checkpoints {
    last: Instant,
    pieces: u64,
    counting: Option<JoinHandle<Units>>,
}

impl Checkpoints {
    /// The first is due after the usual time.
    pub(super) fn new() -> Self {
        Self { last: Instant::now(), pieces: 0, counting: None }
    }

    /// Looks whether a count is ready to be noted, or due to be made. Never waits for a count.
    pub(super) async fn look(&mut self, job: &Arc<Job>, so_far: &SoFar, outlet: &Outlet, hold: &Hold) {
        if let Some(counting) = self.counting.take_if(|counting| counting.is_finished()) {
            if let Ok(units) = counting.await {
                hold.checkpoint(units);
            }
        }
        let pieces = so_far.longest();
        let due = self.last.elapsed() >= EVERY || pieces.saturating_sub(self.pieces) >= EVERY_PIECES;
        if !due || self.counting.is_some() {
            return;
        }
        self.last = Instant::now();
        self.pieces = pieces;
        // Only what the client's socket took, and of that only whole words: a checkpoint must never exceed what is
        // billed in the end.
        let texts = so_far.billed(|choice| outlet.handed(choice));
        let job = job.clone();
        self.counting = Some(tokio::task::spawn_blocking(move || {
            let texts: Vec<&str> = texts.iter().map(|text| whole_words(text)).collect();
            job.count(None, &texts)
        }));
    }
}
