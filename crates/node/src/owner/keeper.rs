//! Carries the owner's hours and pauses out: looks at the clock, and tells the services.

use std::time::Duration;

use cxmpute_runtime::Clock;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::{LocalTime, OwnerSection, Pause, rest};
use crate::services::Services;

/// How often the clock is looked at; hours are exact to this.
const LOOK: Duration = Duration::from_secs(10);

/// Keeps the services to what the owner wants, for as long as it is polled.
pub async fn keep(
    section: OwnerSection,
    services: Services,
    clock: Clock,
    mut pause: tokio::sync::watch::Receiver<Option<Pause>>,
) {
    let zone = TimeZone::system();
    loop {
        let said = *pause.borrow_and_update();
        let now = local(clock.now().0, &zone);
        services.rest(rest(&section, said, now));
        tokio::select! {
            changed = pause.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// The machine's own time of a moment in milliseconds since 1970.
fn local(millis: i64, zone: &TimeZone) -> LocalTime {
    let moment = Timestamp::from_millisecond(millis).unwrap_or_default().to_zoned(zone.clone());
    let day = moment.weekday().to_monday_zero_offset();
    let minute = i16::from(moment.hour()) * 60 + i16::from(moment.minute());
    LocalTime { day: day.unsigned_abs(), minute: minute.unsigned_abs() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_has_its_day_and_minute_in_the_zone_of_the_machine() {
        // 2026-11-21, a Saturday, 22:30 UTC.
        let millis = 1_795_300_200_000;
        assert_eq!(local(millis, &TimeZone::UTC), LocalTime { day: 5, minute: 22 * 60 + 30 });
        let east = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(local(millis, &east), LocalTime { day: 6, minute: 30 });
    }
}
