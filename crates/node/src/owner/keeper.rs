//! Carries the owner's wishes out: looks at clock and sensors, and tells the services.

use std::time::Duration;

use cxmpute_runtime::Clock;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use tokio::sync::watch::Receiver;
use tokio::task::JoinHandle;

use super::senses::Wanted;
use super::{LocalTime, OwnerSection, Pause, Senses, Sensors, Transfer, Watch};
use crate::models::Wait;
use crate::services::Services;

/// How often clock and slow sensors are looked at; hours are exact to this.
const LOOK: Duration = Duration::from_secs(2);
/// How often accelerators are looked at: services have left them 500 ms after the owner began to use them.
const LOOK_AT_GPUS: Duration = Duration::from_millis(200);

/// An accelerator may say so long that work goes on which has ended.
const LINGERS: Duration = Duration::from_secs(2);
/// How often the desktop is asked, which starts programs.
const LOOK_AT_DESKTOP: Duration = Duration::from_secs(5);

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
    let wanted = Wanted { idle: section.idle_minutes.is_some(), metered: section.minds_metered() };
    // Until it is known, a network counts as metered: nothing is fetched on a guess.
    let mut seated: Seated = (None, wanted.metered);
    senses.metered = wanted.metered;
    let mut known = !wanted.metered;
    let mut asked: Option<JoinHandle<Seated>> = None;
    let mut noted = true;
    let watch_gpus = section.gpu_busy_percent > 0 && look(&sensors, Sensors::watch_gpus).await;
    let (mut slow, mut fast) = (tokio::time::interval(LOOK), tokio::time::interval(LOOK_AT_GPUS));
    let mut desktop = tokio::time::interval(LOOK_AT_DESKTOP);
    for timer in [&mut slow, &mut fast, &mut desktop] {
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
                senses = Senses { foreign_gpu: senses.foreign_gpu, metered: seated.1, ..seen };
                senses.idle = [seen.idle, seated.0].into_iter().flatten().min();
                noted = false;
            }
            // Nothing waits for its answer: a program may hang, and the accelerators go back in half a second.
            _ = desktop.tick(), if asked.is_none() && (wanted.idle || wanted.metered) => {
                let (sensors, now) = (sensors.clone(), clock.now());
                asked = Some(tokio::task::spawn_blocking(move || sensors.desktop(wanted, now)));
                continue;
            }
            told = answer(&mut asked) => {
                asked = None;
                (seated, known) = (told, true);
                senses.metered = seated.1;
            }
            _ = fast.tick(), if watch_gpus => {
                let ours = engines(&services);
                let working = services.in_flight() > 0;
                let foreign = look(&sensors, move |sensors| sensors.foreign_gpu(&ours, working)).await;
                // The runners of an owner's server are no children of ours, and their work is.
                senses.foreign_gpu = if services.work_outside(LINGERS) { 0 } else { foreign };
            }
        }
        let (said, now) = (*pause.borrow_and_update(), clock.now());
        let local = local(now.0, &zone);
        // Work and files go into one count, anew each time: what is left of it is handed out below.
        transfer.today(services.gate().came(), now);
        senses.transferred = transfer.today(services.transferred(), now);
        // Every two seconds, and before anybody is told that the day is used up: a restart gives no more of it.
        if !noted || section.caps.is_used_up(senses.transferred) {
            noted = true;
            if let Err(error) = transfer.note() {
                tracing::warn!(%error, "the day's transfers cannot be noted down");
            }
        }
        let decision = watch.judge(&section, said, local, clock.mono(), &senses);
        let wait =
            decision.wait.map(|wait| if wait == Wait::Metered && !known { Wait::Asking } else { wait });
        services.gate().set(wait, section.caps.transfer_left(senses.transferred));
        services.rest(decision.rest);
        services.yield_gpus(decision.yield_gpus);
    }
}

/// What the desktop said last: time since somebody used it, and whether its network is metered.
type Seated = (Option<Duration>, bool);

/// The answer to what was asked; never, where nothing was. May be dropped and asked again.
async fn answer(asked: &mut Option<JoinHandle<Seated>>) -> Seated {
    match asked {
        Some(asked) => asked.await.unwrap_or_default(),
        None => std::future::pending().await,
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
