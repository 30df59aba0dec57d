//! Recordings in: any container and codec that the decoders know, to one channel at the rate that engines which listen
//! expect. The length that is paid comes from the samples, never from what a file says about itself.

use std::io::Cursor;
use std::time::Duration;

use bytes::Bytes;
use cxmpute_wire::Millis;
use cxmpute_wire::wave::Wave;
use rubato::audioadapter_buffers::owned::InterleavedOwned;
use rubato::{Fft, FixedSync, Resampler as _};
use symphonia::core::codecs::audio::AudioDecoderOptions;
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, TrackType};
use symphonia::core::io::MediaSourceStream;
use symphonia::core::meta::MetadataOptions;

/// Samples per second that engines which listen are given.
pub const SPEECH_RATE: u32 = 16_000;
/// Samples that are turned into another rate at a time.
const CHUNK: usize = 8_192;
/// The same where somebody waits for them: the twentieth part of a second.
const SOON: usize = 1_024;
/// Packets in a row that may be broken.
const BROKEN_PACKETS: u32 = 64;
/// Rates that recordings have.
const RATES: std::ops::RangeInclusive<u32> = 4_000..=192_000;

/// A recording of one channel at [`SPEECH_RATE`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sound {
    /// 16-bit little-endian samples.
    pub samples: Vec<u8>,
}

/// Why a file is no recording that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SoundError {
    /// No decoder knows it.
    #[error(
        "the file is no sound in wav, mp3, flac, ogg (vorbis), m4a (aac) or, where the gateway has ffmpeg, opus (ogg, webm)"
    )]
    Unknown,
    /// It begins well and goes on badly.
    #[error("the file is broken")]
    Broken,
    /// There is nothing in it.
    #[error("the file holds no sound")]
    Empty,
    /// It is longer than it may be.
    #[error("the sound is longer than {} s", .0.as_secs())]
    TooLong(Duration),
}

impl Sound {
    /// Decodes a file; blocking work.
    ///
    /// # Errors
    /// Why it cannot be used.
    pub fn decode(file: Bytes, longest: Duration) -> Result<Self, SoundError> {
        let stream = MediaSourceStream::new(Box::new(Cursor::new(file)), Default::default());
        let (format, meta) = (FormatOptions::default(), MetadataOptions::default());
        let mut format = symphonia::default::get_probe()
            .probe(&Hint::new(), stream, format, meta)
            .map_err(|_| SoundError::Unknown)?;
        let track = format.default_track(TrackType::Audio).ok_or(SoundError::Unknown)?;
        let parameters = track.codec_params.as_ref().and_then(|parameters| parameters.audio());
        let parameters = parameters.ok_or(SoundError::Unknown)?;
        let mut decoder = symphonia::default::get_codecs()
            .make_audio_decoder(parameters, &AudioDecoderOptions::default())
            .map_err(|_| SoundError::Unknown)?;
        let id = track.id;
        let mut converter: Option<Converter> = None;
        let mut interleaved: Vec<f32> = Vec::new();
        let mut broken = 0;
        loop {
            let packet = match format.next_packet() {
                Ok(Some(packet)) if packet.track_id == id => packet,
                Ok(Some(_)) => continue,
                Ok(None) | Err(Error::ResetRequired) => break,
                // A file that is cut off ends where it is cut.
                Err(Error::IoError(_)) if converter.is_some() => break,
                Err(_) => return Err(SoundError::Broken),
            };
            let decoded = match decoder.decode(&packet) {
                Ok(decoded) => decoded,
                Err(Error::DecodeError(_) | Error::IoError(_)) if broken < BROKEN_PACKETS => {
                    broken += 1;
                    continue;
                }
                Err(_) => return Err(SoundError::Broken),
            };
            broken = 0;
            let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count());
            if channels == 0 || decoded.frames() == 0 {
                continue;
            }
            let converter = match &mut converter {
                Some(converter) if converter.rate == rate => converter,
                // The rate of a recording does not change in the middle of it.
                Some(_) => return Err(SoundError::Broken),
                none => none.insert(Converter::new(rate, SPEECH_RATE)?),
            };
            decoded.copy_to_vec_interleaved(&mut interleaved);
            converter.take(interleaved.chunks_exact(channels).map(|frame| {
                let sum: f32 = frame.iter().sum();
                sum / channels as f32
            }))?;
            if converter.length() > longest {
                return Err(SoundError::TooLong(longest));
            }
        }
        let samples = converter.ok_or(SoundError::Empty)?.finish()?;
        if samples.is_empty() { Err(SoundError::Empty) } else { Ok(Self { samples }) }
    }

    /// As a waveform.
    #[must_use]
    pub fn wave(&self) -> Wave<'_> {
        Wave { rate: SPEECH_RATE, channels: 1, samples: &self.samples }
    }

    /// Its length.
    #[must_use]
    pub fn length(&self) -> Millis {
        Millis(self.wave().millis())
    }
}

/// A waveform at another rate, as one channel; blocking work.
///
/// # Errors
/// The rate is none that sound has.
pub fn resample(wave: &Wave<'_>, rate: u32) -> Result<Vec<u8>, SoundError> {
    let mut converter = Converter::new(wave.rate, rate)?;
    converter.take_frames(wave.samples, wave.channels)?;
    converter.finish()
}

/// Turns one channel into another rate, piece by piece.
pub(super) struct Converter {
    rate: u32,
    target: u32,
    chunk: usize,
    /// None where both rates are the same.
    filter: Option<Fft<f32>>,
    pending: Vec<f32>,
    /// Samples that came in.
    taken: u64,
    /// Samples of the filter's own delay that are still to be left out.
    delay: usize,
    out: Vec<u8>,
    /// Bytes that were taken out before.
    drained: usize,
}

impl std::fmt::Debug for Converter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Converter")
            .field("rate", &self.rate)
            .field("target", &self.target)
            .finish_non_exhaustive()
    }
}

impl Converter {
    fn new(rate: u32, target: u32) -> Result<Self, SoundError> {
        Self::by(rate, target, CHUNK)
    }

    /// One whose samples come out soon.
    pub(super) fn soon(rate: u32, target: u32) -> Result<Self, SoundError> {
        Self::by(rate, target, SOON)
    }

    fn by(rate: u32, target: u32, chunk: usize) -> Result<Self, SoundError> {
        if !RATES.contains(&rate) {
            return Err(SoundError::Unknown);
        }
        let filter = if rate == target {
            None
        } else {
            let filter = Fft::new(rate as usize, target as usize, chunk, 1, FixedSync::Input);
            Some(filter.map_err(|_| SoundError::Unknown)?)
        };
        let delay = filter.as_ref().map_or(0, |filter| filter.output_delay());
        Ok(Self {
            rate,
            target,
            chunk,
            filter,
            pending: Vec::new(),
            taken: 0,
            delay,
            out: Vec::new(),
            drained: 0,
        })
    }

    /// Takes 16-bit samples, the channels by turns.
    pub(super) fn take_frames(&mut self, samples: &[u8], channels: u16) -> Result<(), SoundError> {
        let channels = usize::from(channels);
        self.take(samples.chunks_exact(2 * channels).map(|frame| {
            let sum: f32 =
                frame.chunks_exact(2).map(|s| f32::from(i16::from_le_bytes([s[0], s[1]])) / 32_768.0).sum();
            sum / channels as f32
        }))
    }

    /// What is ready of the samples.
    pub(super) fn drain(&mut self) -> Vec<u8> {
        self.drained += self.out.len();
        std::mem::take(&mut self.out)
    }

    fn length(&self) -> Duration {
        Duration::from_millis(self.taken * 1_000 / u64::from(self.rate))
    }

    fn take(&mut self, samples: impl Iterator<Item = f32>) -> Result<(), SoundError> {
        let before = self.pending.len();
        self.pending.extend(samples);
        self.taken += (self.pending.len() - before) as u64;
        self.convert()
    }

    fn convert(&mut self) -> Result<(), SoundError> {
        let Some(filter) = &mut self.filter else {
            let pending = std::mem::take(&mut self.pending);
            write(&mut self.out, &pending);
            return Ok(());
        };
        let mut from = 0;
        while self.pending.len() - from >= filter.input_frames_next() {
            let size = filter.input_frames_next();
            let piece = self.pending[from..from + size].to_vec();
            from += size;
            let piece = InterleavedOwned::new_from(piece, 1, size).map_err(|_| SoundError::Broken)?;
            let made = filter.process(&piece, None).map_err(|_| SoundError::Broken)?.take_data();
            let skipped = self.delay.min(made.len());
            self.delay -= skipped;
            write(&mut self.out, &made[skipped..]);
        }
        self.pending.drain(..from);
        Ok(())
    }

    /// The rest of the samples, in all exactly as many as the length is worth.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, SoundError> {
        let frames = (self.taken * u64::from(self.target)).div_ceil(u64::from(self.rate));
        let bytes = usize::try_from(frames * 2).unwrap_or(usize::MAX).saturating_sub(self.drained);
        while self.out.len() < bytes {
            // Silence pushes out what the filter still holds.
            self.pending.resize(self.pending.len() + self.chunk, 0.0);
            self.convert()?;
        }
        self.out.truncate(bytes);
        Ok(self.out)
    }
}

fn write(out: &mut Vec<u8>, samples: &[f32]) {
    for sample in samples {
        #[expect(clippy::cast_possible_truncation, reason = "the value is held within the range before")]
        let sample = (sample * 32_767.0).round().clamp(-32_768.0, 32_767.0) as i16;
        out.extend_from_slice(&sample.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// A tone of 440 Hz.
    fn tone(rate: u32, channels: u16, seconds: f64) -> Vec<u8> {
        let count = (f64::from(rate) * seconds) as usize;
        let sample = |at: usize| {
            let phase = at as f64 * 440.0 * std::f64::consts::TAU / f64::from(rate);
            (phase.sin() * 12_000.0) as i16
        };
        (0..count).flat_map(|at| sample(at).to_le_bytes().repeat(channels.into())).collect()
    }

    /// How often the sound passes zero upwards, per second.
    fn pitch(samples: &[u8], rate: u32) -> f64 {
        let values: Vec<i16> = samples.chunks_exact(2).map(|s| i16::from_le_bytes([s[0], s[1]])).collect();
        let crossings = values.windows(2).filter(|pair| pair[0] < 0 && pair[1] >= 0).count();
        crossings as f64 * f64::from(rate) / values.len() as f64
    }

    #[test]
    fn every_rate_and_channel_count_becomes_the_same_sound() {
        for (rate, channels) in [(8_000, 1), (16_000, 1), (16_000, 2), (22_050, 1), (44_100, 2), (48_000, 2)]
        {
            let samples = tone(rate, channels, 1.5);
            let file = Wave { rate, channels, samples: &samples }.pack();
            let sound = Sound::decode(file.into(), LONG).unwrap();
            assert_eq!(sound.length(), Millis(1_500), "{rate} {channels}");
            assert!((pitch(&sound.samples, SPEECH_RATE) - 440.0).abs() < 4.0, "{rate} {channels}");
        }
    }

    #[test]
    fn a_waveform_changes_its_rate_and_keeps_its_pitch_and_length() {
        let samples = tone(22_050, 1, 1.0);
        let made = resample(&Wave { rate: 22_050, channels: 1, samples: &samples }, 24_000).unwrap();
        assert_eq!(made.len(), 48_000);
        assert!((pitch(&made, 24_000) - 440.0).abs() < 4.0);
    }

    #[test]
    fn what_is_no_sound_is_refused() {
        let samples = tone(16_000, 1, 2.0);
        let file = Bytes::from(Wave { rate: 16_000, channels: 1, samples: &samples }.pack());
        let short = Duration::from_secs(1);
        assert_eq!(Sound::decode(file.clone(), short), Err(SoundError::TooLong(short)));
        assert_eq!(Sound::decode(Bytes::from_static(b"hello"), LONG), Err(SoundError::Unknown));
        assert_eq!(Sound::decode(Bytes::new(), LONG), Err(SoundError::Unknown));
        assert!(Sound::decode(file.slice(..44), LONG).is_err());
        // A file that is cut off is heard up to there.
        assert!(Sound::decode(file.slice(..20_000), LONG).unwrap().length().0 < 700);
    }
}
