//! Whether the system ended an engine because memory ran out. Linux sends SIGKILL and counts it (`oom_kill` in `/proc/vmstat`);
//! it does not tell a parent whom it meant, so an engine that was killed by nobody of us while the count rose was.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use cxmpute_wire::Code;
use nix::sys::signal::Signal;

use super::running::Ending;

/// How often the system has killed for lack of memory since it started; `None` where it does not count.
pub(super) fn kills() -> Option<u64> {
    count(&std::fs::read_to_string("/proc/vmstat").ok()?)
}

fn count(vmstat: &str) -> Option<u64> {
    vmstat.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
}

/// How a process ended that we killed or not, with the counts at its start and at its end.
pub(super) fn ending(status: ExitStatus, by_us: bool, before: Option<u64>, after: Option<u64>) -> Ending {
    let killed = status.signal() == Some(Signal::SIGKILL as i32) && !by_us;
    if killed && before.zip(after).is_some_and(|(before, after)| after > before) {
        return Ending {
            code: Code::OutOfMemory,
            text: format!("out of memory: the system killed it, {status}"),
        };
    }
    Ending { code: Code::EngineFailed, text: status.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kill_that_the_system_counted_and_nobody_of_us_sent_is_for_lack_of_memory() {
        assert_eq!(count("nr_free_pages 1\noom_kill 3\nswap_ra 9\n"), Some(3));
        assert_eq!(count("nr_free_pages 1\noom_kill_other 3\n"), None);
        let (killed, ended) = (ExitStatus::from_raw(9), ExitStatus::from_raw(1 << 8));
        for (status, by_us, before, after, expected) in [
            (killed, false, Some(1), Some(2), Code::OutOfMemory),
            (killed, true, Some(1), Some(2), Code::EngineFailed),
            (killed, false, Some(2), Some(2), Code::EngineFailed),
            (killed, false, None, Some(2), Code::EngineFailed),
            (ended, false, Some(1), Some(2), Code::EngineFailed),
        ] {
            assert_eq!(
                ending(status, by_us, before, after).code,
                expected,
                "{status} {by_us} {before:?} {after:?}"
            );
        }
    }

    #[test]
    fn this_system_counts() {
        assert!(kills().is_some(), "Linux has counted since 4.13");
    }
}
