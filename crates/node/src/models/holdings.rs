//! Which model files this machine holds already, for the plan: a node with a filled store should be given what it has. Blobs
//! are told by their sums, files of the owner below the models directory by their names too. Names of files elsewhere stay
//! here: they are the owner's own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cxmpute_wire::Bytes;
use cxmpute_wire::control::HeldFile;

use super::delivery::search_folders;
use super::digest::Digest;
use super::format;
use super::hashes::Hashes;
use super::shelf::{BLOBS, OWN_FOLDER};
use crate::config::NodeConfig;

/// The control plane is told of the largest files, so many at most.
const MOST_FILES: usize = 256;
/// Folders below the models directory that are looked into.
const DEPTH: usize = 4;
/// Entries that are looked at; a directory of models has far fewer.
const MOST_ENTRIES: usize = 10_000;

/// What is here now, the largest first. Reads directories, no content of files. Blocks.
#[must_use]
pub fn holdings(config: &NodeConfig) -> Vec<HeldFile> {
    look(&config.models_dir(), &search_folders(&config.models), &Hashes::open(&config.data_dir))
}

fn look(root: &Path, search: &[PathBuf], hashes: &Hashes) -> Vec<HeldFile> {
    let mut blobs: BTreeMap<Digest, u64> = hashes.known().into_iter().collect();
    for folder in std::iter::once(root).chain(search.iter().map(PathBuf::as_path)) {
        for folder in [folder.to_owned(), folder.join(BLOBS)] {
            blobs.extend(entries(&folder).filter_map(|(name, path)| {
                let digest: Digest = name.strip_prefix("sha256-")?.parse().ok()?;
                Some((digest, size(&path)?))
            }));
        }
    }
    let mut found: Vec<HeldFile> = blobs
        .into_iter()
        .map(|(digest, size)| HeldFile { sha256: Some(digest.to_string()), name: None, size: Bytes(size) })
        .collect();
    let mut left = MOST_ENTRIES;
    named(root, "", DEPTH, &mut left, &mut found);
    found.sort_by(|a, b| (b.size, &a.sha256, &a.name).cmp(&(a.size, &b.sha256, &b.name)));
    found.truncate(MOST_FILES);
    found
}

/// Files below a folder whose names are those of model files.
fn named(folder: &Path, prefix: &str, depth: usize, left: &mut usize, found: &mut Vec<HeldFile>) {
    for (name, path) in entries(folder) {
        if *left == 0 {
            return;
        }
        *left -= 1;
        let whole = format!("{prefix}{name}");
        if path.is_dir() {
            let is_ours = prefix.is_empty() && [BLOBS, OWN_FOLDER].contains(&name.as_str());
            if depth > 0 && !is_ours {
                named(&path, &format!("{whole}/"), depth - 1, left, found);
            }
        } else if format::check_name(&name).is_ok()
            && let Some(size) = size(&path)
        {
            found.push(HeldFile { sha256: None, name: Some(whole), size: Bytes(size) });
        }
    }
}

fn entries(folder: &Path) -> impl Iterator<Item = (String, PathBuf)> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
}

/// The size of a file with something in it.
fn size(path: &Path) -> Option<u64> {
    std::fs::metadata(path)
        .ok()
        .filter(std::fs::Metadata::is_file)
        .map(|meta| meta.len())
        .filter(|len| *len > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_a_store_holds_is_told_by_sum_or_by_name_and_nothing_else() {
        let (root, other, data) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let write = |folder: &Path, name: &str, content: &[u8]| {
            let path = folder.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        let [one, two, three] = [b"one".as_slice(), b"second", b"in ollama's store"].map(Digest::of);
        write(root.path(), &format!("blobs/sha256-{one}"), b"one");
        write(root.path(), "tiny/model.gguf", b"some weights");
        write(root.path(), "tiny/notes.odt", b"the owner's own");
        write(root.path(), "empty.gguf", b"");
        write(root.path(), ".cxmpute/partial/half.gguf", b"half");
        write(other.path(), &format!("blobs/sha256-{three}"), b"in ollama's store");
        write(other.path(), "private name.gguf", b"second");
        write(other.path(), "blobs/sha256-nonsense", b"x");
        let hashes = Hashes::open(data.path());
        let summed = other.path().join("private name.gguf");
        assert_eq!(hashes.sum(&summed, |_| {}).await.unwrap(), two);
        let search = [other.path().to_owned()];
        let told: Vec<(Option<String>, Option<String>, u64)> = look(root.path(), &search, &hashes)
            .into_iter()
            .map(|file| (file.sha256, file.name, file.size.0))
            .collect();
        let blob = |digest: Digest, size| (Some(digest.to_string()), None, size);
        let named = (None, Some("tiny/model.gguf".to_owned()), 12);
        assert_eq!(told, [blob(three, 17), named, blob(two, 6), blob(one, 3)]);
        // A sum that was taken of what is not there any more tells nothing.
        std::fs::write(&summed, b"changed").unwrap();
        std::fs::remove_file(root.path().join("blobs").join(format!("sha256-{one}"))).unwrap();
        assert_eq!(look(root.path(), &search, &hashes).len(), 2);
        assert!(look(Path::new("/nonexistent"), &[], &Hashes::open(root.path())).is_empty());
    }
}
