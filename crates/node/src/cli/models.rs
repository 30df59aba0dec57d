//! `models`: the model files of this machine, how much they take, which services use them, and what the servers have that
//! the owner runs.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use cxmpute_runtime::Tasks;
use cxmpute_wire::Bytes;
use cxmpute_wire::control::readable;
use serde::Serialize;

use crate::config::NodeConfig;
use crate::diagnose;
use crate::engines::discover;
use crate::local::{self, Question};
use crate::models::shelf::{BLOBS, OWN_FOLDER, Shelf};
use crate::output::Output;

/// How deep the directory is looked into; hubs lay their files out no deeper.
const DEPTH: usize = 6;
/// Most files that are listed.
const FILES: usize = 10_000;

/// A model file.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct ModelFile {
    /// Path below the model directory.
    name: String,
    /// Its size in bytes.
    size: u64,
    /// Whether the node fetched it, and so may delete it when it is unused and something else needs the room.
    fetched: bool,
}

/// Lists them.
///
/// # Errors
/// The list of what the node fetched cannot be read.
pub(super) async fn list(config: &NodeConfig, output: Output) -> Result<()> {
    let folder = config.models_dir();
    let mut files = BTreeMap::new();
    if folder.is_dir() {
        walk(&folder, &folder, DEPTH, &mut files);
    }
    let running = local::ask(&config.data_dir, Question::Status).await.ok();
    let services: Vec<String> = running
        .iter()
        .flat_map(|answer| &answer.services)
        .map(|service| service.service_id.to_string())
        .collect();
    let progress: Vec<_> = running
        .iter()
        .flat_map(|answer| &answer.services)
        .filter_map(|service| Some((service.service_id.to_string(), service.progress.clone()?)))
        .collect();
    let total: u64 = files.values().sum();
    let shelf = Shelf::new(folder.clone());
    let kept: Vec<String> =
        shelf.kept()?.iter().map(|kept| format!("{BLOBS}/{}", kept.digest.file_name())).collect();
    let free = diagnose::disk(&folder).free;
    let files: Vec<ModelFile> = files
        .into_iter()
        .map(|(name, size)| ModelFile { fetched: kept.contains(&name), name, size })
        .collect();
    let mut text = format!("Directory  {}\n", folder.display());
    for file in &files {
        let fetched = if file.fetched { "  (fetched)" } else { "" };
        text.push_str(&format!("{:>10}  {}{fetched}\n", readable(Bytes(file.size)), file.name));
    }
    text.push_str(&format!(
        "In all     {} in {} files; {} are free",
        readable(Bytes(total)),
        files.len(),
        readable(free)
    ));
    if !services.is_empty() {
        text.push_str(&format!("\nServices   {}", services.join(", ")));
    }
    let found = discover::look(&config.discover, &Tasks::new()).await;
    for server in &found {
        let (name, address) = (server.kind.name(), &server.address);
        text.push_str(&format!("\nFound      {name} {} at {address}", server.version));
        for model in &server.models {
            let memory = model.gpu_memory.filter(|memory| *memory > 0);
            let memory = memory
                .map(|memory| format!(" ({} of GPU memory)", readable(Bytes(memory))))
                .unwrap_or_default();
            text.push_str(&format!("\n           {}{memory}", model.name));
        }
    }
    for (service, progress) in &progress {
        text.push_str(&format!("\nComing     {service}: {progress}"));
    }
    let coming: BTreeMap<_, _> = progress.into_iter().collect();
    let value = serde_json::json!({
        "directory": folder, "files": files, "total": Bytes(total), "free": free, "services": services, "coming": coming,
        "found": found,
    });
    output.result(&value, &text);
    Ok(())
}

/// Files below a directory, without following links. A folder that cannot be read (`lost+found`) has none.
fn walk(root: &Path, folder: &Path, depth: usize, files: &mut BTreeMap<String, u64>) {
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries.flatten(),
        Err(error) => return tracing::warn!(%error, folder = %folder.display(), "it cannot be read"),
    };
    for entry in entries {
        let Ok(meta) = entry.metadata() else { continue };
        let path = entry.path();
        if entry.file_name() == OWN_FOLDER {
            // Pieces, lists and other names of what is listed anyway.
            continue;
        }
        if meta.is_dir() && depth > 0 {
            walk(root, &path, depth - 1, files);
        } else if meta.is_file() && files.len() < FILES {
            let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
            files.insert(name, meta.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_listed_with_their_folders_and_links_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a")).unwrap();
        std::fs::write(dir.path().join("a/model.gguf"), [0; 2048]).unwrap();
        std::fs::write(dir.path().join("b.gguf"), [0; 3]).unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("etc")).unwrap();
        let mut files = BTreeMap::new();
        walk(dir.path(), dir.path(), DEPTH, &mut files);
        // One that goes away in this moment, or that nobody may read.
        walk(dir.path(), &dir.path().join("gone"), DEPTH, &mut files);
        assert_eq!(files, BTreeMap::from([("a/model.gguf".into(), 2048), ("b.gguf".into(), 3)]));
    }
}
