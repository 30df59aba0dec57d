//! The owner's daily count. It survives a restart; a day is a day in UTC.

use std::path::{Path, PathBuf};

use cxmpute_runtime::Clock;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Milliseconds of a day.
const DAY_MS: i64 = 86_400_000;

/// URLs that were asked for on one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct DayCount {
    /// Days since 1970.
    pub day: i64,
    /// URLs.
    pub urls: u64,
}

impl DayCount {
    /// Takes `want` URLs of a day's `limit`; gives how many it got. A clock that went back starts no new day.
    pub fn take(&mut self, want: u64, limit: u64, day: i64) -> u64 {
        if day > self.day {
            *self = Self { day, urls: 0 };
        }
        let got = want.min(limit.saturating_sub(self.urls));
        self.urls += got;
        got
    }
}

/// The count with its file.
#[derive(Debug)]
pub struct Quota {
    file: PathBuf,
    limit: u64,
    clock: Clock,
    count: Mutex<DayCount>,
}

/// Where the count of a data directory lies.
#[must_use]
pub fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("scrape").join("count.json")
}

/// The count of a data directory, for its owner to see; none if nothing was ever counted.
#[must_use]
pub fn read(file: &Path) -> Option<DayCount> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

impl Quota {
    /// Goes on where the file ends. A damaged file counts as a used-up day only if it cannot be replaced.
    #[must_use]
    pub fn open(file: PathBuf, limit: u64, clock: Clock) -> Self {
        let count = Mutex::new(read(&file).unwrap_or_default());
        Self { file, limit, clock, count }
    }

    /// Takes up to `want` URLs; gives how many there were. Nothing is given that could not be noted down.
    pub fn take(&self, want: usize) -> usize {
        let mut count = self.count.lock();
        let mut next = *count;
        let day = self.clock.now().0.div_euclid(DAY_MS);
        let got = next.take(want as u64, self.limit, day);
        if got > 0
            && let Err(error) = write(&self.file, next)
        {
            tracing::error!(%error, file = %self.file.display(), "the daily count cannot be written, so nothing is fetched");
            return 0;
        }
        *count = next;
        usize::try_from(got).unwrap_or(want)
    }

    /// URLs of today, and the limit.
    #[must_use]
    pub fn today(&self) -> (u64, u64) {
        let count = *self.count.lock();
        let today = self.clock.now().0.div_euclid(DAY_MS) <= count.day;
        (if today { count.urls } else { 0 }, self.limit)
    }
}

fn write(file: &Path, count: DayCount) -> std::io::Result<()> {
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, serde_json::to_vec(&count)?)?;
    std::fs::rename(fresh, file)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_day_has_its_limit_and_the_next_day_begins_at_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::mock();
        let open = || Quota::open(dir.path().join("count.json"), 5, clock.clone());
        assert_eq!((open().take(3), open().take(3), open().take(1)), (3, 2, 0));
        assert_eq!(open().today(), (5, 5));
        clock.as_mock().unwrap().advance(Duration::from_hours(24));
        assert_eq!((open().today(), open().take(9)), ((0, 5), 5));
        // A clock that is put back does not give the day again.
        clock.as_mock().unwrap().set_wall(cxmpute_wire::unit::Timestamp(0));
        assert_eq!(open().take(1), 0);
    }

    #[test]
    fn what_cannot_be_noted_is_not_given() {
        let quota = Quota::open(PathBuf::from("/nowhere/at/all"), 5, Clock::mock());
        assert_eq!(quota.take(1), 0);
    }
}
