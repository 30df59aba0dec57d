//! The owner first: when the machine works for others, and when it rests. What the owner says by `pause` and `resume` is
//! remembered over restarts; the hours stand in the configuration.

pub mod hours;
mod keeper;

use serde::{Deserialize, Serialize};

pub use hours::{Hours, LocalTime};
pub use keeper::keep;

/// `[owner]`
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct OwnerSection {
    /// When the machine may work for others, such as `mon-fri 18:00-08:00` and `sat,sun`; always when empty. The time is
    /// the machine's own.
    pub hours: Hours,
    /// Whether engines are stopped outside these hours, so that their memory is free.
    pub free_memory: bool,
}

/// A pause that the owner asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    /// No new work; engines stay loaded.
    Work,
    /// No new work, and engines are stopped.
    Memory,
}

/// Why the node takes no work at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The owner said `pause`.
    PausedByOwner,
    /// It is outside the configured hours.
    OutsideHours,
}

/// A rest: its cause, and whether engines are stopped meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rest {
    /// Why.
    pub cause: Cause,
    /// Whether memory is freed.
    pub free_memory: bool,
}

/// Whether the node rests. What the owner says now counts more than the hours.
#[must_use]
pub fn rest(section: &OwnerSection, pause: Option<Pause>, now: LocalTime) -> Option<Rest> {
    match pause {
        Some(pause) => Some(Rest { cause: Cause::PausedByOwner, free_memory: pause == Pause::Memory }),
        None if !section.hours.contains(now) => {
            Some(Rest { cause: Cause::OutsideHours, free_memory: section.free_memory })
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_owner_says_counts_more_than_the_hours() {
        let section = OwnerSection { hours: "mon 08:00-09:00".parse().unwrap(), free_memory: true };
        let (inside, outside) = (LocalTime { day: 0, minute: 8 * 60 }, LocalTime { day: 1, minute: 0 });
        assert_eq!(rest(&section, None, inside), None);
        assert_eq!(
            rest(&section, None, outside),
            Some(Rest { cause: Cause::OutsideHours, free_memory: true })
        );
        let paused = |free_memory| Some(Rest { cause: Cause::PausedByOwner, free_memory });
        for now in [inside, outside] {
            assert_eq!(rest(&section, Some(Pause::Work), now), paused(false));
            assert_eq!(rest(&section, Some(Pause::Memory), now), paused(true));
        }
        assert_eq!(rest(&OwnerSection::default(), None, outside), None);
    }
}
