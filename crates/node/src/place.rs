//! Where sockets lie. A unix socket's path is short (108 bytes on Linux, 104 elsewhere), a data directory's may not be.

use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use cxmpute_runtime::random;
use sha2::{Digest, Sha256};

/// Longest path of a unix socket that every system takes, with room for the engine's temporary suffix.
const SOCKET_PATH_LIMIT_BYTES: usize = 90;
/// Longest name of a socket of ours.
const NAME_LIMIT_BYTES: usize = 20;

/// The directory of a node's sockets: `run` below the data directory, or a private directory with a short name.
#[must_use]
pub fn run_dir(data_dir: &Path) -> PathBuf {
    let near = data_dir.join("run");
    if near.as_os_str().len() + 1 + NAME_LIMIT_BYTES <= SOCKET_PATH_LIMIT_BYTES {
        return near;
    }
    let digest = Sha256::digest(near.as_os_str().as_encoded_bytes());
    let tag = data_encoding::HEXLOWER.encode(&digest[..8]);
    Path::new("/tmp").join(format!("cxm-{}-{tag}", nix::unistd::geteuid()))
}

/// A path for the socket of an engine that is about to start. Never the same twice: an engine that is still on its
/// way out would take its successor's socket with it.
#[must_use]
pub fn engine_socket(data_dir: &Path) -> PathBuf {
    run_dir(data_dir).join(format!("e-{}.sock", data_encoding::HEXLOWER.encode(&random::bytes::<6>())))
}

/// A path for the directory of a container's socket; like [`engine_socket`], never the same twice.
#[must_use]
pub fn door(data_dir: &Path) -> PathBuf {
    run_dir(data_dir).join(format!("d-{}", data_encoding::HEXLOWER.encode(&random::bytes::<4>())))
}

/// A directory for an engine that is about to start, for its socket and its temporary files. Never the same twice.
#[must_use]
pub fn engine_room(data_dir: &Path) -> PathBuf {
    run_dir(data_dir).join(format!("e-{}", data_encoding::HEXLOWER.encode(&random::bytes::<5>())))
}

/// The socket in an engine's room.
#[must_use]
pub fn socket_in(room: &Path) -> PathBuf {
    room.join("s.sock")
}

/// The socket that the running node answers on.
#[must_use]
pub fn node_socket(data_dir: &Path) -> PathBuf {
    run_dir(data_dir).join("node.sock")
}

/// Makes a directory that only we can enter, or checks that it is one.
///
/// # Errors
/// It cannot be made, or it belongs to somebody else.
pub fn make_private(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let meta = std::fs::symlink_metadata(dir)?;
    if !meta.is_dir() || meta.uid() != nix::unistd::geteuid().as_raw() {
        let message = format!("{} is not a directory of this user", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    if meta.permissions().mode() & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Makes the directory of sockets and removes what an earlier run left there.
///
/// # Errors
/// The directory cannot be made.
pub fn tidy(data_dir: &Path) -> io::Result<()> {
    let dir = run_dir(data_dir);
    make_private(&dir)?;
    for entry in std::fs::read_dir(&dir)?.flatten() {
        let name = entry.file_name();
        if name.as_encoded_bytes().starts_with(b"e-") {
            let _ = std::fs::remove_file(entry.path()).or_else(|_| std::fs::remove_dir_all(entry.path()));
        } else if name.as_encoded_bytes().starts_with(b"d-") {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_paths_stay_short_and_apart() {
        let long = PathBuf::from(format!("/{}", "x".repeat(200)));
        let other = PathBuf::from(format!("/{}", "y".repeat(200)));
        for dir in [&long, &other, &PathBuf::from("/d")] {
            assert!(engine_socket(dir).as_os_str().len() <= SOCKET_PATH_LIMIT_BYTES);
            assert!(engine_socket(dir).file_name().unwrap().len() <= NAME_LIMIT_BYTES);
            assert_ne!(engine_socket(dir), engine_socket(dir));
            assert_ne!(door(dir), door(dir));
            assert!(door(dir).join("e.sock").as_os_str().len() <= SOCKET_PATH_LIMIT_BYTES);
            let room = engine_room(dir);
            assert!(
                socket_in(&room).as_os_str().len() <= SOCKET_PATH_LIMIT_BYTES && engine_room(dir) != room
            );
        }
        assert_ne!(run_dir(&long), run_dir(&other));
        assert_eq!(node_socket(Path::new("/d")), Path::new("/d/run/node.sock"));
    }

    #[test]
    fn a_private_directory_is_ours_and_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        make_private(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        make_private(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(make_private(&link).is_err());
    }
}
