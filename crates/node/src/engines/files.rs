//! The files of a planned model.

use std::path::{Component, Path, PathBuf};

use cxmpute_wire::control::{DesiredFile, DesiredService};

use super::AdapterError;

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
}
