//! Pictures in a conversation: decoded, made as small as a model looks at them, and written anew as what the node gets.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cxmpute_market::picture::{Detail, fit, tokens};
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat};

use super::PictureError;
use super::picture::open;
use crate::limits;

/// A PNG with more bytes than this is packed as JPEG: photos do not shrink without loss.
const MOST_PNG: usize = 512 * 1024;
/// Quality of that JPEG, of 100.
const JPEG_QUALITY: u8 = 88;

/// A picture as a model gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The picture as a `data:` address.
    pub url: String,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Prompt tokens that it counts as.
    pub tokens: u64,
}

impl View {
    /// Decodes a file and makes of it what a model gets; blocking work.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn of(file: &[u8], detail: Detail) -> Result<Self, PictureError> {
        let whole = open(file, limits::IMAGE_PIXELS)?;
        let (width, height) = fit(whole.width(), whole.height(), detail);
        let small = if (whole.width(), whole.height()) == (width, height) {
            whole
        } else {
            whole.thumbnail_exact(width, height)
        };
        let (kind, file) = pack(&small).map_err(|_| PictureError::Broken)?;
        let url = format!("data:{kind};base64,{}", STANDARD.encode(file));
        Ok(Self { url, width, height, tokens: tokens(width, height, detail) })
    }
}

fn pack(picture: &DynamicImage) -> image::ImageResult<(&'static str, Vec<u8>)> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, ImageFormat::Png)?;
    let png = png.into_inner();
    if png.len() <= MOST_PNG {
        return Ok(("image/png", png));
    }
    let mut jpeg = Vec::new();
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY))?;
    Ok(("image/jpeg", jpeg))
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    fn file(width: u32, height: u32, colour: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
        let mut out = Cursor::new(Vec::new());
        let picture = RgbImage::from_fn(width, height, |x, y| Rgb(colour(x, y)));
        DynamicImage::ImageRgb8(picture).write_to(&mut out, ImageFormat::Png).unwrap();
        out.into_inner()
    }

    fn pixels(view: &View) -> RgbImage {
        let (_, data) = view.url.split_once(',').unwrap();
        image::load_from_memory(&STANDARD.decode(data).unwrap()).unwrap().to_rgb8()
    }

    #[test]
    fn a_model_gets_the_same_picture_as_small_as_it_looks_at_it() {
        let left = |x: u32, _| if x < 700 { [200, 10, 10] } else { [10, 10, 200] };
        let mut large = file(1_400, 1_600, left);
        large.extend_from_slice(b"a secret behind the end");
        for (detail, size, tokens) in [(Detail::High, (768, 878), 765), (Detail::Low, (448, 512), 85)] {
            let view = View::of(&large, detail).unwrap();
            assert_eq!(((view.width, view.height), view.tokens), (size, tokens));
            assert!(view.url.starts_with("data:image/png;base64,"));
            let shown = pixels(&view);
            assert_eq!(shown.dimensions(), size);
            assert_eq!(
                (shown.get_pixel(3, 3).0, shown.get_pixel(size.0 - 3, 3).0),
                ([200, 10, 10], [10, 10, 200])
            );
        }
        assert_eq!(View::of(b"hello", Detail::High), Err(PictureError::Unknown));
    }

    #[test]
    fn what_does_not_shrink_without_loss_becomes_a_jpeg() {
        // Noise, made without chance.
        let noise = |x: u32, y: u32| {
            let mixed =
                (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(2_246_822_519)).wrapping_mul(3_266_489_917);
            mixed.to_le_bytes()[1..].try_into().unwrap()
        };
        let view = View::of(&file(600, 600, noise), Detail::High).unwrap();
        assert!(view.url.starts_with("data:image/jpeg;base64,"), "{}", &view.url[..30]);
        assert_eq!(pixels(&view).dimensions(), (600, 600));
    }
}
