//! The file system that holds the models.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cxmpute_wire::Bytes;
use cxmpute_wire::control::DiskInfo;

/// The file system that holds `dir`, or will hold it once it is made. No other is asked: one that is away (a network's)
/// answers never.
#[must_use]
pub fn look(dir: &Path) -> DiskInfo {
    let mut existing = dir;
    let real = loop {
        if let Ok(real) = existing.canonicalize() {
            break real;
        }
        match existing.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => existing = parent,
            _ => break Path::new("/").to_owned(),
        }
    };
    let (total, free) = room(&real).unwrap_or_default();
    DiskInfo { mount: mount(&real).display().to_string(), total, free }
}

/// What the file system of an existing directory holds, and what of it is free for this user.
///
/// # Errors
/// It cannot be asked.
pub fn room(dir: &Path) -> std::io::Result<(Bytes, Bytes)> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    // The types of these numbers differ from system to system.
    #[allow(clippy::useless_conversion, reason = "u32 on some systems")]
    let bytes = |blocks| Bytes(u64::from(blocks).saturating_mul(u64::from(stat.fragment_size())));
    Ok((bytes(stat.blocks()), bytes(stat.blocks_available())))
}

/// The highest directory above that lies on the same device.
fn mount(dir: &Path) -> &Path {
    let device = |path: &Path| std::fs::symlink_metadata(path).ok().map(|meta| meta.dev());
    let own = device(dir);
    dir.ancestors().take_while(|above| device(above) == own).last().unwrap_or(dir)
}

/// How deep a directory is looked into; hubs lay their files out no deeper.
const DEPTH: usize = 6;

/// The unit in which every system counts the room of a file.
const BLOCK_BYTES: u64 = 512;

/// What the files below a directory take, without following links; a file with several names counts once. Room that the
/// disk keeps for a file which is not there yet counts as much as bytes. What cannot be read counts nothing.
#[must_use]
pub fn size_of(dir: &Path) -> Bytes {
    fn below(dir: &Path, depth: usize, seen: &mut HashSet<(u64, u64)>) -> u64 {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let size = |entry: std::fs::DirEntry| {
            let meta = entry.metadata().ok()?;
            match meta.is_dir() {
                true if depth > 0 => Some(below(&entry.path(), depth - 1, seen)),
                true => None,
                false if meta.nlink() > 1 && !seen.insert((meta.dev(), meta.ino())) => None,
                false => meta.is_file().then(|| meta.len().max(meta.blocks() * BLOCK_BYTES)),
            }
        };
        entries.filter_map(size).sum()
    }
    Bytes(below(dir, DEPTH, &mut HashSet::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_the_one_that_holds_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        let found = look(&dir.path().join("not/yet"));
        assert!(real.starts_with(&found.mount) && found.total > found.free, "{found:?}");
        assert_eq!(look(Path::new("/")).mount, "/");
        // Another device, where there is one.
        if std::fs::metadata("/proc").unwrap().dev() != std::fs::metadata("/").unwrap().dev() {
            assert_eq!(mount(Path::new("/proc/self")), Path::new("/proc"));
        }
        assert!(room(Path::new("/nonexistent")).is_err());
    }

    #[test]
    fn a_directory_takes_what_its_files_take() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(size_of(&dir.path().join("missing")), Bytes(0));
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/model.gguf"), [0; 2048]).unwrap();
        std::fs::write(dir.path().join("b.gguf"), [0; 3]).unwrap();
        std::fs::hard_link(dir.path().join("b.gguf"), dir.path().join("a/c.gguf")).unwrap();
        std::os::unix::fs::symlink("/usr", dir.path().join("usr")).unwrap();
        // What a file takes of the disk differs from system to system, but is no less than its bytes.
        let taken = size_of(dir.path());
        assert!((2051..2 * 128 * 1024).contains(&taken.0), "{taken:?}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn room_that_is_kept_for_a_file_is_taken() {
        use nix::fcntl::{FallocateFlags, fallocate};
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("partial")).unwrap();
        match fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, 1 << 20) {
            // This file system promises nothing.
            Err(nix::errno::Errno::EOPNOTSUPP) => {}
            kept => {
                kept.unwrap();
                assert!(size_of(dir.path()).0 >= 1 << 20, "{:?}", size_of(dir.path()));
            }
        }
    }
}
