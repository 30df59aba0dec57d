//! The images that this node pulled, so that it takes away what it brought and nothing else: one file for each in the data
//! directory. An image that the plan still names is kept, as model files are; what the owner pulled by hand always is.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::RemoveImageOptions;

fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("images")
}

/// Notes that an image is about to be pulled.
///
/// # Errors
/// The data directory cannot be written.
pub fn note(data_dir: &Path, image: &str) -> io::Result<()> {
    let folder = folder(data_dir);
    crate::place::make_private(&folder)?;
    let digest = image.rsplit(':').next().unwrap_or_default();
    std::fs::write(folder.join(digest), image)
}

/// The noted images that nobody wants any more, each with its note.
fn unwanted(data_dir: &Path, wanted: &BTreeSet<String>) -> Vec<(PathBuf, String)> {
    let notes = std::fs::read_dir(folder(data_dir)).into_iter().flatten().flatten();
    notes
        .filter_map(|note| Some((note.path(), std::fs::read_to_string(note.path()).ok()?)))
        .filter(|(_, image)| !wanted.contains(image))
        .collect()
}

/// Removes the images that this node pulled and that are not wanted any more. One that another container uses stays until
/// the next time.
pub async fn sweep(docker: &Docker, data_dir: &Path, wanted: &BTreeSet<String>) {
    for (note, image) in unwanted(data_dir, wanted) {
        match docker.remove_image(&image, None::<RemoveImageOptions>, None).await {
            Ok(_) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => {
                tracing::info!(image, "removed: no plan names it any more");
                let _ = std::fs::remove_file(note);
            }
            Err(error) => tracing::info!(%error, image, "the image stays for now"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_noted_and_is_not_wanted_goes() {
        let dir = tempfile::tempdir().unwrap();
        assert!(unwanted(dir.path(), &BTreeSet::new()).is_empty());
        note(dir.path(), "a.b/c@sha256:01").unwrap();
        note(dir.path(), "a.b/c@sha256:02").unwrap();
        let wanted = BTreeSet::from(["a.b/c@sha256:02".to_owned(), "a.b/c@sha256:03".to_owned()]);
        let found: Vec<String> = unwanted(dir.path(), &wanted).into_iter().map(|(_, image)| image).collect();
        assert_eq!(found, ["a.b/c@sha256:01"]);
    }
}
