//! Names of files in plans. They come from the network, so they may only name what lies below a directory.

use std::path::{Component, Path, PathBuf};

use cxmpute_wire::control::DesiredFile;

use super::shelf::{BLOBS, OWN_FOLDER};

/// The path of a planned file below `root`; `None` where its name leads elsewhere, or to what the node keeps there itself.
#[must_use]
pub fn below(root: &Path, file: &DesiredFile) -> Option<PathBuf> {
    let name = Path::new(&file.name);
    let plain = name.components().all(|part| matches!(part, Component::Normal(_)));
    let own = name.starts_with(OWN_FOLDER) || name.starts_with(BLOBS);
    (plain && !own && !file.name.is_empty()).then(|| root.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_cannot_leave_the_model_directory() {
        let named = |name: &str| DesiredFile {
            role: "model".into(),
            name: name.into(),
            sha256: None,
            size: None,
            urls: Vec::new(),
            hub: None,
        };
        for bad in ["../x", "/etc/passwd", "a/../../x", "", ".", ".cxmpute/fetched.json", "blobs/sha256-0"] {
            assert_eq!(below(Path::new("/models"), &named(bad)), None, "{bad}");
        }
        assert_eq!(below(Path::new("/m"), &named("a/b.gguf")).unwrap(), Path::new("/m/a/b.gguf"));
    }
}
