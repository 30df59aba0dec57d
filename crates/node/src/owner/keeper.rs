//! Carries the owner's wishes out: looks at clock and sensors, and tells the services.

use std::time::Duration;

use cxmpute_runtime::Clock;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::sync::watch::Receiver;

use super::{LocalTime, OwnerSection, Pause, Senses, Sensors, Transfer, Watch};
use crate::services::Services;

/// How often clock and slow sensors are looked at; hours are exact to this.
const LOOK: Duration = Duration::from_secs(2);
/// How often accelerators are looked at: services have left them 500 ms after the owner began to use them.
const LOOK_AT_GPUS: Duration = Duration::from_millis(200);

/// An accelerator may say so long that work goes on which has ended.
const LINGERS: Duration = Duration::from_secs(2);

/// Keeps the services to what the owner wants, for as long as it is polled.
pub async fn keep(
    section: OwnerSection,
    services: Services,
    clock: Clock,
    mut pause: Receiver<Option<Pause>>,
    sensors: Sensors,
    mut transfer: Transfer,
) {
    let zone = TimeZone::system();
    let mut watch = Watch::default();
    let mut senses = Senses::default();
    let watch_gpus = section.gpu_busy_percent > 0 && look(&sensors, Sensors::watch_gpus).await;
    let (mut slow, mut fast) = (tokio::time::interval(LOOK), tokio::time::interval(LOOK_AT_GPUS));
    for timer in [&mut slow, &mut fast] {
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    loop {
        tokio::select! {
            changed = pause.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            _ = slow.tick() => {
                let now = clock.now();
                let seen = look(&sensors, move |sensors| sensors.look(now)).await;
                senses = Senses { foreign_gpu: senses.foreign_gpu, ..seen };
                senses.transferred = transfer.today(services.transferred(), now);
                if let Err(error) = transfer.note() {
                    tracing::warn!(%error, "the day's transfers cannot be noted down");
                }
            }
            _ = fast.tick(), if watch_gpus => {
                let ours = engines(&services);
                let working = services.in_flight() > 0;
                let foreign = look(&sensors, move |sensors| sensors.foreign_gpu(&ours, working)).await;
                // The runners of an owner's server are no children of ours, and their work is.
                senses.foreign_gpu = if services.work_outside(LINGERS) { 0 } else { foreign };
            }
        }
        let said = *pause.borrow_and_update();
        let local = local(clock.now().0, &zone);
        let decision = watch.judge(&section, said, local, clock.mono(), &senses);
        services.rest(decision.rest);
        services.yield_gpus(decision.yield_gpus);
    }
}

/// Asks the sensors where they may block.
async fn look<T: Send + Default + 'static>(
    sensors: &Sensors,
    ask: impl FnOnce(&Sensors) -> T + Send + 'static,
) -> T {
    let sensors = sensors.clone();
    tokio::task::spawn_blocking(move || ask(&sensors)).await.unwrap_or_default()
}

/// The processes of our engines, and this one.
fn engines(services: &Services) -> Vec<u32> {
    services.pids().into_iter().chain([std::process::id()]).collect()
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
