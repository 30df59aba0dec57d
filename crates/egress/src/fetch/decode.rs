//! Unpacking a body while it arrives, with every decoded byte counted before it is kept.

use std::io::{self, Write};

use brotli_decompressor::{BrotliDecoderParameter, DecompressorWriter};
use bytes::Bytes;
use flate2::write::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};

use super::{FetchError, Limits};

/// What is asked for.
pub(super) const ACCEPTED: &str = "gzip, deflate, br";
/// Below this many decoded bytes the ratio is not judged: a small page of one repeated line is no bomb.
const RATIO_FLOOR_BYTES: u64 = 64 * 1024;
/// What packing may add to a body that does not get smaller by it.
const PACKING_SLACK_BYTES: usize = 64 * 1024;
/// Buffer of the brotli decoder.
const BROTLI_BUFFER_BYTES: usize = 16 * 1024;

/// A body on its way in.
pub(super) struct Decoder {
    codec: Codec,
    wire_limit: u64,
    cut: bool,
    limit_bytes: usize,
    ratio: u64,
}

enum Codec {
    Plain(Sink),
    Gzip(Box<MultiGzDecoder<Sink>>),
    /// `deflate`, until its first byte tells whether it has the zlib frame that the standard asks for.
    Undecided(Sink),
    Zlib(Box<ZlibDecoder<Sink>>),
    Deflate(Box<DeflateDecoder<Sink>>),
    Brotli(Box<DecompressorWriter<Sink>>),
    Spent,
}

/// Where decoded bytes go. It refuses what is too much before it grows.
struct Sink {
    out: Vec<u8>,
    limit_bytes: usize,
    ratio: u64,
    wire_bytes: u64,
    excess: Option<Excess>,
    counts: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Excess {
    Size,
    Ratio,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let after = self.out.len() + bytes.len();
        if self.counts {
            let decoded = after as u64;
            if decoded > RATIO_FLOOR_BYTES && decoded > self.wire_bytes.saturating_mul(self.ratio) {
                self.excess = Some(Excess::Ratio);
            } else if after > self.limit_bytes {
                self.out.extend_from_slice(&bytes[..self.limit_bytes - self.out.len()]);
                self.excess = Some(Excess::Size);
            }
            if self.excess.is_some() {
                return Err(io::Error::other("over a limit"));
            }
        }
        self.out.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Decoder {
    /// A decoder for a coding; the empty text means none.
    ///
    /// # Errors
    /// The coding is not known, or there are several.
    pub(super) fn new(coding: &str, limits: &Limits, cut: bool, counts: bool) -> Result<Self, FetchError> {
        let sink = Sink {
            out: Vec::new(),
            limit_bytes: limits.decoded_bytes,
            ratio: limits.ratio,
            wire_bytes: 0,
            excess: None,
            counts,
        };
        let codec = match coding {
            "" => Codec::Plain(sink),
            "gzip" | "x-gzip" => Codec::Gzip(Box::new(MultiGzDecoder::new(sink))),
            "deflate" => Codec::Undecided(sink),
            "br" => Codec::Brotli(Box::new(brotli(sink))),
            other => return Err(FetchError::Encoding(other.chars().take(40).collect())),
        };
        let wire_limit = (limits.decoded_bytes + PACKING_SLACK_BYTES) as u64;
        Ok(Self { codec, wire_limit, cut, limit_bytes: limits.decoded_bytes, ratio: limits.ratio })
    }

    /// The most bytes that a body of the allowed size can have on the wire.
    pub(super) const fn wire_limit(&self) -> u64 {
        self.wire_limit
    }

    /// Takes the next bytes of the wire; `false` when it was cut at its limit and no more is wanted.
    ///
    /// # Errors
    /// The body is too large, a bomb, or damaged.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<bool, FetchError> {
        if bytes.is_empty() {
            return Ok(true);
        }
        if matches!(self.codec, Codec::Undecided(_)) {
            self.decide(bytes[0]);
        }
        let Some(sink) = self.sink() else { return Ok(false) };
        sink.wire_bytes += bytes.len() as u64;
        let over_wire = sink.counts && sink.wire_bytes > self.wire_limit;
        let written = match &mut self.codec {
            Codec::Plain(sink) | Codec::Undecided(sink) => sink.write_all(bytes),
            Codec::Gzip(decoder) => decoder.write_all(bytes),
            Codec::Zlib(decoder) => decoder.write_all(bytes),
            Codec::Deflate(decoder) => decoder.write_all(bytes),
            Codec::Brotli(decoder) => decoder.write_all(bytes),
            Codec::Spent => return Ok(false),
        };
        let excess = self.sink().and_then(|sink| sink.excess);
        let excess = excess.or(over_wire.then_some(Excess::Size));
        match (excess, written) {
            (None, Ok(())) => Ok(true),
            (Some(Excess::Size), _) if self.cut => Ok(false),
            (Some(Excess::Size), _) => Err(FetchError::TooLarge { limit_bytes: self.limit_bytes }),
            (Some(Excess::Ratio), _) => Err(FetchError::Ratio { limit: self.ratio }),
            (None, Err(error)) => Err(FetchError::Decoding(error.to_string())),
        }
    }

    /// The whole body, and its bytes on the wire.
    ///
    /// # Errors
    /// The packed body is not complete.
    pub(super) fn finish(mut self) -> Result<(Bytes, u64), FetchError> {
        let cut = self.sink().is_some_and(|sink| sink.excess.is_some());
        if !cut {
            let ended = match &mut self.codec {
                Codec::Plain(_) | Codec::Undecided(_) | Codec::Spent => Ok(()),
                Codec::Gzip(decoder) => decoder.try_finish(),
                Codec::Zlib(decoder) => decoder.try_finish(),
                Codec::Deflate(decoder) => decoder.try_finish(),
                Codec::Brotli(decoder) => decoder.close(),
            };
            match (self.sink().and_then(|sink| sink.excess), ended) {
                (None, Ok(())) => {}
                (Some(Excess::Size), _) if self.cut => {}
                (Some(Excess::Size), _) => {
                    return Err(FetchError::TooLarge { limit_bytes: self.limit_bytes });
                }
                (Some(Excess::Ratio), _) => return Err(FetchError::Ratio { limit: self.ratio }),
                (None, Err(error)) => return Err(FetchError::Decoding(error.to_string())),
            }
        }
        let (out, wire_bytes) =
            self.sink().map(|sink| (std::mem::take(&mut sink.out), sink.wire_bytes)).unwrap_or_default();
        Ok((Bytes::from(out), wire_bytes))
    }

    fn decide(&mut self, first: u8) {
        let Codec::Undecided(sink) = std::mem::replace(&mut self.codec, Codec::Spent) else { return };
        // A zlib frame begins with its method, 8, and a window of at most 32 KiB; many servers leave the frame out.
        let framed = first & 0x0f == 8 && first >> 4 <= 7;
        self.codec = if framed {
            Codec::Zlib(Box::new(ZlibDecoder::new(sink)))
        } else {
            Codec::Deflate(Box::new(DeflateDecoder::new(sink)))
        };
    }

    fn sink(&mut self) -> Option<&mut Sink> {
        match &mut self.codec {
            Codec::Plain(sink) | Codec::Undecided(sink) => Some(sink),
            Codec::Gzip(decoder) => Some(decoder.get_mut()),
            Codec::Zlib(decoder) => Some(decoder.get_mut()),
            Codec::Deflate(decoder) => Some(decoder.get_mut()),
            Codec::Brotli(decoder) => Some(decoder.get_mut()),
            Codec::Spent => None,
        }
    }
}

fn brotli(sink: Sink) -> DecompressorWriter<Sink> {
    let mut decoder = DecompressorWriter::new(sink, BROTLI_BUFFER_BYTES);
    // The window of the format is at most 16 MiB; its extension would be a gigabyte.
    decoder.set_parameter(BrotliDecoderParameter::BROTLI_DECODER_PARAM_LARGE_WINDOW, 0);
    decoder
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(coding: &str, packed: &[u8], piece: usize, limits: &Limits) -> Result<Vec<u8>, &'static str> {
        let mut decoder = Decoder::new(coding, limits, false, true).map_err(|error| error.code())?;
        for bytes in packed.chunks(piece) {
            decoder.push(bytes).map_err(|error| error.code())?;
        }
        decoder.finish().map(|(bytes, _)| bytes.to_vec()).map_err(|error| error.code())
    }

    fn pack(coding: &str, plain: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::best();
        match coding {
            "gzip" => {
                let mut packer = flate2::write::GzEncoder::new(Vec::new(), level);
                packer.write_all(plain).unwrap();
                packer.finish().unwrap()
            }
            "deflate" => {
                let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), level);
                packer.write_all(plain).unwrap();
                packer.finish().unwrap()
            }
            "raw" => {
                let mut packer = flate2::write::DeflateEncoder::new(Vec::new(), level);
                packer.write_all(plain).unwrap();
                packer.finish().unwrap()
            }
            _ => {
                let mut packed = Vec::new();
                let mut packer = brotli::CompressorWriter::new(&mut packed, 4096, 9, 22);
                packer.write_all(plain).unwrap();
                drop(packer);
                packed
            }
        }
    }

    #[test]
    fn every_coding_gives_the_body_back_whatever_the_pieces() {
        let digits = |n: u32| n.wrapping_mul(2_654_435_761).to_string().into_bytes();
        let plain: Vec<u8> = (0..20_000).flat_map(digits).collect();
        for (packing, coding) in [("gzip", "gzip"), ("deflate", "deflate"), ("raw", "deflate"), ("br", "br")]
        {
            let packed = pack(packing, &plain);
            for piece in [1, 7, 1000, packed.len()] {
                let got = decode(coding, &packed, piece, &Limits::default());
                assert!(got.as_deref() == Ok(&plain[..]), "{packing} in pieces of {piece}");
            }
            let short = &packed[..packed.len() - 4];
            assert_eq!(decode(coding, short, 1000, &Limits::default()), Err("decoding_failed"), "{packing}");
        }
        assert_eq!(decode("", b"as it is", 3, &Limits::default()).unwrap(), b"as it is");
        assert_eq!(decode("zstd", b"", 3, &Limits::default()), Err("encoding_unknown"));
        assert_eq!(decode("gzip, br", b"", 3, &Limits::default()), Err("encoding_unknown"));
        assert_eq!(decode("gzip", b"this is no gzip", 3, &Limits::default()), Err("decoding_failed"));
    }

    #[test]
    fn bombs_are_stopped_by_what_they_unpack_to() {
        let zeros = vec![0; 3 * 1024 * 1024];
        for (packing, coding) in [("gzip", "gzip"), ("deflate", "deflate"), ("raw", "deflate"), ("br", "br")]
        {
            let packed = pack(packing, &zeros);
            assert_eq!(decode(coding, &packed, 4096, &Limits::default()), Err("ratio_exceeded"), "{packing}");
            let limits = Limits { ratio: u64::MAX, decoded_bytes: 1_000_000, ..Limits::default() };
            assert_eq!(decode(coding, &packed, 4096, &limits), Err("too_large"), "{packing}");
        }
    }

    #[test]
    fn a_body_that_may_be_cut_is_cut_at_the_limit() {
        let limits = Limits { decoded_bytes: 10, ..Limits::default() };
        let mut decoder = Decoder::new("", &limits, true, true).unwrap();
        assert!(decoder.push(b"12345678").unwrap());
        assert!(!decoder.push(b"12345678").unwrap());
        assert_eq!(&decoder.finish().unwrap().0[..], b"1234567812");
    }
}
