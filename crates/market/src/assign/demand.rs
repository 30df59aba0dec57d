//! What was asked for lately.

use std::time::Duration;

/// Demand is counted over so many minutes.
pub const WINDOW_MINUTES: u64 = 10;

/// What was asked of one service within the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Demand {
    /// Requests that came.
    pub requests: u64,
    /// Those that had to wait for a node.
    pub queued: u64,
    /// Those that got none.
    pub refused: u64,
    /// Tokens of the answers.
    pub units: u64,
}

impl Demand {
    /// Weights beside one provision that the catalogue wants, which is 1,000: what was refused shows supply that is
    /// missing, what waited supply that is short, what was served only that somebody asks.
    const REQUEST: u64 = 10;
    const QUEUED: u64 = 100;
    const REFUSED: u64 = 500;
    const THOUSAND_UNITS: u64 = 10;
    /// Nobody makes a service weigh more by asking more.
    const MOST: u64 = 1_000_000_000;

    /// How much it adds to the weight of a service.
    #[must_use]
    pub fn weight(&self) -> u64 {
        let part = |count: u64, each: u64| count.saturating_mul(each);
        part(self.requests, Self::REQUEST)
            .saturating_add(part(self.queued, Self::QUEUED))
            .saturating_add(part(self.refused, Self::REFUSED))
            .saturating_add(part(self.units / 1_000, Self::THOUSAND_UNITS))
            .min(Self::MOST)
    }

    /// Both together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            requests: self.requests.saturating_add(other.requests),
            queued: self.queued.saturating_add(other.queued),
            refused: self.refused.saturating_add(other.refused),
            units: self.units.saturating_add(other.units),
        }
    }

    /// Whether nobody asked.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}

/// The last minutes of one service, of a fixed size.
#[derive(Debug, Clone, Default)]
pub struct Window {
    minutes: [(u64, Demand); WINDOW_MINUTES as usize],
}

impl Window {
    /// Counts something at `now`, in time since the process started.
    pub fn add(&mut self, more: &Demand, now: Duration) {
        let minute = now.as_secs() / 60;
        let place = &mut self.minutes[usize::try_from(minute % WINDOW_MINUTES).unwrap_or(0)];
        if place.0 != minute {
            *place = (minute, Demand::default());
        }
        place.1 = place.1.plus(more);
    }

    /// What came within the last minutes.
    #[must_use]
    pub fn sum(&self, now: Duration) -> Demand {
        let minute = now.as_secs() / 60;
        let recent = self.minutes.iter().filter(|(of, _)| *of + WINDOW_MINUTES > minute && *of <= minute);
        recent.fold(Demand::default(), |sum, (_, one)| sum.plus(one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let mut window = Window::default();
        let one = Demand { requests: 1, ..Demand::default() };
        let at = |minute: u64| Duration::from_secs(60 * minute + 59);
        for minute in [0, 3, 3, 9] {
            window.add(&one, at(minute));
        }
        assert_eq!(window.sum(at(9)).requests, 4);
        assert_eq!(window.sum(at(10)).requests, 3, "minute 0 is out");
        window.add(&one, at(13));
        assert_eq!(window.sum(at(13)).requests, 2, "minute 3 made room");
        assert!(window.sum(at(90)).is_none());
    }

    #[test]
    fn what_was_refused_weighs_more_than_what_was_served() {
        let of = |requests, queued, refused, units| Demand { requests, queued, refused, units }.weight();
        assert_eq!(of(0, 0, 0, 0), 0);
        assert!(of(1, 0, 1, 0) > 20 * of(1, 0, 0, 0));
        assert!(of(0, 0, 1, 0) > of(0, 1, 0, 0) && of(0, 1, 0, 0) > of(1, 0, 0, 0));
        assert_eq!(of(0, 0, 0, 1_000_000), 10_000);
        assert_eq!(of(u64::MAX, u64::MAX, u64::MAX, u64::MAX), Demand::MOST);
    }
}
