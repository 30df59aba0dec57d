//! The files of a planned model.

use std::path::{Path, PathBuf};

use cxmpute_wire::control::{DesiredFile, DesiredService};

use super::AdapterError;
use crate::models::names;

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

/// The path of a planned file.
pub(super) fn below(models: &Path, file: &DesiredFile) -> Result<PathBuf, AdapterError> {
    names::below(models, file).ok_or_else(|| AdapterError::UnsafePath(file.name.clone()))
}
