//! One node at a time in a data directory. Whether one runs is what the system says of a lock, not whether it answers in
//! time; the lock ends with its process, however that ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;

use anyhow::{Context, Result};

/// The lock's file in the data directory.
const FILE: &str = "lock";

/// The right to be the node of a data directory, as long as this is held.
#[derive(Debug)]
pub struct Hold {
    _held: File,
}

/// What came of asking for it.
#[derive(Debug)]
pub enum Taken {
    /// It is ours.
    Ours(Hold),
    /// A node has it: its process id, where that can be read.
    Theirs(Option<u32>),
}

impl Hold {
    /// Takes it, if no node has it.
    ///
    /// # Errors
    /// The directory is not there or cannot be written, or its file system knows no locks.
    pub fn take(data_dir: &Path) -> Result<Taken> {
        let path = data_dir.join(FILE);
        let open = || -> std::io::Result<Taken> {
            let mut file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let mut text = String::new();
                    let _ = file.read_to_string(&mut text);
                    return Ok(Taken::Theirs(text.trim().parse().ok()));
                }
                Err(TryLockError::Error(error)) => return Err(error),
            }
            file.set_len(0)?;
            file.rewind()?;
            write!(file, "{}", std::process::id())?;
            Ok(Taken::Ours(Self { _held: file }))
        };
        open().with_context(|| format!("locking {}", path.display()))
    }

    /// Takes it, or says who has it.
    ///
    /// # Errors
    /// A node runs in this directory, or the directory cannot be used.
    pub fn take_or_say(data_dir: &Path) -> Result<Self> {
        match Self::take(data_dir)? {
            Taken::Ours(hold) => Ok(hold),
            Taken::Theirs(pid) => {
                let pid = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
                anyhow::bail!("A node already runs in {}{pid}.", data_dir.display())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_node_and_the_next_one_after_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        assert!(Hold::take(&data).is_err(), "nothing is made for a node that is not there");
        std::fs::create_dir(&data).unwrap();
        let first = Hold::take_or_say(&data).unwrap();
        let error = Hold::take_or_say(&data).unwrap_err().to_string();
        assert!(error.contains(&format!("already runs in {}", data.display())), "{error}");
        assert!(error.contains(&format!("(pid {})", std::process::id())), "{error}");
        drop(first);
        Hold::take_or_say(&data).unwrap();
    }
}
