//! When the gateway itself has more than it can do: who is refused, early and cheaply (GR34, GR36).

use std::time::Duration;

use crate::queue::Class;

/// How busy a gateway is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Load {
    /// Requests that were accepted and have not ended.
    pub running: usize,
    /// Admissions that wait for the store.
    pub admissions: usize,
    /// How late its own timers come.
    pub lag: Duration,
}

/// How busy it may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most requests at a time.
    pub running: usize,
    /// Most admissions that wait for the store.
    pub admissions: usize,
    /// How late its own timers may come.
    pub lag: Duration,
}

/// Which bound is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overload {
    /// Too many requests run.
    Running,
    /// Too many wait for the store.
    Admissions,
    /// The event loops are late.
    Lag,
}

impl Overload {
    /// The label in metrics.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Admissions => "admissions",
            Self::Lag => "lag",
        }
    }
}

/// Whether a new request of this class must be refused now. Who does not pay is refused at half of each bound, so that
/// the other half is there for who does.
#[must_use]
pub fn overload(load: &Load, bounds: &Bounds, class: Class) -> Option<Overload> {
    let part = match class {
        Class::Paid => 1,
        Class::Free => 2,
    };
    if load.running >= (bounds.running / part).max(1) {
        Some(Overload::Running)
    } else if load.admissions >= (bounds.admissions / part).max(1) {
        Some(Overload::Admissions)
    } else if load.lag >= bounds.lag / u32::try_from(part).unwrap_or(1) {
        Some(Overload::Lag)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { running: 100, admissions: 40, lag: Duration::from_millis(500) };

    #[test]
    fn each_bound_refuses_those_who_do_not_pay_first() {
        let load = |running, admissions, lag| Load { running, admissions, lag: Duration::from_millis(lag) };
        for (load, paid, free) in [
            (load(0, 0, 0), None, None),
            (load(49, 19, 249), None, None),
            (load(50, 0, 0), None, Some(Overload::Running)),
            (load(100, 0, 0), Some(Overload::Running), Some(Overload::Running)),
            (load(0, 20, 0), None, Some(Overload::Admissions)),
            (load(0, 40, 0), Some(Overload::Admissions), Some(Overload::Admissions)),
            (load(0, 0, 250), None, Some(Overload::Lag)),
            (load(0, 0, 500), Some(Overload::Lag), Some(Overload::Lag)),
        ] {
            assert_eq!(overload(&load, &BOUNDS, Class::Paid), paid, "{load:?}");
            assert_eq!(overload(&load, &BOUNDS, Class::Free), free, "{load:?}");
        }
    }
}
