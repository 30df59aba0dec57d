//! Checkpoints of a stream: every 2 s or 256 tokens the count of what was delivered is noted, so that a request
//! whose gateway dies is settled for what the client got, and never for more (MR26).

use std::sync::Arc;
use std::time::Duration;

use cxmpute_market::price::Units;
use cxmpute_wire::Tokens;
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
    noted: Noted,
    counting: Option<JoinHandle<Noted>>,
}

/// What was counted so far; each count goes on where the last one ended, so that a long stream is not counted again
/// and again.
#[derive(Debug, Clone, Default)]
struct Noted {
    prompt: Option<Tokens>,
    completion: u64,
    characters: u64,
    /// Counted bytes of each choice.
    upto: Vec<usize>,
}

impl Checkpoints {
    /// The first is due after the usual time. `prompt` is the count where it is known.
    pub(super) fn new(choices: usize, prompt: Option<Tokens>) -> Self {
        let noted = Noted { prompt, upto: vec![0; choices], ..Noted::default() };
        Self { last: Instant::now(), pieces: 0, noted, counting: None }
    }

    /// The prompt's count, where it is known by now.
    pub(super) fn prompt(&self) -> Option<Tokens> {
        self.noted.prompt
    }

    /// Another attempt begins: nothing of its text was counted.
    pub(super) fn restart(&mut self) {
        let choices = self.noted.upto.len();
        *self = Self::new(choices, self.noted.prompt);
    }

    /// Looks whether a count is ready to be noted, or due to be made. Never waits for a count.
    pub(super) async fn look(&mut self, job: &Arc<Job>, so_far: &SoFar, outlet: &Outlet, hold: &Hold) {
        if let Some(counting) = self.counting.take_if(|counting| counting.is_finished())
            && let Ok(noted) = counting.await
        {
            self.noted = noted;
            hold.checkpoint(self.noted.units(job));
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
        let segments: Vec<String> = self
            .noted
            .upto
            .iter()
            .enumerate()
            .map(|(choice, from)| {
                whole_words(so_far.segment(choice, *from, outlet.handed(choice))).to_owned()
            })
            .collect();
        if segments.iter().all(String::is_empty) {
            return;
        }
        let (job, mut noted) = (job.clone(), self.noted.clone());
        self.counting = Some(tokio::task::spawn_blocking(move || {
            noted.add(&job, &segments);
            noted
        }));
    }
}

impl Noted {
    fn add(&mut self, job: &Job, segments: &[String]) {
        if job.counter.is_some() && self.prompt.is_none() {
            self.prompt = Some(job.count_prompt().unwrap_or(Tokens::ZERO));
        }
        for (segment, upto) in segments.iter().zip(&mut self.upto) {
            *upto += segment.len();
            self.characters += segment.chars().count() as u64;
            if let Some(counter) = &job.counter {
                // Some vocabularies write a mark before every text; in the middle of a text there is none.
                self.completion += counter.count_text(segment).0.saturating_sub(1);
            }
        }
    }

    fn units(&self, job: &Job) -> Units {
        if job.counter.is_some() {
            return Units::chat(self.prompt.unwrap_or(Tokens::ZERO), Tokens(self.completion));
        }
        Units { characters: job.prompt_characters() + self.characters, ..Units::default() }
    }
}
