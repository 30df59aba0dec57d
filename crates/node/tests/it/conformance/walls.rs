//! What an engine may not see and do, looked at from outside.

use std::path::{Path, PathBuf};

/// What is between an engine and the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walls {
    /// Nothing of ours.
    None,
    /// No rights to gain, and no calls of the system that it does not need.
    Nested,
    /// The same, another user, and no files of its owner.
    Network,
    /// The same, and no network.
    Whole,
}

impl Walls {
    /// The process is behind them.
    pub fn hold(self, pid: u32, data_dir: &Path) {
        if self == Self::None {
            return;
        }
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
        if self == Self::Nested {
            return;
        }
        assert!(!status.contains("Uid:\t0\t"), "{status}");
        if self == Self::Whole {
            let network = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
            let others = network.lines().skip(2).filter(|line| !line.trim().starts_with("lo:"));
            assert_eq!(others.count(), 0, "{network}");
        }
        let seen = PathBuf::from(format!("/proc/{pid}/root{}", data_dir.display()));
        // Not there at all in a container.
        let names: Vec<_> =
            std::fs::read_dir(seen).into_iter().flatten().flatten().map(|entry| entry.file_name()).collect();
        assert!(names.iter().all(|name| name == "run" || name == "models"), "{names:?}");
    }
}
