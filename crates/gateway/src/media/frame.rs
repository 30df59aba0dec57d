//! Pictures of nodes: decoded within bounds, held against the size that was asked for, and written anew.

use std::io::Cursor;

use bytes::Bytes;
use cxmpute_wire::openai::PictureFormat;
use image::codecs::jpeg::JpegEncoder;
use image::{DynamicImage, ImageFormat};

use super::picture::open;

/// Quality of JPEG, of 100.
const JPEG_QUALITY: u8 = 90;

/// A picture of a node that is what was asked for.
#[derive(Debug)]
pub struct Frame {
    pixels: DynamicImage,
}

/// Why it is not, or was not written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It cannot be decoded.
    #[error("the picture is broken")]
    Broken,
    /// It has another size.
    #[error("the picture has another size than was asked for")]
    Size,
    /// All of it has one colour: what servers send in place of a picture that they do not show.
    #[error("the picture is blank")]
    Blank,
    /// It was not packed.
    #[error("the picture cannot be packed")]
    Pack,
}

impl Frame {
    /// Decodes a picture of exactly this width and height; blocking work.
    ///
    /// # Errors
    /// It is none.
    pub fn read(file: &[u8], size: (u32, u32)) -> Result<Self, FrameError> {
        // Whatever has more pixels than were asked for is not decoded at all.
        let most = u64::from(size.0) * u64::from(size.1);
        let pixels = open(file, most).map_err(|error| match error {
            super::PictureError::TooLarge => FrameError::Size,
            super::PictureError::Unknown | super::PictureError::Broken => FrameError::Broken,
        })?;
        if (pixels.width(), pixels.height()) != size {
            return Err(FrameError::Size);
        }
        let bytes = pixels.as_bytes();
        let step = usize::from(pixels.color().bytes_per_pixel());
        let blank = bytes.chunks_exact(step).all(|pixel| pixel == &bytes[..step]);
        if blank { Err(FrameError::Blank) } else { Ok(Self { pixels }) }
    }

    /// The picture as a file; blocking work.
    ///
    /// # Errors
    /// The encoder failed.
    pub fn pack(&self, format: PictureFormat) -> Result<Bytes, FrameError> {
        let mut file = Cursor::new(Vec::new());
        match format {
            PictureFormat::Png => self.pixels.write_to(&mut file, ImageFormat::Png),
            PictureFormat::Webp => self.pixels.to_rgb8().write_to(&mut file, ImageFormat::WebP),
            PictureFormat::Jpeg => {
                self.pixels.write_with_encoder(JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY))
            }
        }
        .map_err(|_| FrameError::Pack)?;
        Ok(file.into_inner().into())
    }
}

/// The media type of a format.
#[must_use]
pub const fn content_type(format: PictureFormat) -> &'static str {
    match format {
        PictureFormat::Png => "image/png",
        PictureFormat::Jpeg => "image/jpeg",
        PictureFormat::Webp => "image/webp",
    }
}

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::*;

    fn file(width: u32, height: u32, colour: impl Fn(u32) -> u8) -> Vec<u8> {
        let picture = RgbImage::from_fn(width, height, |x, _| Rgb([colour(x), 40, 200]));
        let mut out = Cursor::new(Vec::new());
        DynamicImage::ImageRgb8(picture).write_to(&mut out, ImageFormat::Png).unwrap();
        out.into_inner()
    }

    #[test]
    fn a_picture_of_a_node_is_held_to_what_was_asked_for() {
        let good = file(64, 32, |x| x as u8);
        let frame = Frame::read(&good, (64, 32)).unwrap();
        for (format, kind) in [
            (PictureFormat::Png, ImageFormat::Png),
            (PictureFormat::Jpeg, ImageFormat::Jpeg),
            (PictureFormat::Webp, ImageFormat::WebP),
        ] {
            let packed = frame.pack(format).unwrap();
            assert_eq!(image::guess_format(&packed).unwrap(), kind);
            assert_eq!(content_type(format), kind.to_mime_type());
            let again = image::load_from_memory(&packed).unwrap();
            assert_eq!((again.width(), again.height()), (64, 32));
        }
        assert_eq!(Frame::read(&good, (32, 64)).unwrap_err(), FrameError::Size);
        assert_eq!(Frame::read(&good, (32, 32)).unwrap_err(), FrameError::Size);
        assert_eq!(Frame::read(&good[..60], (64, 32)).unwrap_err(), FrameError::Broken);
        assert_eq!(Frame::read(b"<html>", (64, 32)).unwrap_err(), FrameError::Broken);
        assert_eq!(Frame::read(&file(64, 32, |_| 7), (64, 32)).unwrap_err(), FrameError::Blank);
    }
}
