//! Allowances in memory (DESIGN D4): money that this replica took beforehand for a busy key, out of which its requests
//! are admitted without a write. What an allowance has is a row of the store; what is free of it is known here alone.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use cxmpute_runtime::{Clock, random};
use cxmpute_store::{Allowance, Replica, Wish};
use cxmpute_wire::{KeyId, MicroCredits, UserId};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::hold::Progress;
use super::job::Job;

/// The spend that an allowance is to cover.
const SPAN: Duration = Duration::from_secs(2);
/// Unused for so long, it goes back; and none gets older, so that limits per day hold to so much.
const LIFE: Duration = Duration::from_secs(10);
/// After a refusal or a recall none is asked for in this time: what there is goes to requests one by one.
const PAUSE: Duration = Duration::from_secs(2);
/// A request that lasts longer than this gets a hold of its own, where its checkpoints are written. Long before the first
/// checkpoint is due, so that a crash finds what it would have found; later than most requests of a busy gateway end.
const GRADUATES_AFTER: Duration = Duration::from_millis(200);
/// A refusal for lack of money may be so old when it is asked whether money has come back since.
const JUST_NOW: Duration = Duration::from_secs(5);
/// An allowance for fewer requests than this costs more than it saves.
const FEWEST: i64 = 8;

/// Where the money of a request is.
const IN_MEMORY: u8 = 0;
const GRADUATING: u8 = 1;
const OWN_ROW: u8 = 2;
const UNKNOWN: u8 = 3;

/// All allowances of this process.
pub(super) struct Allowances {
    clock: Clock,
    /// Requests of one key within [`SPAN`] from which on an allowance is worth its rows; 0 for never.
    busy: u32,
    replica: Arc<str>,
    epoch: i64,
    pools: Mutex<HashMap<KeyId, Pool>>,
    /// Requests that were admitted out of an allowance, oldest first.
    young: Mutex<VecDeque<(Instant, Arc<Progress>)>>,
    /// Set when requests of a recalled allowance are among them.
    hurry: AtomicBool,
    /// Tells the writer that `young` is not empty any more, or that some of them must not wait.
    pub(super) fledged: Notify,
    /// Weak, because the writer has a part in this.
    jobs: mpsc::WeakUnboundedSender<Job>,
    /// Allowances that the store did not take back when it was asked.
    unreturned: Mutex<Vec<Arc<Chunk>>>,
    /// Allowances that the store knows and were not given back.
    taken: AtomicUsize,
    /// How many each account has: asked for and not given back. For a while also that it has none any more.
    accounts: Mutex<HashMap<UserId, Out>>,
    closing: AtomicBool,
    born: Instant,
    /// When the lease of this process ends, in milliseconds after `born`: from then on others may give back what it took.
    lease: AtomicU64,
}

/// Allowances of an account, and when that last changed.
struct Out {
    number: usize,
    changed: Instant,
}

/// What is known of a key.
struct Pool {
    user: UserId,
    chunk: Option<Arc<Chunk>>,
    asked: bool,
    not_before: Option<Instant>,
    /// Requests of the running span and of the one before.
    spans: [Seen; 2],
    since: Instant,
}

#[derive(Clone, Copy, Default)]
struct Seen {
    requests: u32,
    bound: i64,
}

/// One allowance.
pub(super) struct Chunk {
    pub(super) allowance: Arc<Allowance>,
    born: Instant,
    state: Mutex<Left>,
}

struct Left {
    free: i64,
    running: usize,
    closed: bool,
    used: Instant,
}

/// A request's part of an allowance.
pub(super) struct Draw {
    chunk: Arc<Chunk>,
    amount: MicroCredits,
    place: AtomicU8,
}

impl Draw {
    /// The allowance.
    pub(super) fn allowance(&self) -> &Arc<Allowance> {
        &self.chunk.allowance
    }

    /// Whether the store knows nothing of the request.
    pub(super) fn in_memory(&self) -> bool {
        self.place.load(Ordering::Acquire) == IN_MEMORY
    }

    /// Whether it is not known where the money is.
    pub(super) fn is_unknown(&self) -> bool {
        self.place.load(Ordering::Acquire) == UNKNOWN
    }

    /// Claims the way to a hold of its own; false when somebody is on it or it is done.
    pub(super) fn begin_graduation(&self) -> bool {
        self.place.compare_exchange(IN_MEMORY, GRADUATING, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// The store did not move it.
    pub(super) fn stays(&self) {
        self.place.store(IN_MEMORY, Ordering::Release);
    }

    /// Nobody knows whether the store moved it.
    pub(super) fn may_have_moved(&self) {
        self.place.store(UNKNOWN, Ordering::Release);
    }

    /// The request has a hold of its own: its part is out of the allowance.
    fn moved(&self) {
        self.place.store(OWN_ROW, Ordering::Release);
    }
}

impl Chunk {
    fn new(allowance: Arc<Allowance>, free: i64, closed: bool) -> Arc<Self> {
        let now = Instant::now();
        let state = Mutex::new(Left { free, running: 0, closed, used: now });
        Arc::new(Self { allowance, born: now, state })
    }

    fn draw(self: &Arc<Self>, amount: MicroCredits, now: Instant) -> Option<Draw> {
        let mut left = self.state.lock();
        if left.closed || left.free < amount.0 {
            return None;
        }
        left.free -= amount.0;
        left.running += 1;
        left.used = now;
        Some(Draw { chunk: self.clone(), amount, place: AtomicU8::new(IN_MEMORY) })
    }

    /// Puts back what a request did not need; true when the allowance can be given back now.
    fn put_back(&self, amount: i64) -> bool {
        let mut left = self.state.lock();
        left.free += amount;
        left.running -= 1;
        left.closed && left.running == 0
    }

    /// Nothing is drawn any more; true when it can be given back now.
    fn close(&self) -> bool {
        let mut left = self.state.lock();
        !std::mem::replace(&mut left.closed, true) && left.running == 0
    }

    fn is_stale(&self, now: Instant) -> bool {
        now.duration_since(self.state.lock().used) >= LIFE
    }
}

impl Pool {
    fn new(user: UserId, now: Instant) -> Self {
        let spans = [Seen::default(); 2];
        Self { user, chunk: None, asked: false, not_before: None, spans, since: now }
    }

    fn see(&mut self, amount: MicroCredits, now: Instant) {
        let past = now.duration_since(self.since);
        if past >= SPAN {
            let before = if past >= SPAN * 2 { Seen::default() } else { self.spans[0] };
            (self.spans, self.since) = ([Seen::default(), before], now);
        }
        let [current, _] = &mut self.spans;
        current.requests = current.requests.saturating_add(1);
        current.bound = current.bound.saturating_add(amount.0.max(0));
    }

    fn most(&self) -> Seen {
        let [one, other] = self.spans;
        Seen { requests: one.requests.max(other.requests), bound: one.bound.max(other.bound) }
    }

    fn may_ask(&self, busy: u32, now: Instant) -> bool {
        busy > 0
            && !self.asked
            && self.most().requests >= busy
            && self.not_before.is_none_or(|moment| moment <= now)
    }
}

impl Allowances {
    pub(super) fn new(
        clock: &Clock,
        busy: u32,
        replica: &Replica,
        jobs: mpsc::WeakUnboundedSender<Job>,
    ) -> Arc<Self> {
        Arc::new(Self {
            clock: clock.clone(),
            busy,
            replica: replica.id.as_str().into(),
            epoch: replica.epoch,
            pools: Mutex::default(),
            young: Mutex::default(),
            hurry: AtomicBool::new(false),
            fledged: Notify::new(),
            jobs,
            unreturned: Mutex::default(),
            taken: AtomicUsize::new(0),
            accounts: Mutex::default(),
            closing: AtomicBool::new(false),
            born: Instant::now(),
            lease: AtomicU64::new(u64::MAX),
        })
    }

    /// The lease of this process ends at that moment, unless it is renewed.
    pub(super) fn lease_until(&self, end: Instant) {
        let millis = end.saturating_duration_since(self.born).as_millis();
        self.lease.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// Whether others may have given back what this process took.
    pub(super) fn lease_is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.born).as_millis() >= u128::from(self.lease.load(Ordering::Acquire))
    }

    /// Takes the money of a request out of an allowance of its key, if there is one with so much left; asks the store for
    /// one when the key is busy.
    pub(super) fn draw(&self, user: &UserId, key: &KeyId, amount: MicroCredits) -> Option<Draw> {
        if self.busy == 0 {
            return None;
        }
        let now = Instant::now();
        if self.lease_is_over(now) {
            return None;
        }
        let mut pools = self.pools.lock();
        let pool = match pools.get_mut(key) {
            Some(pool) => pool,
            None => pools.entry(key.clone()).or_insert_with(|| Pool::new(user.clone(), now)),
        };
        if pool.user != *user {
            return None;
        }
        pool.see(amount, now);
        let drawn = pool.chunk.as_ref().and_then(|chunk| chunk.draw(amount, now));
        if drawn.is_none() && pool.may_ask(self.busy, now) {
            self.ask(pool, key, amount);
        }
        drawn
    }

    fn ask(&self, pool: &mut Pool, key: &KeyId, amount: MicroCredits) {
        if self.closing.load(Ordering::Relaxed) || self.lease_is_over(Instant::now()) {
            return;
        }
        let id = format!("al_{}", data_encoding::HEXLOWER.encode(&random::bytes::<16>()));
        let allowance = Allowance {
            id: id.into(),
            user_id: pool.user.clone(),
            key_id: key.clone(),
            replica: self.replica.clone(),
            epoch: self.epoch,
        };
        let least = MicroCredits(amount.0.max(1).saturating_mul(FEWEST));
        let wanted = MicroCredits(pool.most().bound.max(least.0));
        let wish = Wish { allowance, wanted, least, now: self.clock.now() };
        self.count(&pool.user, 1);
        pool.asked = self.send(Job::Take(Arc::new(wish)));
    }

    /// One more allowance of an account, or one less.
    fn count(&self, user: &UserId, change: isize) {
        let now = Instant::now();
        let mut accounts = self.accounts.lock();
        let out = accounts.entry(user.clone()).or_insert(Out { number: 0, changed: now });
        *out = Out { number: out.number.saturating_add_signed(change), changed: now };
    }

    /// How many allowances an account has.
    pub(super) fn number_of(&self, user: &UserId) -> usize {
        self.accounts.lock().get(user).map_or(0, |out| out.number)
    }

    /// Whether an account has an allowance, or had one just now.
    pub(super) fn concern(&self, user: &UserId) -> bool {
        let recently = |out: &Out| out.number > 0 || out.changed.elapsed() < JUST_NOW;
        self.accounts.lock().get(user).is_some_and(recently)
    }

    fn send(&self, job: Job) -> bool {
        self.jobs.upgrade().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    fn give_back(&self, chunk: Arc<Chunk>) {
        self.send(Job::Return(chunk, self.clock.now()));
    }

    /// From now on the request is watched: if it lasts, it gets a hold of its own.
    pub(super) fn watch(&self, progress: &Arc<Progress>) {
        let mut young = self.young.lock();
        let first = young.is_empty();
        young.push_back((Instant::now() + GRADUATES_AFTER, progress.clone()));
        drop(young);
        if first {
            self.fledged.notify_one();
        }
    }

    /// When the oldest request is to be looked at.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.young.lock().front().map(|(due, _)| *due)
    }

    /// Requests whose time is over.
    pub(super) fn due(&self, now: Instant, mut each: impl FnMut(Arc<Progress>)) {
        let mut young = self.young.lock();
        while young.front().is_some_and(|(due, _)| *due <= now) {
            if let Some((_, progress)) = young.pop_front() {
                each(progress);
            }
        }
        if self.hurry.swap(false, Ordering::AcqRel) {
            let is_recalled = |progress: &Progress| {
                progress.draw.as_ref().is_some_and(|(draw, _)| draw.chunk.state.lock().closed)
            };
            for (_, progress) in young.iter().filter(|(_, progress)| is_recalled(progress)) {
                each(progress.clone());
            }
        }
    }

    /// The store gave what was asked for; it replaces the allowance before.
    pub(super) fn install(&self, wish: &Wish, amount: MicroCredits) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        let closing = self.closing.load(Ordering::Relaxed);
        let chunk = Chunk::new(Arc::new(wish.allowance.clone()), amount.0, false);
        let before = match self.pools.lock().get_mut(&wish.allowance.key_id) {
            Some(pool) if !closing => {
                pool.asked = false;
                // Recalled while it was on its way.
                let unwanted = pool.not_before.is_some_and(|moment| moment > Instant::now());
                if unwanted { Some(chunk) } else { pool.chunk.replace(chunk) }
            }
            _ => Some(chunk),
        };
        if let Some(before) = before {
            self.close(&before);
        }
    }

    /// The store gave nothing.
    pub(super) fn refused(&self, wish: &Wish) {
        self.count(&wish.allowance.user_id, -1);
        self.pause(wish);
    }

    fn pause(&self, wish: &Wish) {
        if let Some(pool) = self.pools.lock().get_mut(&wish.allowance.key_id) {
            (pool.asked, pool.not_before) = (false, Some(Instant::now() + PAUSE));
        }
    }

    /// Nobody knows whether the store gave it: it is given back, if it is there.
    pub(super) fn may_be_taken(&self, wish: &Wish) {
        self.pause(wish);
        self.taken.fetch_add(1, Ordering::Relaxed);
        self.not_returned(Chunk::new(Arc::new(wish.allowance.clone()), 0, true));
    }

    /// The store did not answer a return; it is asked again later.
    pub(super) fn not_returned(&self, chunk: Arc<Chunk>) {
        self.unreturned.lock().push(chunk);
    }

    /// An allowance is no row any more.
    pub(super) fn returned(&self, chunk: &Chunk) {
        self.count(&chunk.allowance.user_id, -1);
        self.taken.fetch_sub(1, Ordering::Relaxed);
    }

    /// A request that was charged in memory has ended at this cost.
    pub(super) fn ended(&self, draw: &Draw, cost: MicroCredits) {
        if draw.chunk.put_back(draw.amount.0 - cost.0) {
            self.give_back(draw.chunk.clone());
        }
    }

    /// A request has a hold of its own now.
    pub(super) fn graduated(&self, draw: &Draw) {
        draw.moved();
        if draw.chunk.put_back(0) {
            self.give_back(draw.chunk.clone());
        }
    }

    fn close(&self, chunk: &Arc<Chunk>) {
        if chunk.close() {
            self.give_back(chunk.clone());
        }
    }

    /// Gives back all allowances of an account as soon as their requests allow. For a while none is taken for it.
    pub(super) fn close_user(&self, user: &UserId) {
        let not_before = Some(Instant::now() + PAUSE);
        for pool in self.pools.lock().values_mut().filter(|pool| pool.user == *user) {
            pool.not_before = not_before;
            if let Some(chunk) = pool.chunk.take() {
                self.close(&chunk);
            }
        }
        self.hurry();
    }

    /// Requests of closed allowances get holds of their own at once.
    fn hurry(&self) {
        self.hurry.store(true, Ordering::Release);
        self.fledged.notify_one();
    }

    /// Gives back the allowances with these ids.
    pub(super) fn close_ids(&self, ids: &[String]) {
        self.close_where(|chunk| ids.iter().any(|id| **id == *chunk.allowance.id));
    }

    /// Closes the allowances that are not among these ids: somebody else gave them back.
    pub(super) fn close_others(&self, kept: &[String]) {
        self.close_where(|chunk| kept.iter().all(|id| **id != *chunk.allowance.id));
    }

    fn close_where(&self, is_wanted: impl Fn(&Chunk) -> bool) {
        let not_before = Some(Instant::now() + PAUSE);
        for pool in self.pools.lock().values_mut() {
            let wanted = pool.chunk.take_if(|chunk| is_wanted(chunk));
            if let Some(chunk) = wanted {
                pool.not_before = not_before;
                self.close(&chunk);
            }
        }
        self.hurry();
    }

    /// Gives back what nobody uses, renews what is old, forgets keys that are silent.
    pub(super) fn tidy(&self) {
        let now = Instant::now();
        self.pools.lock().retain(|key, pool| {
            if let Some(chunk) = pool.chunk.take_if(|chunk| chunk.is_stale(now)) {
                self.close(&chunk);
            }
            if pool.chunk.as_ref().is_some_and(|chunk| now.duration_since(chunk.born) >= LIFE) {
                if pool.may_ask(self.busy, now) {
                    self.ask(pool, key, MicroCredits::ZERO);
                } else if !pool.asked
                    && let Some(chunk) = pool.chunk.take()
                {
                    self.close(&chunk);
                }
            }
            pool.chunk.is_some() || pool.asked || now.duration_since(pool.since) < LIFE
        });
        self.accounts.lock().retain(|_, out| out.number > 0 || out.changed.elapsed() < JUST_NOW);
        for chunk in std::mem::take(&mut *self.unreturned.lock()) {
            self.give_back(chunk);
        }
    }

    /// The process stops: everything goes back. True when nothing is left to give back.
    pub(super) fn close_all(&self) -> bool {
        self.closing.store(true, Ordering::Relaxed);
        for pool in self.pools.lock().values_mut() {
            if let Some(chunk) = pool.chunk.take() {
                self.close(&chunk);
            }
        }
        for chunk in std::mem::take(&mut *self.unreturned.lock()) {
            self.give_back(chunk);
        }
        self.is_empty()
    }

    /// Whether the store knows of no allowance of this process.
    pub(super) fn is_empty(&self) -> bool {
        self.taken.load(Ordering::Relaxed) == 0
    }
}
