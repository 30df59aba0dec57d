//! Reads the machine's sensors: power supply, temperatures, terminals, desktop and accelerators. What is not there is not
//! sensed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use cxmpute_wire::Timestamp;
use parking_lot::Mutex;

use super::Senses;
use super::desktop::Programs;
use crate::diagnose::gpu;

/// Sensors of processors, by the names that Linux gives their drivers.
const PROCESSORS: [&str; 5] = ["coretemp", "k10temp", "zenpower", "cpu_thermal", "soc_thermal"];
/// Temperatures above this are no temperatures of a machine that runs.
const HOTTEST: u32 = 150;

/// Where the senses come from.
#[derive(Clone, Debug)]
pub enum Sensors {
    /// This machine.
    Machine,
    /// A script, for tests; no configuration leads here.
    Scripted(Arc<Mutex<Senses>>),
}

/// What of the desktop matters to the owner's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whether somebody sits at it.
    pub idle: bool,
    /// Whether its network is metered.
    pub metered: bool,
}

impl Sensors {
    /// Whether there are accelerators to be watched.
    #[must_use]
    pub fn watch_gpus(&self) -> bool {
        match self {
            Self::Machine => gpu::count() > 0,
            Self::Scripted(_) => true,
        }
    }

    /// All that changes slowly. Blocks for some milliseconds.
    #[must_use]
    pub fn look(&self, now: Timestamp) -> Senses {
        match self {
            Self::Machine => {
                let root = Path::new("/");
                let gpus =
                    gpu::load().into_iter().map(|load| load.temperature).filter(|celsius| *celsius > 0);
                let celsius = gpus.chain(processor_celsius(root)).filter(|celsius| *celsius < HOTTEST).max();
                Senses { on_battery: on_battery(root), celsius, idle: idle(root, now), ..Senses::default() }
            }
            Self::Scripted(senses) => *senses.lock(),
        }
    }

    /// What the desktop tells: time since somebody used a graphical session, and whether the network is metered. What `wanted`
    /// does not name is not asked. Blocks for some milliseconds, for seconds where a program hangs.
    #[must_use]
    pub fn desktop(&self, wanted: Wanted, now: Timestamp) -> (Option<Duration>, bool) {
        match self {
            Self::Machine => {
                let programs = Programs::default();
                let idle = wanted.idle.then(|| programs.idle(now)).flatten();
                (idle, wanted.metered && programs.is_metered())
            }
            // Its idleness is seen with everything else.
            Self::Scripted(senses) => (None, wanted.metered && senses.lock().metered),
        }
    }

    /// What other programs take of the busiest accelerator, in percent. `ours` are the processes of our engines; `working`
    /// says whether they have work. Blocks for some milliseconds.
    #[must_use]
    pub fn foreign_gpu(&self, ours: &[u32], working: bool) -> u32 {
        match self {
            Self::Machine => gpu::foreign(ours, working),
            Self::Scripted(senses) => senses.lock().foreign_gpu,
        }
    }
}

/// Entries of a directory; none where it is missing.
fn entries(dir: PathBuf) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

fn word(path: PathBuf) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A battery is being emptied, and no other supply is on.
fn on_battery(root: &Path) -> bool {
    let mut discharging = false;
    for supply in entries(root.join("sys/class/power_supply")) {
        // Batteries of mice and the like say `Device`.
        let of_machine = word(supply.join("scope")).is_none_or(|scope| scope != "Device");
        match word(supply.join("type")).as_deref() {
            Some("Battery") if of_machine => {
                discharging |= word(supply.join("status")).is_some_and(|status| status == "Discharging");
            }
            Some("Mains" | "USB") if word(supply.join("online")).is_some_and(|online| online == "1") => {
                return false;
            }
            _ => {}
        }
    }
    discharging
}

/// The temperatures of the processors.
fn processor_celsius(root: &Path) -> Vec<u32> {
    let chips = entries(root.join("sys/class/hwmon"));
    let processors =
        chips.filter(|chip| word(chip.join("name")).is_some_and(|name| PROCESSORS.contains(&name.as_str())));
    let input = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("temp") && name.ends_with("_input")
    };
    let inputs = processors.flat_map(entries).filter(input);
    inputs.filter_map(|path| word(path)?.parse::<u32>().ok()).map(|thousandths| thousandths / 1000).collect()
}

/// Time since somebody typed at a terminal: a terminal is read when a key was pressed. None without terminals.
fn idle(root: &Path, now: Timestamp) -> Option<Duration> {
    let numbered = |path: &PathBuf, prefix: &str| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let number = name.strip_prefix(prefix).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let consoles = entries(root.join("dev")).filter(|path| numbered(path, "tty"));
    let terminals = entries(root.join("dev/pts")).filter(|path| numbered(path, ""));
    let now = Duration::from_millis(u64::try_from(now.0).unwrap_or(0));
    let since = |path: PathBuf| {
        let read = std::fs::metadata(path).ok()?.accessed().ok()?;
        // Before 1970 nobody typed.
        Some(now.saturating_sub(read.duration_since(SystemTime::UNIX_EPOCH).ok()?))
    };
    consoles.chain(terminals).filter_map(since).min()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_laptop_knows_its_supply_and_a_mouse_is_no_laptop() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert!(!on_battery(root), "a machine without supplies");
        write(root, "sys/class/power_supply/mouse/type", "Battery\n");
        write(root, "sys/class/power_supply/mouse/scope", "Device\n");
        write(root, "sys/class/power_supply/mouse/status", "Discharging\n");
        assert!(!on_battery(root));
        write(root, "sys/class/power_supply/BAT0/type", "Battery\n");
        write(root, "sys/class/power_supply/BAT0/status", "Discharging\n");
        assert!(on_battery(root));
        write(root, "sys/class/power_supply/AC/type", "Mains\n");
        write(root, "sys/class/power_supply/AC/online", "0\n");
        assert!(on_battery(root));
        write(root, "sys/class/power_supply/AC/online", "1\n");
        assert!(!on_battery(root));
    }

    #[test]
    fn only_processors_are_asked_for_their_temperature() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(processor_celsius(root), Vec::<u32>::new());
        write(root, "sys/class/hwmon/hwmon0/name", "nvme\n");
        write(root, "sys/class/hwmon/hwmon0/temp1_input", "99000\n");
        write(root, "sys/class/hwmon/hwmon1/name", "coretemp\n");
        write(root, "sys/class/hwmon/hwmon1/temp1_input", "61000\n");
        write(root, "sys/class/hwmon/hwmon1/temp2_input", "nonsense\n");
        write(root, "sys/class/hwmon/hwmon1/temp1_max", "100000\n");
        assert_eq!(processor_celsius(root), [61]);
    }

    #[test]
    fn the_terminal_that_was_read_last_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let now = Timestamp(1_000_000_000);
        assert_eq!(idle(root, now), None);
        let read = |name: &str, seconds_ago: u64| {
            write(root, name, "");
            let when = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 - seconds_ago);
            let times = fs::FileTimes::new().set_accessed(when);
            fs::File::options().write(true).open(root.join(name)).unwrap().set_times(times).unwrap();
        };
        read("dev/pts/ptmx", 1);
        read("dev/ttyS0", 2);
        assert_eq!(idle(root, now), None, "neither is a place where somebody sits");
        read("dev/tty1", 500);
        assert_eq!(idle(root, now), Some(Duration::from_secs(500)));
        read("dev/pts/3", 30);
        assert_eq!(idle(root, now), Some(Duration::from_secs(30)));
    }

    /// Real files of the machine that runs the tests: whatever they say, nothing breaks.
    #[test]
    fn this_machine_can_be_looked_at() {
        let senses = Sensors::Machine.look(Timestamp(0));
        assert!(senses.celsius.is_none_or(|celsius| celsius < HOTTEST));
        assert_eq!(senses.foreign_gpu, 0, "that is looked at on its own");
    }
}
