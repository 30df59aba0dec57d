//! The life of one engine as a pure machine: something happened, it is this late, therefore do that. The task that
//! carries it out is in [`super::service`].

use std::time::Duration;

use cxmpute_wire::control::ServiceState;

use super::restart::{Next, Restarts};
use crate::engines::profile::GRACE;

/// A starting engine is asked this often whether it is ready, at first …
const ASK_EVERY: Duration = Duration::from_millis(50);
/// … and this often once it has taken longer than [`ASK_OFTEN_FOR`].
const ASK_SELDOM: Duration = Duration::from_secs(3);
/// Most engines are ready within this time.
const ASK_OFTEN_FOR: Duration = Duration::from_secs(30);
/// Time between real probes of a ready engine; skipped when real work succeeded meanwhile.
const PROBE_EVERY: Duration = Duration::from_secs(300);
/// A probe that failed, or found all slots taken, is repeated after this time.
const PROBE_AGAIN: Duration = Duration::from_secs(10);
/// Failed probes in a row after which an engine is started anew.
const PROBE_FAILURES: u32 = 3;
/// Missing files are looked for again after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// Everything the engine needs is there.
    Prepared,
    /// Something it needs is not there.
    Unprepared,
    /// Its process runs (an owner's server always does).
    Started,
    /// Its process ended, or could not be started.
    Ended,
    /// It says that it is ready.
    SaysReady,
    /// It does not (yet).
    SaysNothing,
    /// It is ready, but with another model than planned.
    WrongModel,
    /// A real probe was answered.
    ProbeGood,
    /// All its slots are taken; that says nothing about it.
    ProbeBusy,
    /// A real probe was not answered, or wrongly.
    ProbeBad,
    /// It has to end.
    Stop,
    /// Nothing happened until the moment that [`Act::Wait`] named.
    Time,
}

/// What to do now; what comes of it is the next [`Event`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Look whether everything is there.
    Prepare,
    /// Start the process.
    Start,
    /// Ask whether it is ready.
    Ask,
    /// Ask for one real token or vector.
    Probe,
    /// Send the polite signal; then it is [`Event::Time`], or [`Event::Ended`] where there is no process.
    Terminate,
    /// Kill its whole group; then it is [`Event::Time`].
    Kill,
    /// Wait for an event until this moment.
    Wait(Duration),
    /// Nothing runs and nothing will.
    Finish,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Preparing,
    Missing {
        again: Duration,
    },
    Starting,
    Loading {
        since: Duration,
        ask: Duration,
    },
    /// It says that it is ready; now it has to do one piece of work.
    Trying {
        since: Duration,
    },
    Ready {
        probe: Duration,
        failures: u32,
    },
    Waiting {
        until: Duration,
    },
    Degraded {
        until: Duration,
    },
    Ending {
        since: Duration,
        was_ready: bool,
        for_ever: bool,
        killed: bool,
    },
    Finished,
}

/// One engine.
#[derive(Debug, Clone)]
pub struct Machine {
    phase: Phase,
    restarts: Restarts,
    start_budget: Option<Duration>,
    grace: Duration,
    trial: bool,
    last_work: Duration,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            phase: Phase::Preparing,
            restarts: Restarts::default(),
            start_budget: None,
            grace: GRACE,
            trial: false,
            last_work: Duration::ZERO,
        }
    }
}

impl Machine {
    /// The first thing to do.
    #[must_use]
    pub const fn begin(&self) -> Act {
        Act::Prepare
    }

    /// Time the engine may take to become ready; no end for servers that somebody else starts.
    pub fn set_start_budget(&mut self, budget: Option<Duration>) {
        self.start_budget = budget;
    }

    /// Time between the polite signal and the hard one.
    pub fn set_grace(&mut self, grace: Duration) {
        self.grace = grace;
    }

    /// Whether it counts as ready only once it has done one piece of work.
    pub fn set_trial(&mut self, trial: bool) {
        self.trial = trial;
    }

    /// Real work succeeded last at this moment.
    pub fn worked(&mut self, at: Duration) {
        self.last_work = self.last_work.max(at);
    }

    /// How the gateway is told about it.
    #[must_use]
    pub const fn state(&self) -> ServiceState {
        match self.phase {
            Phase::Preparing => ServiceState::Verifying,
            Phase::Missing { .. } | Phase::Waiting { .. } => ServiceState::Failed,
            Phase::Starting
            | Phase::Loading { .. }
            | Phase::Trying { .. }
            | Phase::Ending { for_ever: false, .. } => ServiceState::Loading,
            Phase::Ready { .. } => ServiceState::Ready,
            Phase::Degraded { .. } => ServiceState::Degraded,
            Phase::Ending { for_ever: true, .. } => ServiceState::Stopping,
            Phase::Finished => ServiceState::Absent,
        }
    }

    /// Takes an event in and says what to do.
    pub fn step(&mut self, event: Event, now: Duration) -> Act {
        match event {
            Event::Stop => self.stop(now),
            Event::Ended => self.ended(now),
            Event::Prepared if self.phase == Phase::Preparing => {
                self.phase = Phase::Starting;
                Act::Start
            }
            Event::Unprepared if self.phase == Phase::Preparing => {
                self.phase = Phase::Missing { again: now + LOOK_AGAIN };
                self.wait(now)
            }
            Event::Started if self.phase == Phase::Starting => {
                self.phase = Phase::Loading { since: now, ask: now };
                Act::Ask
            }
            Event::SaysReady => match self.phase {
                Phase::Loading { since, .. } if self.trial => {
                    self.phase = Phase::Trying { since };
                    Act::Probe
                }
                Phase::Loading { .. } => self.ready(now),
                _ => self.wait(now),
            },
            Event::ProbeGood | Event::ProbeBusy if matches!(self.phase, Phase::Trying { .. }) => {
                self.ready(now)
            }
            Event::ProbeBad if matches!(self.phase, Phase::Trying { .. }) => self.not_ready(now),
            Event::SaysNothing => self.not_ready(now),
            Event::WrongModel if self.has_process() => self.end(now, false),
            Event::ProbeGood => self.probed(now, now + PROBE_EVERY, Some(0)),
            Event::ProbeBusy => self.probed(now, now + PROBE_AGAIN, None),
            Event::ProbeBad => match self.phase {
                Phase::Ready { failures, .. } if failures + 1 >= PROBE_FAILURES => self.end(now, true),
                Phase::Ready { failures, .. } => self.probed(now, now + PROBE_AGAIN, Some(failures + 1)),
                _ => self.wait(now),
            },
            Event::Prepared | Event::Unprepared | Event::Started | Event::WrongModel | Event::Time => {
                self.wait(now)
            }
        }
    }

    /// Whether a process runs that has to be ended.
    const fn has_process(&self) -> bool {
        matches!(
            self.phase,
            Phase::Loading { .. } | Phase::Trying { .. } | Phase::Ready { .. } | Phase::Ending { .. }
        )
    }

    fn stop(&mut self, now: Duration) -> Act {
        match &mut self.phase {
            Phase::Ending { for_ever, .. } => {
                *for_ever = true;
                self.wait(now)
            }
            Phase::Ready { .. } | Phase::Trying { .. } | Phase::Loading { .. } => {
                self.phase = Phase::Ending { since: now, was_ready: true, for_ever: true, killed: false };
                Act::Terminate
            }
            _ => {
                self.phase = Phase::Finished;
                Act::Finish
            }
        }
    }

    fn end(&mut self, now: Duration, was_ready: bool) -> Act {
        self.phase = Phase::Ending { since: now, was_ready, for_ever: false, killed: false };
        Act::Terminate
    }

    fn ended(&mut self, now: Duration) -> Act {
        let was_ready = match self.phase {
            Phase::Ready { .. } => true,
            Phase::Ending { for_ever: true, .. } | Phase::Finished => {
                self.phase = Phase::Finished;
                return Act::Finish;
            }
            Phase::Ending { was_ready, .. } => was_ready,
            _ => false,
        };
        match self.restarts.after_end(now, was_ready) {
            Next::Now => {
                self.phase = Phase::Preparing;
                Act::Prepare
            }
            Next::After(wait) => {
                self.phase = Phase::Waiting { until: now + wait };
                self.wait(now)
            }
            Next::Degraded(wait) => {
                self.phase = Phase::Degraded { until: now + wait };
                self.wait(now)
            }
        }
    }

    fn ready(&mut self, now: Duration) -> Act {
        self.phase = Phase::Ready { probe: now + PROBE_EVERY, failures: 0 };
        self.wait(now)
    }

    fn not_ready(&mut self, now: Duration) -> Act {
        let (Phase::Loading { since, .. } | Phase::Trying { since }) = self.phase else {
            return self.wait(now);
        };
        let loading_for = now.saturating_sub(since);
        if self.start_budget.is_some_and(|budget| loading_for > budget) {
            return self.end(now, false);
        }
        let pause = if loading_for < ASK_OFTEN_FOR { ASK_EVERY } else { ASK_SELDOM };
        self.phase = Phase::Loading { since, ask: now + pause };
        self.wait(now)
    }

    fn probed(&mut self, now: Duration, next: Duration, failed: Option<u32>) -> Act {
        if let Phase::Ready { probe, failures, .. } = &mut self.phase {
            *probe = next;
            *failures = failed.unwrap_or(*failures);
        }
        self.wait(now)
    }

    /// Waits, or does what is due.
    fn wait(&mut self, now: Duration) -> Act {
        match &mut self.phase {
            Phase::Preparing => Act::Prepare,
            Phase::Starting => Act::Start,
            Phase::Missing { again: until } | Phase::Waiting { until } | Phase::Degraded { until } => {
                if now < *until {
                    return Act::Wait(*until);
                }
                self.phase = Phase::Preparing;
                Act::Prepare
            }
            Phase::Trying { .. } => Act::Probe,
            Phase::Loading { ask, .. } if now < *ask => Act::Wait(*ask),
            Phase::Loading { .. } => Act::Ask,
            Phase::Ready { probe, failures, .. } => {
                // Work that succeeded is as good as a probe.
                if self.last_work + PROBE_EVERY > *probe {
                    *probe = self.last_work + PROBE_EVERY;
                    *failures = 0;
                }
                if now < *probe { Act::Wait(*probe) } else { Act::Probe }
            }
            Phase::Ending { since, killed: false, .. } if now < *since + self.grace => {
                Act::Wait(*since + self.grace)
            }
            Phase::Ending { killed, .. } if !*killed => {
                *killed = true;
                Act::Kill
            }
            // A killed process ends; there is nothing else to do about one that does not.
            Phase::Ending { .. } => Act::Wait(now + self.grace.max(GRACE)),
            Phase::Finished => Act::Finish,
        }
    }
}

#[cfg(test)]
mod tests;
