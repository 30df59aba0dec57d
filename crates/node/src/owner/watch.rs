//! When the machine rests because of what its owner does with it: pure, from what the sensors say.

use std::time::Duration;

use cxmpute_wire::Bytes;

use super::{Cause, LocalTime, OwnerSection, Pause, Rest};
use crate::models::Wait;

/// A machine that was too hot works again when it is this much cooler, in degrees Celsius.
const COOLER: u32 = 5;

/// What the machine's sensors say at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Senses {
    /// It runs on its battery.
    pub on_battery: bool,
    /// The hottest of processor and accelerators, in degrees Celsius.
    pub celsius: Option<u32>,
    /// Time since somebody used it.
    pub idle: Option<Duration>,
    /// Its network is metered.
    pub metered: bool,
    /// What programs other than ours take of the busiest accelerator, in percent.
    pub foreign_gpu: u32,
    /// Requests, answers and fetched files of this day.
    pub transferred: Bytes,
}

/// What the owner's wishes mean at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The whole node rests.
    pub rest: Option<Rest>,
    /// The owner uses the accelerators: services on them end at once.
    pub yield_gpus: bool,
    /// Why no files are fetched.
    pub wait: Option<Wait>,
}

/// Remembers what must not flicker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    hot: bool,
    /// Until when the accelerators stay with the owner, on the monotonic clock.
    gpus_until: Option<Duration>,
}

impl Watch {
    /// What to do now. `mono` is the monotonic clock. What the owner says counts more than the hours, and both more than
    /// what is sensed.
    pub fn judge(
        &mut self,
        section: &OwnerSection,
        pause: Option<Pause>,
        local: LocalTime,
        mono: Duration,
        senses: &Senses,
    ) -> Decision {
        let limit = section.max_celsius;
        self.hot = match (limit, senses.celsius) {
            (Some(limit), Some(now)) if self.hot => now.saturating_add(COOLER) > limit,
            (Some(limit), Some(now)) => now > limit,
            _ => false,
        };
        if section.gpu_busy_percent > 0 && senses.foreign_gpu >= section.gpu_busy_percent {
            self.gpus_until = Some(mono.saturating_add(Duration::from_secs(section.gpu_quiet_s)));
        }
        self.gpus_until = self.gpus_until.filter(|until| mono < *until);
        let rest = match pause {
            Some(pause) => Some(Rest { cause: Cause::PausedByOwner, free_memory: pause == Pause::Memory }),
            None => self
                .cause(section, local, senses)
                .map(|cause| Rest { cause, free_memory: section.free_memory }),
        };
        let wait = if section.caps.is_used_up(senses.transferred) {
            Some(Wait::TransferUsedUp)
        } else {
            (senses.metered && !section.metered_downloads).then_some(Wait::Metered)
        };
        Decision { rest, yield_gpus: self.gpus_until.is_some(), wait }
    }

    fn cause(&self, section: &OwnerSection, local: LocalTime, senses: &Senses) -> Option<Cause> {
        let active = section.idle_minutes.zip(senses.idle);
        if !section.hours.contains(local) {
            return Some(Cause::OutsideHours);
        }
        if active.is_some_and(|(minutes, idle)| idle < Duration::from_secs(u64::from(minutes) * 60)) {
            return Some(Cause::OwnerActive);
        }
        if self.hot || (section.rest_on_battery && senses.on_battery) {
            return Some(Cause::PowerOrHeat);
        }
        if section.rest_on_metered && senses.metered {
            return Some(Cause::NetworkMetered);
        }
        section.caps.is_used_up(senses.transferred).then_some(Cause::TransferUsedUp)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Caps;
    use super::*;

    const NOON: LocalTime = LocalTime { day: 0, minute: 12 * 60 };

    fn section() -> OwnerSection {
        OwnerSection {
            idle_minutes: Some(10),
            max_celsius: Some(80),
            caps: Caps { daily_transfer_mib: Some(1), ..Caps::default() },
            ..OwnerSection::default()
        }
    }

    fn cause(watch: &mut Watch, senses: &Senses) -> Option<Cause> {
        let decision = watch.judge(&section(), None, NOON, Duration::ZERO, senses);
        decision.rest.map(|rest| rest.cause)
    }

    #[test]
    fn what_the_owner_says_counts_more_than_the_hours_and_these_more_than_the_sensors() {
        let hours = "mon 08:00-09:00".parse().unwrap();
        let section = OwnerSection { hours, free_memory: true, ..section() };
        let (inside, outside) = (LocalTime { day: 0, minute: 8 * 60 }, LocalTime { day: 1, minute: 0 });
        let busy = Senses { on_battery: true, ..Senses::default() };
        let judge = |pause, local, senses: &Senses| {
            Watch::default().judge(&section, pause, local, Duration::ZERO, senses).rest
        };
        let rest = |cause, free_memory| Some(Rest { cause, free_memory });
        assert_eq!(judge(None, inside, &Senses::default()), None);
        assert_eq!(judge(None, outside, &busy), rest(Cause::OutsideHours, true));
        assert_eq!(judge(None, inside, &busy), rest(Cause::PowerOrHeat, true));
        for local in [inside, outside] {
            assert_eq!(judge(Some(Pause::Work), local, &busy), rest(Cause::PausedByOwner, false));
            assert_eq!(judge(Some(Pause::Memory), local, &busy), rest(Cause::PausedByOwner, true));
        }
    }

    #[test]
    fn each_sensor_has_its_cause_and_an_owner_who_set_nothing_is_not_watched() {
        let seconds = |count| Some(Duration::from_secs(count));
        for (senses, expected) in [
            (Senses::default(), None),
            (Senses { idle: seconds(599), ..Senses::default() }, Some(Cause::OwnerActive)),
            (Senses { idle: seconds(600), ..Senses::default() }, None),
            (Senses { celsius: Some(80), ..Senses::default() }, None),
            (Senses { celsius: Some(81), ..Senses::default() }, Some(Cause::PowerOrHeat)),
            (Senses { on_battery: true, ..Senses::default() }, Some(Cause::PowerOrHeat)),
            (Senses { transferred: Bytes(1 << 20), ..Senses::default() }, Some(Cause::TransferUsedUp)),
        ] {
            assert_eq!(cause(&mut Watch::default(), &senses), expected, "{senses:?}");
        }
        let unset = OwnerSection::default();
        let all = Senses {
            idle: seconds(0),
            celsius: Some(120),
            transferred: Bytes(u64::MAX),
            ..Senses::default()
        };
        assert_eq!(Watch::default().judge(&unset, None, NOON, Duration::ZERO, &all).rest, None);
    }

    #[test]
    fn files_wait_on_a_metered_network_and_for_another_day_and_work_only_as_configured() {
        let judge = |section: &OwnerSection, metered, mib: u64| {
            let senses = Senses { metered, transferred: Bytes(mib << 20), ..Senses::default() };
            let decision = Watch::default().judge(section, None, NOON, Duration::ZERO, &senses);
            (decision.wait, decision.rest.map(|rest| rest.cause))
        };
        let usual = section();
        assert_eq!(judge(&usual, false, 0), (None, None));
        assert_eq!(judge(&usual, true, 0), (Some(Wait::Metered), None), "work is small");
        assert_eq!(judge(&usual, true, 1), (Some(Wait::TransferUsedUp), Some(Cause::TransferUsedUp)));
        let anyway = OwnerSection { metered_downloads: true, ..section() };
        assert_eq!(judge(&anyway, true, 0), (None, None));
        assert!(!anyway.minds_metered() && usual.minds_metered());
        let rests = OwnerSection { rest_on_metered: true, metered_downloads: true, ..section() };
        assert_eq!(judge(&rests, true, 0), (None, Some(Cause::NetworkMetered)));
        assert!(rests.minds_metered());
    }

    #[test]
    fn heat_does_not_flicker() {
        let mut watch = Watch::default();
        let mut at = |celsius| cause(&mut watch, &Senses { celsius: Some(celsius), ..Senses::default() });
        assert_eq!(
            [80, 81, 80, 76, 75, 80, 81].map(|celsius| at(celsius).is_some()),
            [false, true, true, true, false, false, true]
        );
    }

    #[test]
    fn accelerators_stay_with_their_owner_until_they_were_quiet_for_a_while() {
        let mut watch = Watch::default();
        let mut at = |second, foreign_gpu| {
            let senses = Senses { foreign_gpu, ..Senses::default() };
            let decision = watch.judge(&section(), None, NOON, Duration::from_secs(second), &senses);
            assert_eq!(decision.rest, None, "the processor works on");
            decision.yield_gpus
        };
        let said = [(0, 9), (1, 10), (2, 0), (30, 50), (89, 0), (90, 0), (91, 0)].map(|(s, g)| at(s, g));
        assert_eq!(said, [false, true, true, true, true, false, false]);
        let never = OwnerSection { gpu_busy_percent: 0, ..OwnerSection::default() };
        let senses = Senses { foreign_gpu: 100, ..Senses::default() };
        assert!(!Watch::default().judge(&never, None, NOON, Duration::ZERO, &senses).yield_gpus);
    }
}
