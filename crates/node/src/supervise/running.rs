//! An engine that runs: a process or a container, ended in the same words.

use cxmpute_wire::Code;
use nix::sys::signal::Signal;

use super::container::Container;
use super::process::Process;

/// What runs.
#[derive(Debug)]
pub enum Running {
    /// A child process.
    Process(Box<Process>),
    /// A container.
    Container(Container),
}

/// How an engine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// `engine_failed`, or `out_of_memory` where that is known.
    pub code: Code,
    /// For people.
    pub text: String,
}

impl Default for Ending {
    fn default() -> Self {
        Self { code: Code::EngineFailed, text: "nobody saw how".to_owned() }
    }
}

impl Running {
    /// Its process id on this machine.
    #[must_use]
    pub const fn pid(&self) -> u32 {
        match self {
            Self::Process(process) => process.pid(),
            Self::Container(container) => container.pid(),
        }
    }

    /// Waits for its end. May be dropped while it waits and asked again.
    pub async fn ended(&mut self) -> Ending {
        match self {
            Self::Process(process) => process.ended().await,
            Self::Container(container) => container.ended().await,
        }
    }

    /// Asks it to end.
    pub fn terminate(&self, politely: Signal) {
        match self {
            Self::Process(process) => process.terminate(politely),
            Self::Container(container) => container.signal(politely),
        }
    }

    /// Ends it, with all that it started.
    pub fn kill(&self) {
        match self {
            Self::Process(process) => process.kill(),
            Self::Container(container) => container.signal(Signal::SIGKILL),
        }
    }
}
