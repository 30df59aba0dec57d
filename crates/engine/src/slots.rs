//! Worker threads behind a bounded queue: at most `slots` jobs run, at most `queue` wait, the rest are refused.

use std::collections::VecDeque;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

/// How full a pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Load {
    /// Jobs that can run at the same time.
    pub slots: usize,
    /// Jobs that run.
    pub busy: usize,
    /// Jobs that wait.
    pub queued: usize,
}

/// The queue is full; the job is not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("all slots are busy and the queue is full")]
pub struct QueueFull;

/// A fixed set of threads that take jobs in order of arrival. Dropping it ends the threads after their jobs.
pub struct Pool<J> {
    shared: Arc<Shared<J>>,
    slots: usize,
    queue: usize,
    abandoned: fn(&J) -> bool,
}

struct Shared<J> {
    state: Mutex<State<J>>,
    changed: Condvar,
}

struct State<J> {
    waiting: VecDeque<J>,
    busy: usize,
    closed: bool,
}

impl<J: Send + 'static> Pool<J> {
    /// Starts one thread per slot; each makes its own worker. `abandoned` tells jobs whose caller has gone: they
    /// are dropped instead of run.
    ///
    /// # Errors
    /// When the system gives no more threads.
    pub fn start<W: FnMut(J)>(
        name: &str,
        slots: usize,
        queue: usize,
        abandoned: fn(&J) -> bool,
        make_worker: impl Fn() -> W + Send + Clone + 'static,
    ) -> io::Result<Self> {
        let state = State { waiting: VecDeque::new(), busy: 0, closed: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let pool = Self { shared: shared.clone(), slots, queue, abandoned };
        for number in 0..slots {
            let (shared, make_worker) = (shared.clone(), make_worker.clone());
            std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                let mut worker = make_worker();
                while let Some((job, _running)) = shared.next(abandoned) {
                    // A panic costs the job (its caller sees the channel close), not the slot.
                    if std::panic::catch_unwind(AssertUnwindSafe(|| worker(job))).is_err() {
                        tracing::error!("a computation panicked");
                    }
                }
            })?;
        }
        Ok(pool)
    }

    /// Hands a job over.
    ///
    /// # Errors
    /// When all slots are busy and the queue is full.
    pub fn submit(&self, job: J) -> Result<(), QueueFull> {
        let mut state = self.shared.state.lock();
        state.waiting.retain(|job| !(self.abandoned)(job));
        if state.waiting.len() + state.busy >= self.slots + self.queue {
            return Err(QueueFull);
        }
        state.waiting.push_back(job);
        drop(state);
        self.shared.changed.notify_one();
        Ok(())
    }

    /// How full the pool is now.
    pub fn load(&self) -> Load {
        let state = self.shared.state.lock();
        let queued = state.waiting.iter().filter(|job| !(self.abandoned)(job)).count();
        Load { slots: self.slots, busy: state.busy, queued }
    }
}

impl<J> Drop for Pool<J> {
    fn drop(&mut self) {
        self.shared.state.lock().closed = true;
        self.shared.changed.notify_all();
    }
}

impl<J> Shared<J> {
    /// Waits for a job; the guard counts it as running until it is dropped.
    fn next(self: &Arc<Self>, abandoned: fn(&J) -> bool) -> Option<(J, Running<J>)> {
        let mut state = self.state.lock();
        loop {
            match state.waiting.pop_front() {
                Some(job) if abandoned(&job) => {}
                Some(job) => {
                    state.busy += 1;
                    return Some((job, Running { shared: self.clone() }));
                }
                None if state.closed => return None,
                None => self.changed.wait(&mut state),
            }
        }
    }
}

struct Running<J> {
    shared: Arc<Shared<J>>,
}

impl<J> Drop for Running<J> {
    fn drop(&mut self) {
        self.shared.state.lock().busy -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    struct Job {
        begun: Sender<u8>,
        go: Receiver<()>,
        gone: bool,
        number: u8,
    }

    fn job(number: u8, begun: &Sender<u8>) -> (Job, Sender<()>) {
        let (go, wait) = channel();
        (Job { begun: begun.clone(), go: wait, gone: false, number }, go)
    }

    fn pool(slots: usize, queue: usize) -> Pool<Job> {
        Pool::start(
            "test",
            slots,
            queue,
            |job: &Job| job.gone,
            || {
                |job: Job| {
                    job.begun.send(job.number).unwrap();
                    let _ = job.go.recv();
                    assert!(job.number < 100, "on purpose");
                }
            },
        )
        .unwrap()
    }

    #[test]
    fn what_does_not_fit_is_refused_and_abandoned_jobs_make_room() {
        let (begun, seen) = channel();
        let pool = pool(1, 1);
        let (first, go_first) = job(1, &begun);
        pool.submit(first).unwrap();
        assert_eq!(seen.recv_timeout(Duration::from_secs(5)), Ok(1));
        let (mut second, _go) = job(2, &begun);
        second.gone = true;
        pool.submit(second).unwrap();
        assert_eq!(pool.load(), Load { slots: 1, busy: 1, queued: 0 });
        let (third, _go) = job(3, &begun);
        pool.submit(third).unwrap();
        assert_eq!(pool.load(), Load { slots: 1, busy: 1, queued: 1 });
        let (fourth, _go) = job(4, &begun);
        assert_eq!(pool.submit(fourth), Err(QueueFull));
        go_first.send(()).unwrap();
        assert_eq!(seen.recv_timeout(Duration::from_secs(5)), Ok(3));
    }

    #[test]
    fn a_panic_costs_the_job_and_not_the_slot() {
        let (begun, seen) = channel();
        let pool = pool(1, 4);
        let (bad, go) = job(100, &begun);
        pool.submit(bad).unwrap();
        go.send(()).unwrap();
        let (good, _go) = job(1, &begun);
        pool.submit(good).unwrap();
        assert_eq!(seen.recv_timeout(Duration::from_secs(5)), Ok(100));
        assert_eq!(seen.recv_timeout(Duration::from_secs(5)), Ok(1));
    }
}
