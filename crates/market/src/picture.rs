//! Pictures in a conversation: the size at which a model gets one, and what it counts as. Both follow from its width, its height
//! and `detail`, so anybody can count again.

use serde::{Deserialize, Serialize};

/// Side of the square that a picture of low detail is drawn into, and of the tiles that others are counted in.
const TILE: u32 = 512;
/// Longest side of a picture.
const LONG: u32 = 2_048;
/// Its shorter side.
const SHORT: u32 = 768;
/// Tokens of every picture.
const EACH: u64 = 85;
/// Tokens of a tile.
const PER_TILE: u64 = 170;
/// Characters that a token of a picture counts as, for models that are priced by characters.
pub const CHARACTERS_PER_TOKEN: u64 = 4;

/// How closely a picture is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Detail {
    /// As a small picture.
    Low,
    /// In tiles.
    #[default]
    High,
}

/// The width and height at which a model gets a picture; no picture grows.
#[must_use]
pub fn fit(width: u32, height: u32, detail: Detail) -> (u32, u32) {
    let longest = if detail == Detail::Low { TILE } else { LONG };
    let fitted = shrink((width.max(1), height.max(1)), width.max(height), longest);
    match detail {
        Detail::Low => fitted,
        Detail::High => shrink(fitted, fitted.0.min(fitted.1), SHORT),
    }
}

/// The size at which a side of `side` pixels has at most `most`.
fn shrink((width, height): (u32, u32), side: u32, most: u32) -> (u32, u32) {
    if side <= most {
        return (width, height);
    }
    let scaled = |length: u32| {
        let exact = (u64::from(length) * u64::from(most) + u64::from(side) / 2) / u64::from(side.max(1));
        u32::try_from(exact).unwrap_or(most).max(1)
    };
    (scaled(width), scaled(height))
}

/// Prompt tokens of a picture that a model gets at this width and height.
#[must_use]
pub fn tokens(width: u32, height: u32, detail: Detail) -> u64 {
    let tiles = |length: u32| u64::from(length.div_ceil(TILE).max(1));
    match detail {
        Detail::Low => EACH,
        Detail::High => EACH + PER_TILE * tiles(width) * tiles(height),
    }
}

/// The width and height to which models of the Qwen2.5-VL kind resize a picture before they look: sides that are multiples of
/// 28, and at least 3,136 pixels. Their places are pixels of this size.
#[must_use]
pub fn grid(width: u32, height: u32) -> (u32, u32) {
    /// Two patches of 14 pixels are one token.
    const CELL: u32 = 28;
    const LEAST: u64 = 56 * 56;
    let nearest = |side: u32| ((side.max(1) + CELL / 2) / CELL).max(1) * CELL;
    let (across, down) = (nearest(width), nearest(height));
    if u64::from(across) * u64::from(down) >= LEAST {
        return (across, down);
    }
    let grow = (LEAST as f64 / (f64::from(width.max(1)) * f64::from(height.max(1)))).sqrt();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "both sides are small here")]
    let up = |side: u32| (f64::from(side.max(1)) * grow / f64::from(CELL)).ceil() as u32 * CELL;
    (up(width), up(height))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pictures_are_counted_as_openai_counts_them() {
        for ((width, height), detail, size, count) in [
            // The two examples of OpenAI's page on vision.
            ((1_024, 1_024), Detail::High, (768, 768), 765),
            ((2_048, 4_096), Detail::High, (768, 1_536), 1_105),
            ((4_096, 8_192), Detail::Low, (256, 512), 85),
            ((1, 1), Detail::High, (1, 1), 255),
            ((512, 512), Detail::High, (512, 512), 255),
            ((513, 512), Detail::High, (513, 512), 425),
            ((64, 32), Detail::Low, (64, 32), 85),
            ((40_000_000, 1), Detail::High, (2_048, 1), 765),
            ((0, 0), Detail::High, (1, 1), 255),
        ] {
            assert_eq!(fit(width, height, detail), size, "{width} {height}");
            assert_eq!(tokens(size.0, size.1, detail), count, "{width} {height}");
        }
    }

    #[test]
    fn the_grid_of_a_picture_is_near_it_and_never_too_small() {
        for (size, grid_size) in [
            ((1_024, 768), (1_036, 756)),
            ((1_024, 770), (1_036, 784)),
            ((64, 32), (84, 56)),
            ((28, 28), (56, 56)),
            ((600, 300), (588, 308)),
        ] {
            assert_eq!(grid(size.0, size.1), grid_size, "{size:?}");
        }
    }

    proptest! {
        #[test]
        fn no_picture_is_dearer_than_eight_tiles_or_grows(width in 1u32..60_000, height in 1u32..60_000) {
            let (across, down) = fit(width, height, Detail::High);
            prop_assert!(across >= 1 && down >= 1 && across <= width && down <= height);
            prop_assert!(across.max(down) <= LONG && across.min(down) <= SHORT);
            prop_assert!(tokens(across, down, Detail::High) <= EACH + PER_TILE * 8);
            prop_assert_eq!(fit(across, down, Detail::High), (across, down));
            let (across, down) = fit(width, height, Detail::Low);
            prop_assert!(across.max(down) <= TILE && across <= width && down <= height);
        }
    }
}
