//! The store of blobs below the models directory: `blobs/sha256-…` for whole files, `.cxmpute/` for everything on the way.
//! What the node fetched itself stands in its list; only that is ever deleted (NR27). Blocking.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use cxmpute_wire::Timestamp;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::partial::{Partial, remove};
use super::room::Kept;

/// The folder of what is on its way, of views and lists.
pub const OWN_FOLDER: &str = ".cxmpute";
/// The folder of whole files.
pub const BLOBS: &str = "blobs";

/// The store. Two nodes may share one.
#[derive(Clone, Debug)]
pub struct Shelf {
    root: PathBuf,
}

/// What the node notes of a blob that it fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
struct Own {
    size: u64,
    last_used: Timestamp,
}

type List = BTreeMap<Digest, Own>;

/// A blob that may not be deleted while this is held, by no process.
#[derive(Debug)]
pub struct Lease {
    /// Which.
    pub digest: Digest,
    /// Where it lies.
    pub path: PathBuf,
    _held: File,
}

/// A folder with the names of one model. It is not removed while this is held.
#[derive(Debug)]
pub struct View {
    /// Where it lies.
    pub folder: PathBuf,
    _held: File,
}

/// Whether two paths lead to the same bytes.
fn same(one: &Path, other: &Path) -> bool {
    let of = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    of(one).is_some_and(|found| Some(found) == of(other))
}

impl Shelf {
    /// The store below a models directory; nothing is made before it is needed.
    #[must_use]
    pub const fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The models directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a whole file lies, or will.
    #[must_use]
    pub fn blob(&self, digest: Digest) -> PathBuf {
        self.root.join(BLOBS).join(digest.file_name())
    }

    fn own(&self, name: &str) -> PathBuf {
        self.root.join(OWN_FOLDER).join(name)
    }

    /// The folder of files on their way.
    #[must_use]
    pub fn partial_folder(&self) -> PathBuf {
        self.own("partial")
    }

    /// The folder of views.
    #[must_use]
    pub fn views_folder(&self) -> PathBuf {
        self.own("views")
    }

    /// Makes its folders.
    ///
    /// # Errors
    /// The models directory cannot be written.
    pub fn prepare(&self) -> io::Result<()> {
        for folder in [self.root.join(BLOBS), self.partial_folder(), self.views_folder()] {
            std::fs::create_dir_all(folder)?;
        }
        Ok(())
    }

    /// Whether the node fetched this blob itself, so that it may delete it.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn is_own(&self, digest: Digest) -> io::Result<bool> {
        Ok(self.list()?.contains_key(&digest))
    }

    /// Takes hold of a blob that the node fetched, if it is there as it was published.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn lease(&self, digest: Digest, now: Timestamp) -> io::Result<Option<Lease>> {
        let Some(own) = self.list()?.get(&digest).copied() else { return Ok(None) };
        let path = self.blob(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        file.lock_shared()?;
        let there = |meta: std::fs::Metadata| Some(meta.ino()) == file.metadata().ok().map(|own| own.ino());
        if !std::fs::metadata(&path).is_ok_and(there) || file.metadata()?.len() != own.size {
            return Ok(None);
        }
        self.change(|list| {
            list.entry(digest).and_modify(|own| own.last_used = now);
        })?;
        Ok(Some(Lease { digest, path, _held: file }))
    }

    /// Puts a complete file among the blobs. Its sum has been compared. The list names it before it is there, so that no
    /// crash leaves a blob that nobody would ever delete.
    ///
    /// # Errors
    /// The disk fails.
    pub fn publish(&self, partial: Partial, digest: Digest, now: Timestamp) -> io::Result<()> {
        let own = Own { size: partial.size(), last_used: now };
        self.change(|list| {
            list.insert(digest, own);
        })?;
        partial.publish(&self.blob(digest))
    }

    /// What the node fetched, and whether somebody uses it.
    ///
    /// # Errors
    /// The list cannot be read.
    pub fn kept(&self) -> io::Result<Vec<Kept>> {
        let kept = self.list()?.into_iter().map(|(digest, own)| {
            let in_use = File::open(self.blob(digest)).is_ok_and(|file| file.try_lock().is_err());
            Kept { digest, size: own.size, last_used: own.last_used, in_use }
        });
        Ok(kept.collect())
    }

    /// Deletes a blob that the node fetched and nobody uses; false where it may not.
    ///
    /// # Errors
    /// It cannot be deleted.
    pub fn delete(&self, digest: Digest) -> io::Result<bool> {
        if !self.is_own(digest)? {
            return Ok(false);
        }
        let path = self.blob(digest);
        if let Ok(file) = File::open(&path) {
            if file.try_lock().is_err() {
                return Ok(false);
            }
            remove(&path)?;
        }
        self.change(|list| {
            list.remove(&digest);
        })?;
        Ok(true)
    }

    /// Takes blobs that are not there off the list, and off the disk the views that nobody uses and pieces of files that
    /// nobody fills and that are older than `before`.
    ///
    /// # Errors
    /// The disk fails.
    pub fn tidy(&self, before: Timestamp) -> io::Result<()> {
        if !self.own("").is_dir() {
            return Ok(());
        }
        self.change(|list| list.retain(|digest, _| self.blob(*digest).exists()))?;
        self.prune_views()?;
        for entry in std::fs::read_dir(self.partial_folder())?.flatten() {
            let changed = entry.metadata().and_then(|meta| meta.modified());
            let age = changed.ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            let old = age.is_some_and(|age| i64::try_from(age.as_millis()).is_ok_and(|at| at < before.0));
            let held = File::open(entry.path()).is_ok_and(|file| file.try_lock().is_err());
            if old && !held {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// A folder in which the files of one model have the names of the plan: hard links, or symbolic ones where the file lies on another disk.
    /// It stays while what is given back is held.
    ///
    /// # Errors
    /// The disk fails.
    pub fn view(&self, files: &[(&str, Digest, &Path)]) -> io::Result<View> {
        let key: Vec<String> = files.iter().map(|(name, digest, _)| format!("{digest} {name}\n")).collect();
        let id = Digest::of(key.concat().as_bytes()).to_string();
        let folder = self.views_folder().join(&id[..16]);
        std::fs::create_dir_all(&folder)?;
        let held = File::open(&folder)?;
        held.lock_shared()?;
        if !folder.is_dir() {
            return Err(io::Error::other("another process removed the view; it is made again"));
        }
        for (name, _, target) in files {
            let link = folder.join(name);
            if std::fs::canonicalize(&link)
                .ok()
                .zip(std::fs::canonicalize(target).ok())
                .is_some_and(|(a, b)| same(&a, &b))
            {
                continue;
            }
            if let Some(parent) = link.parent() {
                std::fs::create_dir_all(parent)?;
            }
            remove(&link)?;
            // Another name of the same file is also there where only this folder is shown to an engine.
            if std::fs::hard_link(std::fs::canonicalize(target)?, &link).is_err() {
                std::os::unix::fs::symlink(std::path::absolute(target)?, &link)?;
            }
        }
        Ok(View { folder, _held: held })
    }

    /// Removes views that nobody uses. Blobs and files of the owner stay: only their other names go.
    ///
    /// # Errors
    /// The disk fails.
    pub fn prune_views(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.views_folder())?.flatten() {
            let unused = File::open(entry.path()).is_ok_and(|folder| folder.try_lock().is_ok());
            if unused {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// Deletes pieces of files that nobody fills, but of those that are wanted now.
    ///
    /// # Errors
    /// The disk fails.
    pub fn drop_partials(&self, wanted: &[Digest]) -> io::Result<()> {
        let wanted: Vec<String> = wanted.iter().map(|digest| digest.file_name()).collect();
        for entry in std::fs::read_dir(self.partial_folder())?.flatten() {
            let name = entry.file_name().to_string_lossy().trim_end_matches(".journal").to_owned();
            let held =
                File::open(self.partial_folder().join(&name)).is_ok_and(|file| file.try_lock().is_err());
            if !held && !wanted.contains(&name) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }

    /// What the node fetched. A list that cannot be read is not an empty one: what it names would never be deleted.
    fn list(&self) -> io::Result<List> {
        let path = self.own("fetched.json");
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| named(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(List::new()),
            Err(error) => Err(named(error)),
        }
    }

    /// Changes the list: read, changed and durably written while no other process does the same.
    fn change(&self, change: impl FnOnce(&mut List)) -> io::Result<()> {
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(self.own("lock"))?;
        lock.lock()?;
        let mut list = self.list()?;
        let before = list.clone();
        change(&mut list);
        if list != before {
            write_durably(&self.own("fetched.json"), &serde_json::to_vec_pretty(&list)?)?;
        }
        Ok(())
    }
}

/// Writes a file as a whole: temporary file, sync, rename, sync of the folder.
pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_added_extension(format!("tmp{}", std::process::id()));
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::super::partial::Claim;
    use super::*;

    fn shelf() -> (tempfile::TempDir, Shelf) {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::new(dir.path().to_owned());
        shelf.prepare().unwrap();
        (dir, shelf)
    }

    fn put(shelf: &Shelf, content: &[u8], at: i64) -> Digest {
        let digest = Digest::of(content);
        let claim = Claim::take(&shelf.partial_folder(), digest, content.len() as u64, 4).unwrap().unwrap();
        let mut partial = claim.resume(|_| {}).unwrap();
        partial.write(content, "test").unwrap();
        shelf.publish(partial, digest, Timestamp(at)).unwrap();
        digest
    }

    #[test]
    fn only_unused_blobs_of_its_own_are_deleted() {
        let (dir, shelf) = shelf();
        let ours = put(&shelf, b"fetched", 5);
        let owners = Digest::of(b"by hand");
        std::fs::write(shelf.blob(owners), b"by hand").unwrap();
        assert_eq!(shelf.kept().unwrap().len(), 1);
        let lease = shelf.lease(ours, Timestamp(9)).unwrap().unwrap();
        assert!(shelf.kept().unwrap()[0].in_use && shelf.kept().unwrap()[0].last_used == Timestamp(9));
        // Another process, or another service, asks the same store.
        let other = Shelf::new(dir.path().to_owned());
        assert!(!other.delete(ours).unwrap() && !other.delete(owners).unwrap());
        drop(lease);
        assert!(other.delete(ours).unwrap() && !other.delete(owners).unwrap());
        assert!(!shelf.blob(ours).exists() && shelf.blob(owners).exists());
        assert!(shelf.kept().unwrap().is_empty() && shelf.lease(ours, Timestamp(9)).unwrap().is_none());
        assert!(shelf.lease(owners, Timestamp(9)).unwrap().is_none(), "it is not ours to lease");
    }

    #[test]
    fn a_view_has_the_names_of_the_plan_and_goes_without_its_files() {
        let (dir, shelf) = shelf();
        let ours = put(&shelf, b"fetched", 5);
        let by_hand = dir.path().join("mine.json");
        std::fs::write(&by_hand, b"{}").unwrap();
        let blob = shelf.blob(ours);
        let files =
            [("a/model.gguf", ours, blob.as_path()), ("a/b/c.json", Digest::of(b"{}"), by_hand.as_path())];
        let view = shelf.view(&files).unwrap();
        let again = shelf.view(&files).unwrap();
        assert_eq!(view.folder, again.folder);
        assert_eq!(std::fs::read(view.folder.join("a/model.gguf")).unwrap(), b"fetched");
        assert_eq!(std::fs::read(view.folder.join("a/b/c.json")).unwrap(), b"{}");
        let folder = view.folder.clone();
        drop(view);
        shelf.prune_views().unwrap();
        assert!(folder.exists(), "the second one uses it");
        drop(again);
        shelf.prune_views().unwrap();
        assert!(!folder.exists() && blob.exists() && by_hand.exists());
    }

    #[test]
    fn a_blob_that_lost_bytes_is_not_given_out() {
        let (_dir, shelf) = shelf();
        let ours = put(&shelf, b"fetched", 5);
        remove(&shelf.blob(ours)).unwrap();
        std::fs::write(shelf.blob(ours), b"fetch").unwrap();
        assert!(shelf.lease(ours, Timestamp(9)).unwrap().is_none());
    }

    #[test]
    fn a_list_that_cannot_be_read_is_not_written_anew() {
        let (_dir, shelf) = shelf();
        let ours = put(&shelf, b"fetched", 5);
        let list = shelf.own("fetched.json");
        std::fs::write(&list, b"{\"half").unwrap();
        let content = b"another";
        let digest = Digest::of(content);
        let claim = Claim::take(&shelf.partial_folder(), digest, content.len() as u64, 4).unwrap().unwrap();
        let mut partial = claim.resume(|_| {}).unwrap();
        partial.write(content, "test").unwrap();
        let error = shelf.publish(partial, digest, Timestamp(9)).unwrap_err();
        assert!(error.to_string().contains("fetched.json"), "{error}");
        assert!(shelf.lease(ours, Timestamp(9)).is_err() && shelf.kept().is_err());
        assert!(shelf.delete(ours).is_err() && shelf.blob(ours).exists());
        assert_eq!(std::fs::read(&list).unwrap(), b"{\"half", "a person may still mend it");
    }

    #[test]
    fn a_crash_between_list_and_blob_is_tidied_up_and_old_pieces_go() {
        let (_dir, shelf) = shelf();
        let ours = put(&shelf, b"fetched", 5);
        let lost = put(&shelf, b"lost", 5);
        remove(&shelf.blob(lost)).unwrap();
        let piece = Claim::take(&shelf.partial_folder(), Digest::of(b"half"), 4, 4).unwrap().unwrap();
        shelf.tidy(Timestamp(i64::MAX)).unwrap();
        assert!(shelf.is_own(ours).unwrap() && !shelf.is_own(lost).unwrap());
        assert_eq!(std::fs::read_dir(shelf.partial_folder()).unwrap().count(), 1, "a held piece stays");
        drop(piece);
        shelf.tidy(Timestamp(0)).unwrap();
        assert_eq!(std::fs::read_dir(shelf.partial_folder()).unwrap().count(), 1, "a young piece stays");
        shelf.tidy(Timestamp(i64::MAX)).unwrap();
        assert_eq!(std::fs::read_dir(shelf.partial_folder()).unwrap().count(), 0);
    }
}
