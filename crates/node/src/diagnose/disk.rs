//! The file system that holds the models.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use cxmpute_wire::Bytes;
use cxmpute_wire::control::DiskInfo;
use sysinfo::Disks;

/// The file system that holds `dir`, or will hold it once it is made.
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
    let disks = Disks::new_with_refreshed_list();
    let holder = disks
        .iter()
        .filter(|disk| real.starts_with(disk.mount_point()))
        .max_by_key(|disk| disk.mount_point().as_os_str().len());
    holder.map_or_else(DiskInfo::default, |disk| DiskInfo {
        mount: disk.mount_point().display().to_string(),
        total: Bytes(disk.total_space()),
        free: Bytes(disk.available_space()),
    })
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
