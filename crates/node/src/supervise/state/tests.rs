use proptest::prelude::*;

use super::*;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Plays a table of (moment in seconds, event, expected act, expected state).
fn play(table: &[(u64, Event, Act, ServiceState)]) -> Machine {
    let mut machine = Machine::default();
    machine.set_start_budget(Some(s(300)));
    assert_eq!(machine.begin(), Act::Prepare);
    for (at, event, act, state) in table {
        assert_eq!(machine.step(*event, s(*at)), *act, "{event:?} at {at}");
        assert_eq!(machine.state(), *state, "{event:?} at {at}");
    }
    machine
}

const UP: [(u64, Event, Act, ServiceState); 3] = [
    (0, Event::Prepared, Act::Start, ServiceState::Loading),
    (0, Event::Started, Act::Ask, ServiceState::Loading),
    (1, Event::SaysReady, Act::Wait(s(301)), ServiceState::Ready),
];

fn after_up(rest: &[(u64, Event, Act, ServiceState)]) -> Machine {
    play(&[&UP[..], rest].concat())
}

#[test]
fn a_crash_after_health_is_mended_at_once() {
    after_up(&[
        (100, Event::Ended, Act::Prepare, ServiceState::Verifying),
        (100, Event::Prepared, Act::Start, ServiceState::Loading),
        (100, Event::Started, Act::Ask, ServiceState::Loading),
        (101, Event::SaysReady, Act::Wait(s(401)), ServiceState::Ready),
    ]);
}

#[test]
fn an_engine_that_never_gets_ready_waits_longer_each_time() {
    play(&[
        (0, Event::Prepared, Act::Start, ServiceState::Loading),
        (0, Event::Ended, Act::Wait(s(10)), ServiceState::Failed),
        (10, Event::Time, Act::Prepare, ServiceState::Verifying),
        (10, Event::Prepared, Act::Start, ServiceState::Loading),
        (10, Event::Started, Act::Ask, ServiceState::Loading),
        (11, Event::Ended, Act::Wait(s(31)), ServiceState::Failed),
    ]);
}

#[test]
fn a_start_that_takes_too_long_is_ended() {
    play(&[
        (0, Event::Prepared, Act::Start, ServiceState::Loading),
        (0, Event::Started, Act::Ask, ServiceState::Loading),
        (200, Event::SaysNothing, Act::Wait(s(203)), ServiceState::Loading),
        (301, Event::SaysNothing, Act::Terminate, ServiceState::Loading),
        (301, Event::Time, Act::Wait(s(311)), ServiceState::Loading),
        (311, Event::Time, Act::Kill, ServiceState::Loading),
        (311, Event::Ended, Act::Wait(s(321)), ServiceState::Failed),
    ]);
}

#[test]
fn three_bad_probes_in_a_row_start_an_engine_anew() {
    after_up(&[
        (301, Event::Time, Act::Probe, ServiceState::Ready),
        (302, Event::ProbeBad, Act::Wait(s(312)), ServiceState::Ready),
        (312, Event::Time, Act::Probe, ServiceState::Ready),
        (312, Event::ProbeBusy, Act::Wait(s(322)), ServiceState::Ready),
        (322, Event::ProbeBad, Act::Wait(s(332)), ServiceState::Ready),
        (332, Event::ProbeBad, Act::Terminate, ServiceState::Loading),
        (333, Event::Ended, Act::Prepare, ServiceState::Verifying),
    ]);
}

#[test]
fn work_that_succeeds_spares_the_probe() {
    let mut machine = after_up(&[]);
    machine.worked(s(200));
    assert_eq!(machine.step(Event::Time, s(301)), Act::Wait(s(500)));
    assert_eq!(machine.step(Event::Time, s(500)), Act::Probe);
}

#[test]
fn missing_files_are_looked_for_again() {
    play(&[
        (0, Event::Unprepared, Act::Wait(s(5)), ServiceState::Failed),
        (5, Event::Time, Act::Prepare, ServiceState::Verifying),
        (5, Event::Prepared, Act::Start, ServiceState::Loading),
    ]);
}

#[test]
fn a_stop_is_polite_first_and_final() {
    after_up(&[
        (50, Event::Stop, Act::Terminate, ServiceState::Stopping),
        (50, Event::Time, Act::Wait(s(60)), ServiceState::Stopping),
        (60, Event::Time, Act::Kill, ServiceState::Stopping),
        (60, Event::Ended, Act::Finish, ServiceState::Absent),
    ]);
    play(&[(0, Event::Stop, Act::Finish, ServiceState::Absent)]);
}

#[test]
fn a_stop_during_a_restart_is_not_forgotten() {
    after_up(&[
        (301, Event::ProbeBad, Act::Wait(s(311)), ServiceState::Ready),
        (311, Event::ProbeBad, Act::Wait(s(321)), ServiceState::Ready),
        (321, Event::ProbeBad, Act::Terminate, ServiceState::Loading),
        (322, Event::Stop, Act::Wait(s(331)), ServiceState::Stopping),
        (323, Event::Ended, Act::Finish, ServiceState::Absent),
    ]);
}

#[test]
fn with_a_trial_only_work_makes_an_engine_ready() {
    let mut machine = Machine::default();
    machine.set_start_budget(Some(s(300)));
    machine.set_trial(true);
    assert_eq!(machine.begin(), Act::Prepare);
    for (at, event, act, state) in [
        (0, Event::Prepared, Act::Start, ServiceState::Loading),
        (0, Event::Started, Act::Ask, ServiceState::Loading),
        (1, Event::SaysReady, Act::Probe, ServiceState::Loading),
        (40, Event::ProbeBad, Act::Wait(s(43)), ServiceState::Loading),
        (43, Event::Time, Act::Ask, ServiceState::Loading),
        (43, Event::SaysReady, Act::Probe, ServiceState::Loading),
        (44, Event::ProbeGood, Act::Wait(s(344)), ServiceState::Ready),
        (50, Event::Ended, Act::Prepare, ServiceState::Verifying),
        (50, Event::Prepared, Act::Start, ServiceState::Loading),
        (50, Event::Started, Act::Ask, ServiceState::Loading),
        (51, Event::SaysReady, Act::Probe, ServiceState::Loading),
        (351, Event::ProbeBad, Act::Terminate, ServiceState::Loading),
        (352, Event::Ended, Act::Wait(s(362)), ServiceState::Failed),
    ] {
        assert_eq!((machine.step(event, s(at)), machine.state()), (act, state), "{event:?} at {at}");
    }
}

fn answers(act: Act, chance: u8) -> Event {
    let pick = |events: &[Event]| events[usize::from(chance) % events.len()];
    match act {
        Act::Prepare => pick(&[Event::Prepared, Event::Prepared, Event::Unprepared]),
        Act::Start => pick(&[Event::Started, Event::Started, Event::Ended]),
        Act::Ask => pick(&[Event::SaysReady, Event::SaysNothing, Event::Ended, Event::WrongModel]),
        Act::Probe => pick(&[Event::ProbeGood, Event::ProbeBusy, Event::ProbeBad, Event::Ended]),
        Act::Terminate | Act::Kill => pick(&[Event::Time, Event::Ended]),
        Act::Wait(_) => pick(&[Event::Time, Event::Time, Event::Ended]),
        Act::Finish => Event::Time,
    }
}

proptest! {
    /// One process at a time, no act without sense, and a stop always comes to its end.
    #[test]
    fn whatever_happens_there_is_one_process_and_an_end(
        chances in proptest::collection::vec(any::<u8>(), 1..200),
        stop_after in 0usize..200,
        trial: bool,
    ) {
        let mut machine = Machine::default();
        machine.set_trial(trial);
        machine.set_start_budget(Some(s(300)));
        let (mut now, mut act, mut process, mut killed) = (Duration::ZERO, machine.begin(), false, false);
        for (at, chance) in chances.iter().enumerate() {
            if act == Act::Finish {
                break;
            }
            // An order to end a process is always carried out first.
            let interruptible = !matches!(act, Act::Terminate | Act::Kill);
            let mut event =
                if at == stop_after && interruptible { Event::Stop } else { answers(act, *chance) };
            match act {
                Act::Start if event != Event::Stop => {
                    prop_assert!(!process, "a second process");
                    process = event == Event::Started;
                }
                Act::Ask | Act::Probe | Act::Terminate | Act::Kill => prop_assert!(process, "{act:?} without a process"),
                Act::Wait(until) => {
                    if event == Event::Ended && !process {
                        event = Event::Time;
                    }
                    if event == Event::Time {
                        prop_assert!(until > now, "a wait for the past");
                        now = until;
                    }
                }
                _ => {}
            }
            killed = process && (killed || act == Act::Kill);
            if event == Event::Ended {
                process = false;
            }
            now += Duration::from_millis(u64::from(*chance));
            act = machine.step(event, now);
            prop_assert_eq!(machine.state() == ServiceState::Absent, act == Act::Finish);
            if machine.state() == ServiceState::Ready {
                prop_assert!(process);
            }
        }
        if matches!(act, Act::Terminate | Act::Kill) {
            killed = killed || act == Act::Kill;
            act = machine.step(Event::Time, now);
        }
        if act != Act::Finish {
            act = machine.step(Event::Stop, now);
        }
        for _ in 0..10 {
            let event = match act {
                Act::Finish => break,
                // What was killed ends.
                Act::Wait(_) if killed => { process = false; Event::Ended }
                Act::Wait(until) => { now = until; Event::Time }
                Act::Kill => { process = false; Event::Ended }
                _ => Event::Time,
            };
            act = machine.step(event, now);
        }
        prop_assert_eq!(act, Act::Finish);
        prop_assert!(!process);
    }
}
