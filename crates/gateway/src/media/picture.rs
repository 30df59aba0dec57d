//! Pictures in: decoded and written anew as PNG, so that a node gets nothing but pixels: no place where it was taken, no
//! second file behind it, nothing for a decoder to stumble over.

use std::io::Cursor;

use bytes::Bytes;
use image::{DynamicImage, ImageFormat, ImageReader, Limits};

use crate::limits;

/// A picture as nodes get it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// A PNG.
    pub png: Bytes,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
}

/// Why a file is no picture that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PictureError {
    /// No decoder knows it.
    #[error("the file is no picture in png, jpeg, webp or gif")]
    Unknown,
    /// It begins well and goes on badly.
    #[error("the picture is broken")]
    Broken,
    /// It has more pixels than it may have.
    #[error("the picture has more than {} million pixels", limits::IMAGE_PIXELS / 1_000_000)]
    TooLarge,
}

impl Picture {
    /// Decodes a file and writes it anew; blocking work. Of a moving picture the first one counts.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn decode(file: &[u8]) -> Result<Self, PictureError> {
        let plain = open(file, limits::IMAGE_PIXELS)?;
        let mut png = Cursor::new(Vec::new());
        plain.write_to(&mut png, ImageFormat::Png).map_err(|_| PictureError::Broken)?;
        Ok(Self { png: png.into_inner().into(), width: plain.width(), height: plain.height() })
    }
}

/// Decodes a file of at most so many pixels: eight bits a channel, without transparency; blocking work.
pub(super) fn open(file: &[u8], most_pixels: u64) -> Result<DynamicImage, PictureError> {
    let known = [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif];
    let format = image::guess_format(file).map_err(|_| PictureError::Unknown)?;
    if !known.contains(&format) {
        return Err(PictureError::Unknown);
    }
    // The size is read before a pixel is decoded: a bomb never gets its memory.
    let size = ImageReader::with_format(Cursor::new(file), format).into_dimensions();
    let (width, height) = size.map_err(|_| PictureError::Broken)?;
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(PictureError::Broken);
    }
    if pixels > most_pixels {
        return Err(PictureError::TooLarge);
    }
    let mut reader = ImageReader::with_format(Cursor::new(file), format);
    let mut bounds = Limits::default();
    // Four channels of two bytes, and as much again for the decoder's own tables.
    bounds.max_alloc = Some(pixels * 16 + (1 << 20));
    reader.limits(bounds);
    let decoded = reader.decode().map_err(|_| PictureError::Broken)?;
    Ok(if decoded.color().has_color() { decoded.to_rgb8().into() } else { decoded.to_luma8().into() })
}

#[cfg(test)]
mod tests {
    use image::{Rgba, RgbaImage};

    use super::*;

    fn file(format: ImageFormat) -> Vec<u8> {
        let mut picture = RgbaImage::new(40, 20);
        for (x, y, pixel) in picture.enumerate_pixels_mut() {
            *pixel = Rgba([(x * 6) as u8, (y * 12) as u8, 100, 255]);
        }
        let mut out = Cursor::new(Vec::new());
        DynamicImage::from(DynamicImage::ImageRgba8(picture).to_rgb8()).write_to(&mut out, format).unwrap();
        out.into_inner()
    }

    #[test]
    fn pictures_become_plain_png() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif] {
            let mut bytes = file(format);
            bytes.extend_from_slice(b"a secret behind the end");
            let picture = Picture::decode(&bytes).unwrap();
            assert_eq!((picture.width, picture.height), (40, 20), "{format:?}");
            let again = image::load_from_memory(&picture.png).unwrap();
            assert_eq!((again.width(), again.height()), (40, 20));
            assert!(!picture.png.windows(6).any(|part| part == b"secret"), "{format:?}");
        }
    }

    #[test]
    fn what_is_no_picture_is_refused_before_it_costs_memory() {
        let good = file(ImageFormat::Png);
        assert_eq!(Picture::decode(b"hello"), Err(PictureError::Unknown));
        assert_eq!(Picture::decode(b""), Err(PictureError::Unknown));
        assert_eq!(Picture::decode(b"BM\0\0\0\0\0\0"), Err(PictureError::Unknown));
        assert_eq!(Picture::decode(&good[..good.len() / 2]), Err(PictureError::Broken));
        // The size stands in bytes 16 to 24, and a checksum of it behind.
        let mut bomb = good[..33].to_vec();
        bomb[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
        bomb[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
        let sum = crc32fast::hash(&bomb[12..29]).to_be_bytes();
        bomb[29..33].copy_from_slice(&sum);
        bomb.extend_from_slice(&good[33..]);
        assert_eq!(Picture::decode(&bomb), Err(PictureError::TooLarge));
    }
}
