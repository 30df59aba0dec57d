//! The time, as a value that is handed around instead of a global that is asked.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cxmpute_wire::unit::Timestamp;

/// Where a program reads the time. Cloning shares the source: all clones of a mock clock move together.
#[derive(Clone, Debug)]
pub enum Clock {
    /// The operating system's clocks.
    System(SystemClock),
    /// A clock that moves only when a test says so.
    Mock(MockClock),
}

impl Clock {
    /// The operating system's clock; [`Clock::mono`] counts from this call.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the operating system")]
    pub fn system() -> Self {
        Clock::System(SystemClock { start: Instant::now() })
    }

    /// A clock that stands still until [`MockClock::advance`] is called; see [`Clock::as_mock`].
    pub fn mock() -> Self {
        Clock::Mock(MockClock::default())
    }

    /// Wall time, milliseconds since 1970 UTC. May jump when the operator corrects the machine's clock.
    pub fn now(&self) -> Timestamp {
        match self {
            Clock::System(_) => Timestamp(system_millis()),
            Clock::Mock(mock) => mock.now(),
        }
    }

    /// Time since the clock was made; never goes back. For deadlines and measurements.
    pub fn mono(&self) -> Duration {
        match self {
            Clock::System(system) => system.start.elapsed(),
            Clock::Mock(mock) => mock.mono(),
        }
    }

    /// The mock behind this clock, if it is one.
    pub fn as_mock(&self) -> Option<&MockClock> {
        match self {
            Clock::System(_) => None,
            Clock::Mock(mock) => Some(mock),
        }
    }
}

/// The operating system's clocks.
#[derive(Clone, Debug)]
pub struct SystemClock {
    start: Instant,
}

#[expect(clippy::disallowed_methods, reason = "this is the one place that asks the operating system")]
fn system_millis() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
    }
}

/// A clock for tests. It starts at 2026-01-01T00:00:00Z, so that dates in failures look like dates.
#[derive(Clone)]
pub struct MockClock {
    wall_ms: Arc<AtomicI64>,
    mono_us: Arc<AtomicU64>,
}

/// 2026-01-01T00:00:00Z in milliseconds.
const MOCK_START_MS: i64 = 1_767_225_600_000;

impl Default for MockClock {
    fn default() -> Self {
        Self { wall_ms: Arc::new(AtomicI64::new(MOCK_START_MS)), mono_us: Arc::new(AtomicU64::new(0)) }
    }
}

impl fmt::Debug for MockClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MockClock({} ms)", self.wall_ms.load(Ordering::SeqCst))
    }
}

impl MockClock {
    /// A mock clock at its starting point.
    pub fn new() -> Self {
        Self::default()
    }

    /// Moves wall and monotonic time forward together. Parts below a millisecond move only the monotonic time.
    pub fn advance(&self, by: Duration) {
        let ms = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.wall_ms.fetch_add(ms, Ordering::SeqCst);
        self.mono_us.fetch_add(u64::try_from(by.as_micros()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Sets the wall time without moving the monotonic time: what an operator's correction looks like.
    pub fn set_wall(&self, to: Timestamp) {
        self.wall_ms.store(to.0, Ordering::SeqCst);
    }

    /// Wall time.
    pub fn now(&self) -> Timestamp {
        Timestamp(self.wall_ms.load(Ordering::SeqCst))
    }

    /// Time advanced so far.
    pub fn mono(&self) -> Duration {
        Duration::from_micros(self.mono_us.load(Ordering::SeqCst))
    }
}

impl From<MockClock> for Clock {
    fn from(mock: MockClock) -> Self {
        Clock::Mock(mock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_of_a_mock_clock_move_together() {
        let clock = Clock::mock();
        let other = clock.clone();
        let before = other.now();
        clock.as_mock().unwrap().advance(Duration::from_millis(1500));
        assert_eq!(other.now().0 - before.0, 1500);
        assert_eq!(other.mono(), Duration::from_millis(1500));
    }

    #[test]
    fn the_system_clock_never_goes_back() {
        let clock = Clock::system();
        let first = clock.mono();
        assert!(clock.mono() >= first);
        assert!(clock.now().0 > MOCK_START_MS);
    }
}
