//! Sums of files that the owner has put somewhere, so that each is read once and not with every start. A file that has
//! another size, place or time is read again.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::partial::sum_of;
use super::shelf::write_durably;

/// What is remembered between runs, in the node's data directory.
#[derive(Debug)]
pub struct Hashes {
    file: PathBuf,
    known: Arc<Mutex<HashMap<PathBuf, Known>>>,
    /// One at a time writes them down.
    writing: Arc<Mutex<()>>,
}

/// A file as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Known {
    mark: Mark,
    sha256: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Mark {
    device: u64,
    inode: u64,
    size: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Mark {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            seconds: meta.mtime(),
            nanoseconds: meta.mtime_nsec(),
        })
    }
}

/// Ends a sum that nobody waits for any more.
struct Given(Arc<AtomicBool>);

impl Drop for Given {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Hashes {
    /// What an earlier run has noted in this data directory.
    #[must_use]
    pub fn open(data_dir: &Path) -> Self {
        let file = data_dir.join("hashes.json");
        let known: Option<Vec<(PathBuf, Known)>> =
            std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
        let known = known.unwrap_or_default().into_iter().collect();
        Self { file, known: Arc::new(Mutex::new(known)), writing: Arc::default() }
    }

    /// The sum of a file; `seen` is told how many bytes have been read, where it has to be read.
    ///
    /// # Errors
    /// It cannot be read, or it changed while it was.
    pub async fn sum(&self, path: &Path, seen: impl Fn(u64) + Send + 'static) -> io::Result<Digest> {
        let mark = Mark::of(path)?;
        // Under another name it is the same file.
        let known = self.known.lock().values().find(|known| known.mark == mark).map(|known| known.sha256);
        if let Some(sha256) = known {
            return Ok(sha256);
        }
        let given_up = Arc::new(AtomicBool::new(false));
        let (given, own) = (Given(given_up.clone()), path.to_owned());
        let reading = move || {
            sum_of(&own, |at| {
                seen(at);
                !given_up.load(Ordering::Relaxed)
            })
        };
        let sha256 = tokio::task::spawn_blocking(reading).await.map_err(io::Error::other)??;
        drop(given);
        if Mark::of(path)? != mark {
            return Err(io::Error::other("it changes while it is read"));
        }
        self.keep(path, Known { mark, sha256 }).await;
        Ok(sha256)
    }

    /// Sums and sizes of files that are still as they were when they were read.
    #[must_use]
    pub fn known(&self) -> Vec<(Digest, u64)> {
        let known = self.known.lock();
        let still = known.iter().filter(|(path, known)| Mark::of(path).is_ok_and(|mark| mark == known.mark));
        still.map(|(_, known)| (known.sha256, known.mark.size)).collect()
    }

    /// Notes the sum of a file that was taken elsewhere.
    ///
    /// # Errors
    /// The file is not there.
    pub async fn note(&self, path: &Path, sha256: Digest) -> io::Result<()> {
        self.keep(path, Known { mark: Mark::of(path)?, sha256 }).await;
        Ok(())
    }

    /// Remembers it, and writes everything down where that may wait for the disk.
    async fn keep(&self, path: &Path, known: Known) {
        self.known.lock().insert(path.to_owned(), known);
        let (file, all, writing) = (self.file.clone(), self.known.clone(), self.writing.clone());
        let write = move || {
            let _turn = writing.lock();
            let noted: Vec<PathBuf> = all.lock().keys().cloned().collect();
            let gone: Vec<PathBuf> = noted.into_iter().filter(|path| !path.exists()).collect();
            let mut now = all.lock();
            now.retain(|path, _| !gone.contains(path));
            let text = serde_json::to_vec(&now.iter().collect::<Vec<_>>()).map_err(io::Error::other)?;
            drop(now);
            write_durably(&file, &text)
        };
        let written = tokio::task::spawn_blocking(write).await.map_err(io::Error::other);
        if let Err(error) = written.and_then(|written| written) {
            tracing::warn!(%error, "the sums of model files are not remembered; they are read again with the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_read_once_until_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model");
        std::fs::write(&path, "abc").unwrap();
        let reads = Arc::new(Mutex::new(0));
        let count = |reads: &Arc<Mutex<u32>>| {
            let reads = reads.clone();
            move |_| *reads.lock() += 1
        };
        let hashes = Hashes::open(dir.path());
        assert_eq!(hashes.sum(&path, count(&reads)).await.unwrap(), Digest::of(b"abc"));
        assert_eq!(hashes.sum(&path, count(&reads)).await.unwrap(), Digest::of(b"abc"));
        // The next run knows it, too.
        let hashes = Hashes::open(dir.path());
        assert_eq!(hashes.sum(&path, count(&reads)).await.unwrap(), Digest::of(b"abc"));
        let other = dir.path().join("other");
        std::fs::hard_link(&path, &other).unwrap();
        assert_eq!(hashes.sum(&other, count(&reads)).await.unwrap(), Digest::of(b"abc"));
        assert_eq!(*reads.lock(), 1);
        std::fs::write(&path, "abcd").unwrap();
        assert_eq!(hashes.sum(&path, count(&reads)).await.unwrap(), Digest::of(b"abcd"));
        assert_eq!(*reads.lock(), 2);
    }
}
