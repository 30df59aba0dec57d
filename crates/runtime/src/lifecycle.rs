//! Tasks with an owner and a name, and the two ways a process stops: softly (finish what runs) and hard.

use std::any::Any;
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Time that tasks get after the hard stop before they are dropped where they stand.
const HARD_STOP: Duration = Duration::from_secs(1);

/// All tasks of one program (or of one test world). Cloning shares the set.
#[derive(Clone, Debug)]
pub struct Tasks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tracker: TaskTracker,
    soft: CancellationToken,
    hard: CancellationToken,
    next: AtomicU64,
    running: Mutex<BTreeMap<u64, Running>>,
}

#[derive(Debug)]
struct Running {
    name: &'static str,
    /// Empty for the moment between registration and the return of the spawn.
    abort: Option<AbortHandle>,
}

impl Default for Tasks {
    fn default() -> Self {
        Self::new()
    }
}

impl Tasks {
    /// An empty set; nothing is stopping yet.
    pub fn new() -> Self {
        let soft = CancellationToken::new();
        Self {
            inner: Arc::new(Inner {
                tracker: TaskTracker::new(),
                soft,
                hard: CancellationToken::new(),
                next: AtomicU64::new(0),
                running: Mutex::new(BTreeMap::new()),
            }),
        }
    }

    /// Starts a task. It is counted until it ends; a panic is logged with the task's name and ends only this task.
    /// A task that runs for ever must end when [`Tasks::soft`] is cancelled.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> TaskHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, future, false)
    }

    /// Starts a task without which the program makes no sense: its end, for whatever reason, begins the soft stop.
    pub fn spawn_critical<F>(&self, name: &'static str, future: F) -> TaskHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.start(name, future, true)
    }

    /// Starts a task that ends when the returned handle is dropped.
    pub fn spawn_owned<F>(&self, name: &'static str, future: F) -> OwnedTask
    where
        F: Future<Output = ()> + Send + 'static,
    {
        OwnedTask { handle: self.spawn(name, future) }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where tasks begin")]
    fn start<F>(&self, name: &'static str, future: F, critical: bool) -> TaskHandle
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        self.inner.running.lock().insert(id, Running { name, abort: None });
        let registration = Registration { inner: self.inner.clone(), id, critical };
        // No async block: it would hold the future twice, as what it captured and as what it awaits.
        let watched = AssertUnwindSafe(future).catch_unwind().map(move |outcome| {
            if let Err(panic) = outcome {
                tracing::error!(task = name, panic = panic_text(panic.as_ref()), "task panicked");
            }
            drop(registration);
        });
        let tracked = self.inner.tracker.track_future(watched);
        let abort = tokio::spawn(tracked).abort_handle();
        if let Some(running) = self.inner.running.lock().get_mut(&id) {
            running.abort = Some(abort.clone());
        }
        TaskHandle { abort }
    }

    /// Cancelled when the program begins to stop: accept nothing new, finish what runs.
    pub fn soft(&self) -> CancellationToken {
        self.inner.soft.clone()
    }

    /// Whether the program has begun to stop.
    pub fn is_stopping(&self) -> bool {
        self.inner.soft.is_cancelled()
    }

    /// As [`Tasks::hard`], to look at: a token's clone takes a lock that all of them share.
    pub fn hard_token(&self) -> &CancellationToken {
        &self.inner.hard
    }

    /// Cancelled when waiting is over: drop what runs.
    pub fn hard(&self) -> CancellationToken {
        self.inner.hard.clone()
    }

    /// Names of the tasks that have not ended. Test worlds assert that it is empty.
    pub fn running(&self) -> Vec<&'static str> {
        self.inner.running.lock().values().map(|task| task.name).collect()
    }

    /// Begins the soft stop, waits `grace` for the tasks (less if the hard stop comes), then stops hard and drops
    /// what is left. Returns the names of the dropped tasks.
    pub async fn stop(&self, grace: Duration) -> Vec<&'static str> {
        self.inner.soft.cancel();
        self.inner.tracker.close();
        tokio::select! {
            () = self.inner.tracker.wait() => return Vec::new(),
            () = self.inner.hard.cancelled() => {}
            () = tokio::time::sleep(grace) => {}
        }
        self.inner.hard.cancel();
        if tokio::time::timeout(HARD_STOP, self.inner.tracker.wait()).await.is_ok() {
            return Vec::new();
        }
        let left = self.running();
        tracing::warn!(tasks = ?left, "tasks did not stop in time and are dropped");
        let aborts: Vec<AbortHandle> =
            self.inner.running.lock().values().filter_map(|task| task.abort.clone()).collect();
        for abort in aborts {
            abort.abort();
        }
        // A task that blocks its thread cannot be dropped; do not hang on it.
        let _ = tokio::time::timeout(HARD_STOP, self.inner.tracker.wait()).await;
        left
    }
}

/// Takes the task off the list however it ends: return, panic, or drop.
struct Registration {
    inner: Arc<Inner>,
    id: u64,
    critical: bool,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let ended = self.inner.running.lock().remove(&self.id);
        if self.critical && !self.inner.soft.is_cancelled() {
            let name = ended.map_or("?", |task| task.name);
            tracing::error!(task = name, "a critical task ended; stopping");
            self.inner.soft.cancel();
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "no text"
    }
}

/// A running task. Dropping the handle leaves the task alone.
#[derive(Clone, Debug)]
pub struct TaskHandle {
    abort: AbortHandle,
}

impl TaskHandle {
    /// Drops the task at its next await.
    pub fn abort(&self) {
        self.abort.abort();
    }

    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.abort.is_finished()
    }
}

/// A running task that ends when this is dropped.
#[derive(Debug)]
pub struct OwnedTask {
    handle: TaskHandle,
}

impl OwnedTask {
    /// Whether the task has ended.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

/// Turns signals into stops: the first SIGTERM or SIGINT begins the soft stop, the second the hard stop, the third
/// ends the process where it stands. The handlers are in place when this returns.
#[expect(
    clippy::disallowed_methods,
    reason = "this task must outlive the set it stops, so it is not tracked"
)]
pub fn signals(tasks: &Tasks) -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (soft, hard) = (tasks.soft(), tasks.hard());
    tokio::spawn(async move {
        let mut count = 0u8;
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            count = count.saturating_add(1);
            match count {
                1 => {
                    tracing::info!("stopping; a second signal stops without waiting");
                    soft.cancel();
                }
                2 => {
                    tracing::warn!("stopping without waiting");
                    soft.cancel();
                    hard.cancel();
                }
                _ => std::process::exit(i32::from(crate::exit::OTHER)),
            }
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_task_that_listens_ends_softly() {
        let tasks = Tasks::new();
        let soft = tasks.soft();
        tasks.spawn("listener", async move { soft.cancelled().await });
        assert_eq!(tasks.running(), ["listener"]);
        assert!(tasks.stop(Duration::from_secs(5)).await.is_empty());
        assert!(tasks.running().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_listen_is_dropped_and_named() {
        let tasks = Tasks::new();
        tasks.spawn("deaf", std::future::pending());
        assert_eq!(tasks.stop(Duration::from_secs(5)).await, ["deaf"]);
        assert!(tasks.running().is_empty());
    }

    #[tokio::test]
    async fn a_panic_ends_only_its_task() {
        let tasks = Tasks::new();
        tasks.spawn("clumsy", async { panic!("on purpose") });
        tokio::time::timeout(Duration::from_secs(5), async {
            while !tasks.running().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        assert!(!tasks.soft().is_cancelled());
    }

    #[tokio::test]
    async fn the_end_of_a_critical_task_begins_the_stop() {
        let tasks = Tasks::new();
        tasks.spawn_critical("heart", async {});
        tokio::time::timeout(Duration::from_secs(5), tasks.soft().cancelled()).await.unwrap();
    }

    #[tokio::test]
    async fn dropping_an_owned_task_ends_it() {
        let tasks = Tasks::new();
        drop(tasks.spawn_owned("owned", std::future::pending()));
        tokio::time::timeout(Duration::from_secs(5), async {
            while !tasks.running().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
    }
}
