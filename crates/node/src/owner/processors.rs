//! Leaves processors to the owner: this program and all that it starts run on the others.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use super::Caps;

/// Takes this thread off the owner's processors, which are the first ones of those that it may use. Threads and programs
/// that it starts later follow, so this comes before all of them. Gives how many processors are left.
///
/// # Errors
/// The system does not let it choose its processors.
pub fn leave(caps: &Caps) -> Result<u32, Errno> {
    const THIS_THREAD: Pid = Pid::from_raw(0);
    let may = sched_getaffinity(THIS_THREAD)?;
    let all: Vec<usize> = (0..CpuSet::count()).filter(|at| may.is_set(*at).unwrap_or(false)).collect();
    let threads = u32::try_from(all.len()).unwrap_or(u32::MAX);
    let left = caps.processors(threads);
    if left < threads {
        let mut ours = CpuSet::new();
        for at in all.iter().rev().take(usize::try_from(left).unwrap_or(usize::MAX)) {
            ours.set(*at)?;
        }
        sched_setaffinity(THIS_THREAD, &ours)?;
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Processors of a program that this thread starts.
    fn of_children() -> u32 {
        let output = std::process::Command::new("nproc").env_clear().output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "a thread of its own: the other tests keep their processors"
    )]
    fn what_is_started_later_leaves_them_too() {
        let of = |reserved_cores| Caps { reserved_cores, ..Caps::default() };
        let changed = std::thread::spawn(move || {
            let before = of_children();
            assert_eq!((leave(&of(Some(0))), of_children()), (Ok(before), before));
            let left = leave(&of(Some(1))).unwrap();
            assert_eq!((left, of_children()), ((before - 1).max(1), left));
            assert_eq!((leave(&of(Some(u32::MAX))), of_children()), (Ok(1), 1), "one is always left");
        });
        changed.join().unwrap();
    }
}
