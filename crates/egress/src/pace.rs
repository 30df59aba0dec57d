//! How often one host is asked: a pure value that hands out times.

use std::collections::HashMap;
use std::time::Duration;

/// Hosts that are remembered; beyond it, the ones whose time has passed are forgotten first.
const HOSTS_LIMIT: usize = 10_000;

/// Spaces the requests to each host. It takes the time as an argument and waits for nobody.
#[derive(Debug)]
pub struct Pacer {
    gap: Duration,
    patience: Duration,
    next: HashMap<String, Duration>,
}

impl Pacer {
    /// At least `gap` between two requests to one host; nobody queues for longer than `patience`.
    #[must_use]
    pub fn new(gap: Duration, patience: Duration) -> Self {
        Self { gap, patience, next: HashMap::new() }
    }

    /// Takes the next free moment of a host; gives how long to wait for it. `None`: the queue is longer than the
    /// patience, and nothing was taken.
    pub fn reserve(&mut self, host: &str, now: Duration) -> Option<Duration> {
        let at = self.next.get(host).copied().unwrap_or(now).max(now);
        let wait = at.saturating_sub(now);
        if wait > self.patience {
            return None;
        }
        if self.next.len() >= HOSTS_LIMIT && !self.next.contains_key(host) {
            self.next.retain(|_, next| *next > now);
            if self.next.len() >= HOSTS_LIMIT {
                return None;
            }
        }
        self.next.insert(host.to_owned(), at + self.gap);
        Some(wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn one_host_waits_and_others_do_not() {
        let mut pacer = Pacer::new(SECOND, SECOND * 2);
        let now = SECOND * 100;
        let waits: Vec<_> = (0..5).map(|_| pacer.reserve("a", now)).collect();
        assert_eq!(waits, [Some(Duration::ZERO), Some(SECOND), Some(SECOND * 2), None, None]);
        assert_eq!(pacer.reserve("b", now), Some(Duration::ZERO));
        // A refusal took nothing: the next free moment is still three seconds after the first.
        assert_eq!(pacer.reserve("a", now + SECOND), Some(SECOND * 2));
        assert_eq!(pacer.reserve("a", now + SECOND * 50), Some(Duration::ZERO));
    }

    #[test]
    fn many_hosts_do_not_fill_the_memory() {
        let mut pacer = Pacer::new(SECOND, SECOND);
        for n in 0..HOSTS_LIMIT {
            assert!(pacer.reserve(&n.to_string(), Duration::ZERO).is_some());
        }
        assert_eq!(pacer.reserve("one more", Duration::ZERO), None);
        assert_eq!(pacer.reserve("one more", SECOND * 2), Some(Duration::ZERO));
        assert_eq!(pacer.next.len(), 1);
    }
}
