//! The size of pictures that a model draws, and how often one of a size is charged.

use std::ops::Range;

use cxmpute_wire::ServiceKind;
use cxmpute_wire::openai::read_size;

use super::CatalogueError;
use super::raw::{RawModel, Source};

/// The pictures that a model draws.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Canvas {
    /// Width and height when a request names none: what the model was made for.
    pub usual: (u32, u32),
    /// Longest side.
    pub most_side: u32,
    /// A picture is charged once for each begun number of so many pixels.
    pub unit_pixels: u64,
}

impl Canvas {
    /// How often a picture of this size is charged.
    #[must_use]
    pub fn units(&self, width: u32, height: u32) -> u64 {
        (u64::from(width) * u64::from(height)).div_ceil(self.unit_pixels.max(1)).max(1)
    }
}

/// Reads `canvas`, which entries that draw have and no others.
pub(super) fn check(
    source: &Source<'_>,
    raw: &RawModel,
    kind: ServiceKind,
    span: &Range<usize>,
) -> Result<Option<Canvas>, CatalogueError> {
    /// No model of the seeds draws more, and no answer of a node has to be larger.
    const MOST_SIDE: u32 = 2_048;
    let raw = match (&raw.canvas, kind) {
        (Some(raw), ServiceKind::Image) => raw,
        (Some(raw), _) => {
            return Err(source.error(raw.span(), "model.canvas", format!("kind `{kind}` draws nothing")));
        }
        (None, ServiceKind::Image) => {
            return Err(source.error(span.clone(), "model.canvas", "is required for kind `image`"));
        }
        (None, _) => return Ok(None),
    };
    let (canvas, at) = (raw.get_ref(), raw.span());
    let wrong = |key: &str, reason: String| source.error(at.clone(), format!("model.canvas.{key}"), reason);
    if !(64..=MOST_SIDE).contains(&canvas.most_side) {
        return Err(wrong("most_side", format!("{} is outside 64 to {MOST_SIDE}", canvas.most_side)));
    }
    let usual = read_size(&canvas.usual).filter(|(width, height)| {
        [width, height].iter().all(|side| (64..=canvas.most_side).contains(*side) && side.is_multiple_of(8))
    });
    let Some(usual) = usual else {
        let reason = format!("`{}` is not WIDTHxHEIGHT, multiples of 8 from 64 to most_side", canvas.usual);
        return Err(wrong("usual", reason));
    };
    let whole = u64::from(usual.0) * u64::from(usual.1);
    let unit_pixels = canvas.unit_pixels.unwrap_or(whole);
    if unit_pixels < 4_096 {
        return Err(wrong("unit_pixels", format!("{unit_pixels} is below 4096")));
    }
    Ok(Some(Canvas { usual, most_side: canvas.most_side, unit_pixels }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::Catalogue;

    fn read(kind: &str, canvas: &str) -> Result<Option<Canvas>, (String, String)> {
        let text = format!(
            "[[model]]\nid = \"m\"\nkind = \"{kind}\"\n{canvas}\nprice = {{ version = 1, image = 1 }}"
        );
        let read = Catalogue::parse(&text, "models.toml");
        read.map(|catalogue| catalogue.resolve("m").unwrap().canvas)
            .map_err(|error| (error.key, error.reason))
    }

    #[test]
    fn what_draws_says_which_pictures() {
        let canvas = read("image", "canvas = { usual = \"512x512\", most_side = 1024 }").unwrap().unwrap();
        assert_eq!(canvas, Canvas { usual: (512, 512), most_side: 1024, unit_pixels: 512 * 512 });
        for (size, units) in [((64, 64), 1), ((512, 512), 1), ((520, 512), 2), ((1024, 1024), 4)] {
            assert_eq!(canvas.units(size.0, size.1), units, "{size:?}");
        }
        for (kind, text, key) in [
            ("image", "", "model.canvas"),
            ("vision", "canvas = { usual = \"512x512\", most_side = 1024 }", "model.canvas"),
            ("image", "canvas = { usual = \"big\", most_side = 1024 }", "model.canvas.usual"),
            ("image", "canvas = { usual = \"500x512\", most_side = 1024 }", "model.canvas.usual"),
            ("image", "canvas = { usual = \"2048x64\", most_side = 1024 }", "model.canvas.usual"),
            ("image", "canvas = { usual = \"64x64\", most_side = 4096 }", "model.canvas.most_side"),
            (
                "image",
                "canvas = { usual = \"64x64\", most_side = 64, unit_pixels = 0 }",
                "model.canvas.unit_pixels",
            ),
        ] {
            assert_eq!(read(kind, text).unwrap_err().0, key, "{kind} {text}");
        }
        assert_eq!(read("vision", "").unwrap(), None);
    }
}
