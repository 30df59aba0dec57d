//! The group-commit writer: one task that makes holds and settlements durable, at once when idle, else with
//! everything that has queued up meanwhile (D3).

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cxmpute_runtime::Tasks;
use cxmpute_store::{BatchError, Db, LedgerOp, LedgerReply};
use cxmpute_wire::RequestId;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Gauges;
use super::allowance::{Allowances, Draw};
use super::hold::{MeterError, Progress};
use super::job::{Job, Prepared, Resolution, coalesce};

/// First and longest pause before settlements are tried again.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(2);
/// Immediate tries after a deadlock or a serialisation failure (MR55).
const TRIES: u32 = 3;
/// After the soft stop the writer ends when nothing has come for this long and no hold is open.
const IDLE_BEFORE_END: Duration = Duration::from_millis(50);

/// While batches are at least so large, commits keep this distance from begin to begin: what a commit costs besides its
/// rows is then shared by more of them. A quiet writer commits at once.
const PACES: [(usize, Duration); 3] =
    [(16, Duration::from_millis(4)), (8, Duration::from_millis(2)), (4, Duration::from_millis(1))];

/// Who accepted a request is written this much later, and not at all when the request has ended by then: most are that
/// short. Without that note, as with it alone, a request whose gateway dies costs its user nothing.
const NOTE_LATER: Duration = Duration::from_millis(20);

/// The writer's state.
pub(super) struct Writer {
    db: Db,
    gauges: Arc<Gauges>,
    allowances: Arc<Allowances>,
    batch: usize,
    queue: mpsc::UnboundedReceiver<Job>,
    /// Settlements that wait for the store to come back.
    waiting: Vec<Resolution>,
    /// Resolutions that the last batch made necessary.
    next: Vec<Resolution>,
    /// Notes to write when their time comes, in its order.
    later: VecDeque<(Instant, Arc<Progress>)>,
    retry: Duration,
    /// Before when the next commit is too soon.
    paced: Option<Instant>,
    /// The store is damaged: nothing is written or acknowledged any more (MR53).
    damaged: bool,
    soft: CancellationToken,
    hard: CancellationToken,
}

impl Writer {
    pub(super) fn new(
        db: Db,
        (gauges, allowances): (Arc<Gauges>, Arc<Allowances>),
        batch: usize,
        queue: mpsc::UnboundedReceiver<Job>,
        tasks: &Tasks,
    ) -> Self {
        let (soft, hard) = (tasks.soft(), tasks.hard());
        Self {
            db,
            gauges,
            allowances,
            batch: batch.max(1),
            queue,
            waiting: Vec::new(),
            next: Vec::new(),
            later: VecDeque::new(),
            retry: RETRY_FIRST,
            paced: None,
            damaged: false,
            soft,
            hard,
        }
    }

    pub(super) async fn run(mut self) {
        while let Some(mut jobs) = self.gather().await {
            jobs.extend(std::mem::take(&mut self.next).into_iter().map(Job::Resolve));
            jobs.extend(std::mem::take(&mut self.waiting).into_iter().map(Job::Resolve));
            let pace = PACES.iter().find(|(crowd, _)| jobs.len() >= *crowd);
            self.paced = pace.map(|(_, pace)| Instant::now() + *pace);
            self.write(jobs).await;
            self.gauges.away.store(!self.waiting.is_empty(), Ordering::Relaxed);
        }
        self.finish().await;
    }

    /// Waits for something to do and takes all of it, up to the size of a batch; `None` when the writer ends.
    async fn gather(&mut self) -> Option<Vec<Job>> {
        let mut jobs = Vec::new();
        if !self.next.is_empty() {
            self.take_queued(&mut jobs);
            return Some(jobs);
        }
        while jobs.is_empty() {
            let due = self.later.front().map(|(due, _)| *due);
            let due = due.into_iter().chain(self.allowances.next_due()).min();
            let allowances = self.allowances.clone();
            tokio::select! {
                biased;
                () = self.hard.cancelled() => return None,
                received = self.queue.recv_many(&mut jobs, self.batch), if self.waiting.is_empty() => {
                    if received == 0 {
                        return None;
                    }
                    jobs = std::mem::take(&mut jobs).into_iter().filter_map(|job| self.sort(job)).collect();
                }
                () = tokio::time::sleep(self.retry), if !self.waiting.is_empty() => {
                    self.take_queued(&mut jobs);
                    return Some(jobs);
                }
                () = until(due), if self.waiting.is_empty() => {}
                () = allowances.fledged.notified(), if self.waiting.is_empty() => {}
                () = idle(&self.soft), if self.waiting.is_empty() => {
                    let returned = self.allowances.close_all();
                    if returned && self.gauges.open.load(Ordering::Relaxed) <= 0 && self.queue.is_empty() {
                        return None;
                    }
                }
            }
            self.take_due(&mut jobs);
        }
        if let Some(paced) = self.paced.take().filter(|_| jobs.len() < self.batch) {
            tokio::select! {
                () = self.hard.cancelled() => {}
                () = tokio::time::sleep_until(paced) => {}
            }
            self.take_queued(&mut jobs);
            self.take_due(&mut jobs);
        }
        Some(jobs)
    }

    /// Puts a note that can wait aside.
    fn sort(&mut self, job: Job) -> Option<Job> {
        match job {
            Job::Note(progress) if progress.can_wait() && !progress.is_in_memory() => {
                // What changes from now on is queued anew.
                progress.queued.store(false, Ordering::Release);
                self.later.push_back((Instant::now() + NOTE_LATER, progress));
                None
            }
            job => Some(job),
        }
    }

    /// Notes that have waited and still have something to say.
    fn take_due(&mut self, jobs: &mut Vec<Job>) {
        let now = Instant::now();
        while self.later.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, progress)) = self.later.pop_front() else { break };
            // A checkpoint that came meanwhile has brought all of it.
            if !progress.has_ended() && progress.can_wait() {
                jobs.push(Job::Note(progress));
            }
        }
        self.allowances.due(now, |progress| {
            if !progress.has_ended() && progress.is_in_memory() {
                jobs.push(Job::Note(progress));
            }
        });
    }

    /// What has queued up, without waiting.
    fn take_queued(&mut self, jobs: &mut Vec<Job>) {
        let room = self.batch.saturating_sub(self.waiting.len() + self.next.len());
        while jobs.len() < room {
            let Ok(job) = self.queue.try_recv() else { break };
            jobs.extend(self.sort(job));
        }
    }

    /// The last try for what is left at a hard stop. What fails now is resolved by recovery at the next start.
    async fn finish(&mut self) {
        self.queue.close();
        let mut jobs: Vec<Job> = std::mem::take(&mut self.waiting).into_iter().map(Job::Resolve).collect();
        jobs.extend(std::mem::take(&mut self.next).into_iter().map(Job::Resolve));
        while let Ok(job) = self.queue.try_recv() {
            jobs.push(job);
        }
        if !jobs.is_empty() {
            self.write(jobs).await;
        }
        let left = self.waiting.len() + self.next.len();
        if left > 0 {
            tracing::error!(left, "settlements are left for the recovery at the next start");
        }
    }

    /// One commit for all jobs; when something in them makes the whole fail, each on its own.
    async fn write(&mut self, jobs: Vec<Job>) {
        if self.damaged {
            // Whoever waits for them hears that the store is away.
            return;
        }
        let admissions = jobs.iter().filter(|job| matches!(job, Job::Admit(..) | Job::Extend(..))).count();
        self.gauges.waiting.fetch_sub(admissions, Ordering::Relaxed);
        let jobs = coalesce(jobs);
        match self.commit(&jobs).await {
            Ok(replies) => self.answer(jobs, &replies),
            Err(BatchError::Undone(error))
                if !error.is_transient() && jobs.len() > 1 && !error.is_fatal() =>
            {
                tracing::error!(%error, jobs = jobs.len(), "a batch failed; its operations are written one by one");
                for job in jobs {
                    if self.damaged {
                        break;
                    }
                    match self.commit(std::slice::from_ref(&job)).await {
                        Ok(replies) => self.answer(vec![job], &replies),
                        Err(error) => self.fail(vec![job], &error).await,
                    }
                }
            }
            Err(error) => self.fail(jobs, &error).await,
        }
    }

    async fn commit(&self, jobs: &[Prepared]) -> Result<Vec<LedgerReply>, BatchError> {
        let ops: Vec<LedgerOp> = jobs.iter().map(Prepared::operation).collect();
        let mut tries = 0;
        loop {
            tries += 1;
            let applied = self.db.apply(&ops).await;
            #[cfg(test)]
            let applied = self.gauges.broken(&ops, applied);
            match applied {
                Ok(replies) => {
                    self.gauges.commits.fetch_add(1, Ordering::Relaxed);
                    self.gauges.ops.fetch_add(ops.len() as u64, Ordering::Relaxed);
                    return Ok(replies);
                }
                Err(BatchError::Undone(error)) if tries < TRIES && error.is_collision() => {}
                Err(error) => {
                    self.gauges.failures.fetch_add(1, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
    }

    fn answer(&mut self, jobs: Vec<Prepared>, replies: &[LedgerReply]) {
        self.retry = RETRY_FIRST;
        for (job, reply) in jobs.into_iter().zip(replies) {
            match job {
                Prepared::Note(..) => {}
                Prepared::Take(wish) => match *reply {
                    LedgerReply::Taken { amount } => self.allowances.install(&wish, amount),
                    _ => self.allowances.refused(&wish),
                },
                Prepared::Return(chunk, _) => self.allowances.returned(&chunk),
                Prepared::Graduate(progress, _) => {
                    let Some((draw, _)) = &progress.draw else { continue };
                    // An allowance that is gone has no money for the request: its end will say so.
                    if *reply == LedgerReply::Done { self.allowances.graduated(draw) } else { draw.stays() }
                }
                Prepared::Extend(_, answer) => {
                    let _ = answer.send(Ok(*reply));
                }
                Prepared::Admit(_, answer, give_back) => {
                    // The caller left while it waited: nobody will resolve the hold but us.
                    if answer.send(Ok(*reply)).is_err() && *reply == LedgerReply::Done {
                        self.gauges.open.fetch_add(1, Ordering::Relaxed);
                        self.next.push(Resolution::giving_back(give_back, false));
                    }
                }
                Prepared::Resolve(resolution) => self.resolved(resolution, *reply),
            }
        }
    }

    fn resolved(&mut self, mut resolution: Resolution, reply: LedgerReply) {
        let reply = match reply {
            LedgerReply::AlreadyResolved(settled) if resolution.uncertain => LedgerReply::Resolved(settled),
            // It was not known whether it has a hold of its own: it has none.
            LedgerReply::NotHeld if resolution.draw().is_some_and(Draw::is_unknown) => {
                if let Some(draw) = resolution.draw() {
                    draw.stays();
                }
                resolution.uncertain = true;
                self.next.push(resolution);
                return;
            }
            // An extension of unknown outcome was kept after all.
            LedgerReply::HeldDiffers { held } if held != resolution.end.held => {
                Arc::make_mut(&mut resolution.end).held = held;
                self.next.push(resolution);
                return;
            }
            other => other,
        };
        if let Some(draw) = resolution.draw() {
            match reply {
                LedgerReply::Resolved(settled) if draw.in_memory() => {
                    self.allowances.ended(draw, settled.cost)
                }
                // What it cost is not known: its part stays out of the allowance until that is given back.
                _ if draw.in_memory() => self.allowances.graduated(draw),
                // A hold of its own of unknown outcome was kept after all.
                _ if draw.is_unknown() => self.allowances.graduated(draw),
                _ => {}
            }
        }
        match reply {
            LedgerReply::Resolved(_) => {
                self.gauges.settlements.fetch_add(1, Ordering::Relaxed);
            }
            // An admission of unknown outcome was not kept: nothing to give back.
            LedgerReply::NotHeld if resolution.uncertain => {}
            other => {
                let request_id = &resolution.end.hold.request_id;
                tracing::error!(%request_id, reply = ?other, "a settlement found its hold in another state");
            }
        }
        self.gauges.open.fetch_sub(1, Ordering::Relaxed);
        if let Some(answer) = resolution.reply.take() {
            let _ = answer.send(Ok(reply));
        }
    }

    /// A batch that the store did not take: admissions are refused, settlements wait for the next try.
    async fn fail(&mut self, jobs: Vec<Prepared>, error: &BatchError) {
        let cause = error.cause();
        if cause.is_fatal() {
            // Going on could acknowledge what the disk did not keep (MR53).
            tracing::error!(error = %cause, "the store is damaged; stopping at once");
            self.damaged = true;
            // In this order: who sees the soft stop sees that it is a hard one.
            self.hard.cancel();
            self.soft.cancel();
            return;
        }
        let unknown = matches!(error, BatchError::Unknown(_));
        let retry = unknown || cause.is_transient();
        tracing::warn!(error = %cause, unknown, jobs = jobs.len(), "the store did not take a batch");
        for job in jobs {
            match job {
                Prepared::Take(wish) if unknown => self.allowances.may_be_taken(&wish),
                Prepared::Take(wish) => self.allowances.refused(&wish),
                Prepared::Return(chunk, _) => self.allowances.not_returned(chunk),
                Prepared::Graduate(progress, _) => {
                    let Some((draw, _)) = &progress.draw else { continue };
                    if unknown {
                        draw.may_have_moved()
                    } else {
                        draw.stays()
                    }
                    self.allowances.watch(&progress);
                }
                Prepared::Note(_, progress) => {
                    // The next note of this request carries the same and more.
                    progress.queued.store(false, Ordering::Release);
                }
                Prepared::Extend(op, answer) => {
                    let reply =
                        if unknown { self.again(op).await } else { Err(MeterError::StoreUnavailable) };
                    let _ = answer.send(reply);
                }
                Prepared::Admit(op, answer, give_back) => {
                    let kept = match op.request_id() {
                        Some(request) if unknown => self.is_kept(request).await,
                        _ => Some(false),
                    };
                    let reply = if kept == Some(true) {
                        Ok(LedgerReply::Done)
                    } else {
                        Err(MeterError::StoreUnavailable)
                    };
                    let told = answer.send(reply).is_ok();
                    if kept.is_none() || (kept == Some(true) && !told) {
                        self.gauges.open.fetch_add(1, Ordering::Relaxed);
                        self.waiting.push(Resolution::giving_back(give_back, true));
                    }
                }
                Prepared::Resolve(mut resolution) if retry => {
                    resolution.uncertain |= unknown;
                    if !resolution.uncertain {
                        resolution.put_down();
                    }
                    self.waiting.push(resolution);
                }
                Prepared::Resolve(mut resolution) => {
                    tracing::error!(request_id = %resolution.end.hold.request_id, error = %cause, "a settlement was refused");
                    if let Some(draw) = resolution.draw().filter(|draw| draw.in_memory() || draw.is_unknown())
                    {
                        self.allowances.graduated(draw);
                    }
                    self.gauges.open.fetch_sub(1, Ordering::Relaxed);
                    if let Some(answer) = resolution.reply.take() {
                        let _ = answer.send(Err(MeterError::Refused));
                    }
                }
            }
        }
        self.retry = (self.retry * 2).min(RETRY_LONGEST);
    }

    /// Repeats an extension of unknown outcome; its step makes that safe.
    async fn again(&self, op: LedgerOp) -> Result<LedgerReply, MeterError> {
        let replies = self.db.apply(&[op]).await.map_err(|_| MeterError::StoreUnavailable)?;
        replies.first().copied().ok_or(MeterError::StoreUnavailable)
    }

    /// Whether an admission of unknown outcome was kept (MR36); `None` when the store does not say.
    async fn is_kept(&self, request: &RequestId) -> Option<bool> {
        self.db.is_admitted(request).await.ok()
    }
}

/// Ends at that moment, or never.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn idle(soft: &CancellationToken) {
    soft.cancelled().await;
    tokio::time::sleep(IDLE_BEFORE_END).await;
}

/// The known-bad variant of gate L6: each earlier attempt of the request is paid like the last one.
#[cfg(feature = "sabotage")]
pub(super) async fn bill_attempts(db: &Db, end: &cxmpute_store::ResolveHold) {
    use cxmpute_market::ledger::{Account, AccountKind, Postings};
    use cxmpute_store::{Entry, EntryKind};
    let Ok(bill) = end.bill() else { return };
    for attempt in end.attempts.iter().rev().skip(1) {
        let lines = [
            (
                Account::of(&end.hold.user_id, AccountKind::UserAvailable),
                cxmpute_wire::MicroCredits(-bill.posted.0),
            ),
            (Account::system(AccountKind::PlatformFee), bill.posted),
        ];
        let Ok(postings) = Postings::new(lines) else { return };
        let entry = Entry {
            kind: EntryKind::Correction,
            key: format!("{}:{}", end.hold.request_id, attempt.attempt),
            request_id: Some(end.hold.request_id.clone()),
            actor: "gateway".to_owned(),
            reason: "attempt".to_owned(),
            postings,
            at: end.now,
        };
        let _ = db.post(&entry).await;
    }
}
