//! A file on its way in: its bytes, its journal, and the sums taken while they arrive. Blocking; one holder at a time, over
//! all processes of the machine.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::digest::Digest;
use super::journal::{Journal, Piece};

/// Bytes that are read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// A place for a file, with its room on the disk, that nobody else fills.
#[derive(Debug)]
pub struct Claim {
    file: File,
    path: PathBuf,
    journal_path: PathBuf,
    size: u64,
    piece_bytes: u64,
}

/// A file that is being filled from its beginning.
#[derive(Debug)]
pub struct Partial {
    claim: Claim,
    journal: Journal,
    journal_file: File,
    /// Over everything so far.
    whole: Sha256,
    /// Over the piece that is being filled.
    piece: Sha256,
    at: u64,
    sources: BTreeSet<String>,
}

impl Claim {
    /// Takes the place for a file below `folder`, and room for what is missing where the file system can promise it;
    /// `None` while somebody else fills it.
    ///
    /// # Errors
    /// The disk is full, or the folder cannot be written.
    pub fn take(folder: &Path, digest: Digest, size: u64, piece_bytes: u64) -> io::Result<Option<Self>> {
        let path = folder.join(digest.file_name());
        loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
            // The one who had it may have made a blob of it, or deleted it, before the lock was free.
            if std::fs::metadata(&path)
                .is_ok_and(|now| now.ino() == file.metadata().map_or(0, |own| own.ino()))
            {
                let claim = Self {
                    file,
                    journal_path: path.with_added_extension("journal"),
                    path,
                    size,
                    piece_bytes,
                };
                if let Err(error) = claim.allocate() {
                    claim.discard()?;
                    return Err(error);
                }
                return Ok(Some(claim));
            }
        }
    }

    /// Bytes that the disk already gives to it.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub fn allocated(folder: &Path, digest: Digest) -> u64 {
        std::fs::metadata(folder.join(digest.file_name())).map_or(0, |meta| meta.blocks() * 512)
    }

    fn allocate(&self) -> io::Result<()> {
        #[cfg(target_os = "linux")]
        {
            use nix::errno::Errno;
            use nix::fcntl::{FallocateFlags, fallocate};
            let size = i64::try_from(self.size).unwrap_or(i64::MAX);
            match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, size) {
                // File systems that cannot promise room find out when they run out of it.
                Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Deletes what is there.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub fn discard(self) -> io::Result<()> {
        remove(&self.journal_path)?;
        remove(&self.path)
    }

    /// Goes on where the journal says: every piece that it names is read again and compared; the first that does not fit,
    /// and everything behind it, is as if it had never arrived. `seen` is told how far the reading is.
    ///
    /// # Errors
    /// The disk fails.
    pub fn resume(self, mut seen: impl FnMut(u64)) -> io::Result<Partial> {
        let fresh = Journal::new(self.size, self.piece_bytes);
        let known = std::fs::read(&self.journal_path).ok().and_then(|bytes| Journal::parse(&bytes));
        let known = known.filter(|known| known.size == self.size && known.piece_bytes == self.piece_bytes);
        let known = known.unwrap_or_else(|| fresh.clone());
        let (mut journal, mut whole, mut at) = (fresh, Sha256::new(), 0);
        let mut sources = BTreeSet::new();
        let mut buffer = vec![0; BUFFER_BYTES];
        for piece in known.pieces {
            let end = journal.end_of_piece(at);
            let (mut sum, mut after, mut from) = (Sha256::new(), whole.clone(), at);
            while from < end {
                let want = usize::try_from(end - from).unwrap_or(usize::MAX).min(BUFFER_BYTES);
                let got = self.file.read_at(&mut buffer[..want], from)?;
                if got == 0 {
                    break;
                }
                sum.update(&buffer[..got]);
                after.update(&buffer[..got]);
                from += got as u64;
                seen(from);
            }
            if from != end || Digest::finish(sum) != piece.sha256 {
                tracing::warn!(file = %self.path.display(), at, "a piece has changed on the disk and is fetched again");
                break;
            }
            (whole, at) = (after, end);
            sources.insert(piece.source.clone());
            journal.pieces.push(piece);
        }
        self.file.set_len(at)?;
        // Cutting gave the promised room behind the end back.
        self.allocate()?;
        let mut journal_file =
            OpenOptions::new().write(true).create(true).truncate(true).open(&self.journal_path)?;
        journal_file.write_all(&journal.print())?;
        journal_file.sync_all()?;
        if let Some(folder) = self.path.parent() {
            File::open(folder)?.sync_all()?;
        }
        (&self.file).seek(SeekFrom::Start(at))?;
        Ok(Partial { claim: self, journal, journal_file, whole, piece: Sha256::new(), at, sources })
    }
}

impl Partial {
    /// Bytes that are here, from the beginning.
    #[must_use]
    pub const fn at(&self) -> u64 {
        self.at
    }

    /// Bytes of the whole file.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.claim.size
    }

    /// Bytes until the piece that is being filled is complete.
    #[must_use]
    pub fn left_of_piece(&self) -> u64 {
        self.journal.end_of_piece(self.at) - self.at
    }

    /// Who gave what is here.
    #[must_use]
    pub const fn sources(&self) -> &BTreeSet<String> {
        &self.sources
    }

    /// Appends bytes. Whenever a piece is complete, it is on the disk before the journal says so.
    ///
    /// # Errors
    /// The disk is full or fails, or there are more bytes than the file has.
    pub fn write(&mut self, mut bytes: &[u8], source: &str) -> io::Result<()> {
        if bytes.len() as u64 > self.claim.size - self.at {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more bytes than the file has"));
        }
        if !bytes.is_empty() && !self.sources.contains(source) {
            self.sources.insert(source.to_owned());
        }
        while !bytes.is_empty() {
            let end = self.journal.end_of_piece(self.at);
            let room = usize::try_from(end - self.at).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(bytes.len().min(room));
            (&self.claim.file).write_all(now)?;
            self.whole.update(now);
            self.piece.update(now);
            self.at += now.len() as u64;
            bytes = later;
            if self.at == end {
                self.claim.file.sync_data()?;
                let sum = std::mem::take(&mut self.piece);
                let piece = Piece { sha256: Digest::finish(sum), source: source.to_owned() };
                self.journal_file.write_all(&piece.line())?;
                self.journal_file.sync_data()?;
                self.journal.pieces.push(piece);
            }
        }
        Ok(())
    }

    /// Deletes what is here.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub fn discard(self) -> io::Result<()> {
        self.claim.discard()
    }

    /// Deletes what is here and begins at the beginning.
    ///
    /// # Errors
    /// The disk fails.
    pub fn restart(self) -> io::Result<Self> {
        remove(&self.claim.journal_path)?;
        self.claim.resume(|_| {})
    }

    /// The sum of everything that is here.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::finish(self.whole.clone())
    }

    /// The file, for reading.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn reader(&self) -> io::Result<File> {
        File::open(&self.claim.path)
    }

    /// Makes a file of its own of it, under `target`: all bytes are on the disk before the name is. The caller has compared
    /// the sum.
    ///
    /// # Errors
    /// The disk fails.
    pub fn publish(self, target: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        self.claim.file.set_permissions(std::fs::Permissions::from_mode(0o444))?;
        self.claim.file.sync_all()?;
        std::fs::rename(&self.claim.path, target)?;
        if let Some(folder) = target.parent() {
            File::open(folder)?.sync_all()?;
        }
        remove(&self.claim.journal_path)
    }
}

/// The sum of a file; `seen` is told how far the reading is and says whether to go on.
///
/// # Errors
/// It cannot be read; [`io::ErrorKind::Interrupted`] where `seen` said no.
pub fn sum_of(path: &Path, mut seen: impl FnMut(u64) -> bool) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let (mut hasher, mut at) = (Sha256::new(), 0);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let got = file.read(&mut buffer)?;
        if got == 0 {
            return Ok(Digest::finish(hasher));
        }
        hasher.update(&buffer[..got]);
        at += got as u64;
        if !seen(at) {
            return Err(io::ErrorKind::Interrupted.into());
        }
    }
}

/// Deletes a file if it is there.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(count: usize) -> Vec<u8> {
        (0..count).map(|n| (n * 7 % 251) as u8).collect()
    }

    fn begin(folder: &Path, all: &[u8]) -> Partial {
        let claim = Claim::take(folder, Digest::of(all), all.len() as u64, 1000).unwrap().unwrap();
        claim.resume(|_| {}).unwrap()
    }

    #[test]
    fn a_cut_off_download_goes_on_at_the_last_piece_that_is_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let all = bytes(4_500);
        let mut first = begin(dir.path(), &all);
        first.write(&all[..2_300], "a").unwrap();
        assert_eq!(first.at(), 2_300);
        drop(first); // As a kill does: nothing is tidied up.
        let mut second = begin(dir.path(), &all);
        assert_eq!(second.at(), 2_000, "what no piece holds is fetched again");
        second.write(&all[2_000..], "b").unwrap();
        assert_eq!((second.digest(), second.sources().len()), (Digest::of(&all), 2));
        let target = dir.path().join("whole");
        second.publish(&target).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), all);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "only the file is left");
    }

    #[test]
    fn a_piece_that_changed_on_the_disk_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let all = bytes(4_000);
        let mut first = begin(dir.path(), &all);
        first.write(&all[..3_000], "a").unwrap();
        first.claim.file.write_all_at(b"?", 1_500).unwrap();
        drop(first);
        let mut second = begin(dir.path(), &all);
        assert_eq!(second.at(), 1_000);
        second.write(&all[1_000..], "a").unwrap();
        assert_eq!(second.digest(), Digest::of(&all));
    }

    #[test]
    fn a_journal_of_another_size_is_forgotten_and_too_much_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let all = bytes(2_000);
        let mut first = begin(dir.path(), &all);
        first.write(&all, "a").unwrap();
        assert_eq!(first.write(b"x", "a").unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(first);
        let claim = Claim::take(dir.path(), Digest::of(&all), 3_000, 1000).unwrap().unwrap();
        assert_eq!(claim.resume(|_| {}).unwrap().at(), 0);
    }

    #[test]
    fn one_file_has_one_holder() {
        let dir = tempfile::tempdir().unwrap();
        let all = bytes(2_000);
        let mut first = begin(dir.path(), &all);
        assert!(Claim::take(dir.path(), Digest::of(&all), 2_000, 1000).unwrap().is_none());
        first.write(&all, "a").unwrap();
        first.publish(&dir.path().join("whole")).unwrap();
        let next = Claim::take(dir.path(), Digest::of(&all), 2_000, 1000).unwrap().unwrap();
        next.discard().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(std::fs::read(dir.path().join("whole")).unwrap(), all);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]
        /// Whatever the pieces, the cuts and the bytes that each run brings: the file is whole in the end, and no byte
        /// was asked for twice but those of pieces that were not complete.
        #[test]
        fn cuts_cost_at_most_a_piece_each(
            size in 1_usize..6_000, piece in 1_u64..2_000, runs in proptest::collection::vec(0_usize..3_000, 0..6),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let all = bytes(size);
            let (mut asked, cuts) = (0_u64, runs.len() as u64);
            for run in runs.into_iter().map(Some).chain([None]) {
                let claim = Claim::take(dir.path(), Digest::of(&all), size as u64, piece).unwrap().unwrap();
                let mut partial = claim.resume(|_| {}).unwrap();
                let from = usize::try_from(partial.at()).unwrap();
                let to = run.map_or(size, |run| (from + run).min(size));
                partial.write(&all[from..to], "s").unwrap();
                asked += (to - from) as u64;
                if run.is_none() {
                    proptest::prop_assert_eq!(partial.digest(), Digest::of(&all));
                }
            }
            proptest::prop_assert!(asked <= size as u64 + cuts * piece.min(size as u64));
        }
    }
}
