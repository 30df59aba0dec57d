//! The files of a planned model, and what is in them.

use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use cxmpute_wire::control::{DesiredFile, DesiredService};
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;

use super::AdapterError;

/// Read at a time while a file is hashed, in bytes.
const BLOCK: usize = 1024 * 1024;

/// The model's own file; all the others are there, too.
///
/// # Errors
/// A file is missing or lies outside the model directory.
pub fn model(models: &Path, desired: &DesiredService) -> Result<PathBuf, AdapterError> {
    for file in &desired.files {
        let path = below(models, file)?;
        if !path.is_file() {
            return Err(AdapterError::ModelMissing(path.display().to_string()));
        }
    }
    let file = desired
        .files
        .iter()
        .find(|file| file.role == "model")
        .ok_or_else(|| AdapterError::ModelMissing(format!("a model file of {}", desired.service_id)))?;
    below(models, file)
}

/// The path of a planned file; the plan comes from the network, so it may only name files below the model directory.
pub(super) fn below(models: &Path, file: &DesiredFile) -> Result<PathBuf, AdapterError> {
    let name = Path::new(&file.name);
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    if plain && !file.name.is_empty() {
        Ok(models.join(name))
    } else {
        Err(AdapterError::UnsafePath(file.name.clone()))
    }
}

/// A file as it was when it was hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hashed {
    mark: Mark,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

/// What changes when somebody writes a file anew.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mark {
    path: PathBuf,
    inode: u64,
    size: u64,
    changed: (i64, i64),
}

impl Mark {
    fn of(path: &Path) -> std::io::Result<Self> {
        let meta = std::fs::metadata(path)?;
        let changed = (meta.ctime(), meta.ctime_nsec());
        Ok(Self { path: path.to_owned(), inode: meta.ino(), size: meta.len(), changed })
    }
}

/// Hashes a file, unless `before` is of the same one and nobody has touched it since.
///
/// # Errors
/// It cannot be read.
pub async fn hash(path: &Path, before: Option<Hashed>) -> std::io::Result<Hashed> {
    let mark = Mark::of(path)?;
    if let Some(before) = before.filter(|before| before.mark == mark) {
        return Ok(before);
    }
    let mut file = tokio::fs::File::open(path).await?;
    let (mut hash, mut block) = (Sha256::new(), vec![0; BLOCK]);
    loop {
        let size = file.read(&mut block).await?;
        if size == 0 {
            break;
        }
        hash.update(&block[..size]);
    }
    Ok(Hashed { mark, sha256: data_encoding::HEXLOWER.encode(&hash.finalize()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_cannot_leave_the_model_directory() {
        let file = |name: &str| DesiredFile {
            role: "model".into(),
            name: name.into(),
            sha256: None,
            size: None,
            urls: Vec::new(),
            hub: None,
        };
        for bad in ["../x", "/etc/passwd", "a/../../x", "", "."] {
            assert!(below(Path::new("/models"), &file(bad)).is_err(), "{bad}");
        }
        assert_eq!(below(Path::new("/m"), &file("a/b.gguf")).unwrap(), Path::new("/m/a/b.gguf"));
    }

    #[tokio::test]
    async fn a_file_is_hashed_again_only_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.gguf");
        std::fs::write(&path, "abc").unwrap();
        let first = hash(&path, None).await.unwrap();
        assert_eq!(first.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let known = Hashed { sha256: "known".into(), ..first.clone() };
        assert_eq!(hash(&path, Some(known.clone())).await.unwrap().sha256, "known");
        std::fs::write(&path, "abd").unwrap();
        assert_ne!(hash(&path, Some(known)).await.unwrap().sha256, "known");
        assert!(hash(&dir.path().join("none"), Some(first)).await.is_err());
    }
}
