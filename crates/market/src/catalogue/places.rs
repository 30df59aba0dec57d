//! In which numbers a model says where something is in a picture.

use std::ops::Range;

use super::CatalogueError;
use super::capability::Capability;
use super::raw::{RawModel, Source};

/// The numbers of boxes and points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Places {
    /// Parts of the picture's width and height, 0 to 1.
    #[default]
    Parts,
    /// Pixels of the picture as the model resizes it before it looks, as Qwen2.5-VL's makers describe: `bbox_2d` and
    /// `point_2d`, no confidence. [`crate::picture::grid`] says that size.
    Pixels,
}

/// Reads `places`, which only entries have that find something.
pub(super) fn check(
    source: &Source<'_>,
    raw: &RawModel,
    capabilities: &[Capability],
) -> Result<Places, CatalogueError> {
    let Some(name) = &raw.places else { return Ok(Places::Parts) };
    let wrong = |at: Range<usize>, reason: String| source.error(at, "model.places", reason);
    if !capabilities.iter().any(|word| matches!(word, Capability::Detect | Capability::Point)) {
        return Err(wrong(name.span(), "needs the capability `detect` or `point`".to_owned()));
    }
    match name.get_ref().as_str() {
        "parts" => Ok(Places::Parts),
        "pixels" => Ok(Places::Pixels),
        other => Err(wrong(name.span(), format!("`{other}` is not one of parts, pixels"))),
    }
}
