//! What the writer is asked to do, and the text of the ledger that each of it becomes.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use cxmpute_market::ledger::End;
use cxmpute_store::{Charge, Graduation, LedgerOp, LedgerReply, Note, ResolveHold, Wish};
use cxmpute_wire::{RequestId, Timestamp};
use tokio::sync::oneshot;

use super::allowance::{Chunk, Draw};
use super::hold::{MeterError, Progress};

pub(super) type Reply = oneshot::Sender<Result<LedgerReply, MeterError>>;

/// Something for the writer to do.
pub(super) enum Job {
    /// Admit; when nobody waits for the answer any more, the hold is given back by the second operation.
    Admit(LedgerOp, Reply, Arc<ResolveHold>),
    /// Bind more.
    Extend(LedgerOp, Reply),
    /// Settle or void.
    Resolve(Resolution),
    /// Write the newest note of a running request.
    Note(Arc<Progress>),
    /// Take an allowance.
    Take(Arc<Wish>),
    /// Give a request a hold of its own, if it has none.
    Graduate(Arc<Progress>),
    /// Give back an allowance that no request has a part of.
    Return(Arc<Chunk>, Timestamp),
}

/// The one resolution of a hold. Never lost while the process lives.
pub(super) struct Resolution {
    pub(super) end: Arc<ResolveHold>,
    pub(super) reply: Option<Reply>,
    /// A commit that may have kept it failed: "resolved before" means "resolved by us" then.
    pub(super) uncertain: bool,
    /// The request, unless nobody waits for it.
    progress: Option<Arc<Progress>>,
}

impl Resolution {
    /// Nobody waits for it.
    pub(super) fn giving_back(end: Arc<ResolveHold>, uncertain: bool) -> Self {
        Self { end, reply: None, uncertain, progress: None }
    }

    pub(super) fn draw(&self) -> Option<&Draw> {
        self.progress.as_ref().and_then(|progress| progress.draw.as_ref()).map(|(draw, _)| draw)
    }

    /// The store gets it now. What was withdrawn costs its user nothing: the answer was not delivered, by our fault.
    fn take_up(&mut self) {
        if self.progress.as_ref().is_some_and(|progress| !progress.take_up()) {
            Arc::make_mut(&mut self.end).end = End::GatewayFault;
        }
    }

    /// The store kept nothing of it.
    pub(super) fn put_down(&self) {
        if let Some(progress) = &self.progress {
            progress.put_down();
        }
    }

    /// What ends the request: a charge while the store knows nothing of it, else the end of its hold.
    fn operation(&self) -> LedgerOp {
        match self.draw().filter(|draw| draw.in_memory()) {
            Some(draw) => LedgerOp::Charge(Charge {
                allowance: draw.allowance().clone(),
                end: self.end.clone(),
                repeated: self.uncertain,
            }),
            None => LedgerOp::Resolve(self.end.clone()),
        }
    }
}

impl Job {
    pub(super) fn admit(op: LedgerOp, reply: Reply, give_back: ResolveHold) -> Self {
        Self::Admit(op, reply, Arc::new(give_back))
    }

    pub(super) fn extend(op: LedgerOp, reply: Reply) -> Self {
        Self::Extend(op, reply)
    }

    pub(super) fn resolve(end: ResolveHold, reply: Option<Reply>, progress: &Arc<Progress>) -> Self {
        let progress = Some(progress.clone());
        Self::Resolve(Resolution { end: Arc::new(end), reply, uncertain: false, progress })
    }
}

/// A job with the text that is written for it.
pub(super) enum Prepared {
    Admit(LedgerOp, Reply, Arc<ResolveHold>),
    Extend(LedgerOp, Reply),
    Resolve(Resolution),
    Note(Box<Note>, Arc<Progress>),
    Take(Arc<Wish>),
    Graduate(Arc<Progress>, Graduation),
    Return(Arc<Chunk>, Timestamp),
}

impl Prepared {
    pub(super) fn operation(&self) -> LedgerOp {
        match self {
            Self::Admit(op, ..) | Self::Extend(op, _) => op.clone(),
            Self::Resolve(resolution) => resolution.operation(),
            Self::Note(note, _) => LedgerOp::Note((**note).clone()),
            Self::Take(wish) => LedgerOp::Take(wish.clone()),
            Self::Graduate(_, graduation) => LedgerOp::Graduate(graduation.clone()),
            Self::Return(chunk, now) => LedgerOp::Return(chunk.allowance.clone(), *now),
        }
    }
}

/// Takes the newest state of each note, and drops notes of requests that end in the same batch.
pub(super) fn coalesce(jobs: Vec<Job>) -> Vec<Prepared> {
    let noted = jobs.iter().any(|job| matches!(job, Job::Note(_)));
    let ending: HashSet<RequestId> = jobs
        .iter()
        .filter_map(|job| match job {
            Job::Resolve(resolution) if noted => Some(resolution.end.hold.request_id.clone()),
            _ => None,
        })
        .collect();
    let mut prepared = Vec::with_capacity(jobs.len());
    for job in jobs {
        let job = match job {
            Job::Admit(op, reply, give_back) => Prepared::Admit(op, reply, give_back),
            Job::Extend(op, reply) => Prepared::Extend(op, reply),
            Job::Resolve(mut resolution) => {
                resolution.take_up();
                Prepared::Resolve(resolution)
            }
            Job::Take(wish) => Prepared::Take(wish),
            Job::Return(chunk, now) => Prepared::Return(chunk, now),
            Job::Graduate(progress) => {
                prepared.extend(graduation(&progress));
                continue;
            }
            Job::Note(progress) => {
                // Before the note is read: what changes after this queues it anew.
                progress.queued.store(false, Ordering::Release);
                let note = progress.note.lock().clone();
                if ending.contains(&note.request_id) {
                    continue;
                }
                prepared.extend(graduation(&progress));
                if note.accepted_at.is_none() && note.checkpoint.is_none() {
                    continue;
                }
                Prepared::Note(Box::new(note), progress)
            }
        };
        prepared.push(job);
    }
    prepared
}

/// What gives a request a hold of its own, unless it has one or gets it in this batch.
fn graduation(progress: &Arc<Progress>) -> Option<Prepared> {
    let (draw, hold) = progress.draw.as_ref()?;
    let graduation = Graduation { allowance: draw.allowance().clone(), hold: hold.clone() };
    draw.begin_graduation().then(|| Prepared::Graduate(progress.clone(), graduation))
}
