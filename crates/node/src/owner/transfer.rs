//! How much was transferred on one day. A day is a day in UTC; the count survives a restart.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use cxmpute_wire::{Bytes, Timestamp};
use serde::{Deserialize, Serialize};

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

/// Bytes of one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
struct Day {
    /// Days since 1970.
    day: i64,
    bytes: u64,
}

/// The count with its file.
#[derive(Debug)]
pub struct Transfer {
    file: PathBuf,
    day: Day,
    /// What is in the file.
    noted: Day,
}

impl Transfer {
    /// Goes on where the file of this data directory ends.
    #[must_use]
    pub fn open(data_dir: &Path) -> Self {
        let file = data_dir.join("transfer-count.json");
        let day = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let day = day.unwrap_or_default();
        Self { file, day, noted: day }
    }

    /// Takes what was transferred since the last time; gives all of this day. A clock that went back starts no new day.
    pub fn today(&mut self, since_last: &AtomicU64, now: Timestamp) -> Bytes {
        let day = now.0.div_euclid(DAY_MS);
        if day > self.day.day {
            self.day = Day { day, bytes: 0 };
        }
        self.day.bytes = self.day.bytes.saturating_add(since_last.swap(0, Ordering::Relaxed));
        Bytes(self.day.bytes)
    }

    /// Writes the count down, where it changed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn note(&mut self) -> std::io::Result<()> {
        if self.noted == self.day {
            return Ok(());
        }
        let beside = self.file.with_extension("new");
        std::fs::write(&beside, serde_json::to_vec(&self.day)?)?;
        std::fs::rename(&beside, &self.file)?;
        self.noted = self.day;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_days_count_goes_on_after_a_restart_and_ends_with_the_day() {
        let dir = tempfile::tempdir().unwrap();
        let counter = AtomicU64::new(7);
        let mut transfer = Transfer::open(dir.path());
        assert_eq!(transfer.today(&counter, Timestamp(DAY_MS)), Bytes(7));
        transfer.note().unwrap();
        counter.store(3, Ordering::Relaxed);
        let mut again = Transfer::open(dir.path());
        assert_eq!(again.today(&counter, Timestamp(DAY_MS + 5)), Bytes(10));
        assert_eq!(again.today(&counter, Timestamp(5)), Bytes(10), "the clock went back");
        counter.store(1, Ordering::Relaxed);
        assert_eq!(again.today(&counter, Timestamp(2 * DAY_MS)), Bytes(1));
        std::fs::write(dir.path().join("transfer-count.json"), "no count").unwrap();
        assert_eq!(Transfer::open(dir.path()).today(&counter, Timestamp(0)), Bytes(0));
    }
}
