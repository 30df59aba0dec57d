//! Speech out, in the packing that the client asked for. Waveforms and bare samples are made here; what needs an encoder
//! is made by ffmpeg, where the operator has it, from samples that were checked before, in a process without network and
//! rights.

use std::time::Duration;

use bytes::Bytes;
use cxmpute_runtime::once::OnceError;
use cxmpute_wire::openai::AudioFormat;
use cxmpute_wire::wave::Wave;

use super::packing::Form;
use super::sound::Converter;
use super::{Ffmpeg, Packing, resample};

/// Samples per second of [`AudioFormat::Pcm`], as OpenAI has it.
const PCM_RATE: u32 = 24_000;
/// Most bytes of a packed answer.
const OUTPUT: usize = 64 * 1024 * 1024;

/// What packs speech.
#[derive(Debug, Clone, Default)]
pub struct Packer {
    ffmpeg: Option<Ffmpeg>,
}

/// Why an answer was not packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The encoder failed.
    #[error("ffmpeg: {0}")]
    Encoder(#[from] OnceError),
    /// The samples could not be turned into another rate.
    #[error("the samples have a rate that cannot be turned into {PCM_RATE}")]
    Rate,
    /// The format needs an encoder that is not there.
    #[error("no encoder makes {}", .0.as_str())]
    NoEncoder(AudioFormat),
}

impl Packer {
    /// One that packs with this encoder.
    #[must_use]
    pub const fn new(ffmpeg: Option<Ffmpeg>) -> Self {
        Self { ffmpeg }
    }

    /// Whether it can make this.
    #[must_use]
    pub fn makes(&self, format: AudioFormat) -> bool {
        matches!(format, AudioFormat::Wav | AudioFormat::Pcm) || self.ffmpeg.is_some()
    }

    /// What is made when the client does not say: OpenAI's `mp3` where there is an encoder.
    #[must_use]
    pub fn usual(&self) -> AudioFormat {
        if self.makes(AudioFormat::Mp3) { AudioFormat::Mp3 } else { AudioFormat::Wav }
    }

    /// Packs a waveform that was checked.
    ///
    /// # Errors
    /// The encoder failed, or there is none.
    pub async fn pack(&self, wave: Bytes, format: AudioFormat) -> Result<Bytes, PackError> {
        match format {
            AudioFormat::Wav => return Ok(wave),
            AudioFormat::Pcm => {
                let made = tokio::task::spawn_blocking(move || {
                    let wave = Wave::read(&wave).ok()?;
                    resample(&wave, PCM_RATE).ok()
                });
                return made.await.ok().flatten().map(Bytes::from).ok_or(PackError::Rate);
            }
            AudioFormat::Mp3 | AudioFormat::Opus | AudioFormat::Aac | AudioFormat::Flac => {}
        }
        let Some(ffmpeg) = &self.ffmpeg else { return Err(PackError::NoEncoder(format)) };
        Ok(ffmpeg.turn("wav", &wave, codec(format), OUTPUT).await?.into())
    }

    /// Begins to pack samples of this rate and so many channels that are still to come, for so long at most.
    ///
    /// # Errors
    /// The encoder cannot be started, or there is none.
    pub fn begin(
        &self,
        format: AudioFormat,
        rate: u32,
        channels: u16,
        time: Duration,
    ) -> Result<Packing, PackError> {
        let form = match (format, &self.ffmpeg) {
            (AudioFormat::Wav, _) => Form::Wave,
            (AudioFormat::Pcm, _) => {
                let converter = Converter::soon(rate, PCM_RATE).map_err(|_| PackError::Rate)?;
                Form::Samples(Some(Box::new(converter)))
            }
            (_, None) => return Err(PackError::NoEncoder(format)),
            (_, Some(ffmpeg)) => {
                Form::Encoder(Box::new(ffmpeg.begin((rate, channels), codec(format), OUTPUT, time)?))
            }
        };
        Ok(Packing::new(form, rate, channels))
    }
}

/// What the encoder is told to make.
const fn codec(format: AudioFormat) -> &'static [&'static str] {
    match format {
        // No frame in front that would say how long the sound is.
        AudioFormat::Mp3 => &["-c:a", "libmp3lame", "-b:a", "96k", "-write_xing", "0", "-f", "mp3"],
        AudioFormat::Opus => &["-c:a", "libopus", "-b:a", "48k", "-page_duration", "100000", "-f", "ogg"],
        AudioFormat::Aac => &["-c:a", "aac", "-b:a", "96k", "-f", "adts"],
        _ => &["-c:a", "flac", "-f", "flac"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::media::Sound;

    fn wave() -> Bytes {
        let samples: Vec<u8> = (0..22_050_u32)
            .flat_map(|at| {
                ((f64::from(at) * 0.1).sin() * 9_000.0)
                    .round()
                    .to_string()
                    .parse::<i16>()
                    .unwrap()
                    .to_le_bytes()
            })
            .collect();
        Wave { rate: 22_050, channels: 1, samples: &samples }.pack().into()
    }

    #[tokio::test]
    async fn without_an_encoder_there_are_waveforms_and_samples() {
        let packer = Packer::new(None);
        assert_eq!(packer.usual(), AudioFormat::Wav);
        assert_eq!(packer.pack(wave(), AudioFormat::Wav).await.unwrap(), wave());
        assert_eq!(packer.pack(wave(), AudioFormat::Pcm).await.unwrap().len(), 48_000);
        assert!(!packer.makes(AudioFormat::Mp3));
        assert!(matches!(packer.pack(wave(), AudioFormat::Mp3).await, Err(PackError::NoEncoder(_))));
    }

    #[tokio::test]
    async fn what_ffmpeg_packs_is_as_long_as_what_it_was_given() {
        let packer = Packer::new(Ffmpeg::find(None, "/nonexistent".as_ref()));
        if !packer.makes(AudioFormat::Mp3) {
            crate::media::skipped("ffmpeg is not installed");
            return;
        }
        for (format, magic) in [
            (AudioFormat::Mp3, &b"ID3"[..]),
            (AudioFormat::Opus, b"OggS"),
            (AudioFormat::Aac, &[0xff, 0xf1]),
            (AudioFormat::Flac, b"fLaC"),
        ] {
            let packed = packer.pack(wave(), format).await.unwrap();
            let known = packed.starts_with(magic) || (format == AudioFormat::Mp3 && packed[0] == 0xff);
            assert!(known, "{format:?} {:?}", &packed[..4]);
            // Opus has no decoder here, and bare AAC frames no container.
            if matches!(format, AudioFormat::Mp3 | AudioFormat::Flac) {
                let length = Sound::decode(packed, Duration::from_secs(9)).unwrap().length().0;
                assert!((950..1_150).contains(&length), "{format:?} {length}");
            }
        }
    }
}
