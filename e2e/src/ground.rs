//! The ground a test stands on: waiting for a condition with a deadline.

use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// How often a condition is looked at. A poll is not a sleep: it ends the moment the condition holds.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Looks at a condition until it gives a value, or fails after the deadline naming what was awaited.
///
/// # Errors
/// The deadline passed, or the condition itself failed.
pub async fn until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut looks = tokio::time::interval(LOOK_EVERY);
    loop {
        looks.tick().await;
        if let Some(value) = look().await? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {deadline:?} for {what}");
        }
    }
}

/// Keeps other tests of the suite waiting while it lives, whatever runner started them: gates measure deadlines, and two
/// of them at once would measure each other.
///
/// # Errors
/// The lock file cannot be made.
pub fn alone() -> Result<Alone> {
    let path = std::env::temp_dir().join("cxmpute-e2e.lock");
    let file = std::fs::File::options().create(true).truncate(false).write(true).open(path)?;
    file.lock()?;
    Ok(Alone { _file: file })
}

/// The machine, held. Dropping it lets the next test go.
#[derive(Debug)]
pub struct Alone {
    _file: std::fs::File,
}
