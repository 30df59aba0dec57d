//! Recordings that only ffmpeg knows: Opus, in Ogg as telephones send it, or in WebM as browsers record it.

use std::time::Duration;

use super::ffmpeg::Ffmpeg;
use super::sound::{SPEECH_RATE, Sound, SoundError};

/// Bytes of a sample.
const SAMPLE: u64 = 2;

/// ffmpeg's name of the container, where it is one of these.
fn container(file: &[u8]) -> Option<&'static str> {
    match file {
        [0x1a, 0x45, 0xdf, 0xa3, ..] => Some("matroska"),
        [b'O', b'g', b'g', b'S', ..] => Some("ogg"),
        _ => None,
    }
}

/// Decodes such a recording. Its length is that of the samples which came out.
///
/// # Errors
/// It is another file, or none that can be used.
pub async fn unpack(ffmpeg: &Ffmpeg, file: &[u8], longest: Duration) -> Result<Sound, SoundError> {
    let from = container(file).ok_or(SoundError::Unknown)?;
    let rate = SPEECH_RATE.to_string();
    // One second more than is taken tells what is too long from what just fits.
    let seconds = longest.as_secs() + 1;
    let (most, bytes) = (seconds.to_string(), seconds * u64::from(SPEECH_RATE) * SAMPLE);
    let to = ["-ac", "1", "-ar", &rate, "-t", &most, "-c:a", "pcm_s16le", "-f", "s16le"];
    let limit = usize::try_from(bytes).unwrap_or(usize::MAX);
    let samples = ffmpeg.turn(from, file, &to, limit).await.map_err(|error| {
        tracing::debug!(%error, "ffmpeg did not decode a recording");
        SoundError::Broken
    })?;
    let sound = Sound { samples };
    match sound.samples.is_empty() {
        true => Err(SoundError::Empty),
        false if sound.length().duration() > longest => Err(SoundError::TooLong(longest)),
        false => Ok(sound),
    }
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::openai::AudioFormat;
    use cxmpute_wire::wave::Wave;

    use super::*;
    use crate::media::{Packer, skipped};

    const LONG: Duration = Duration::from_secs(60);

    /// Two seconds of a tone.
    fn wave() -> Vec<u8> {
        let sample = |at: u32| ((f64::from(at) * 0.1).sin() * 9_000.0) as i16;
        let samples: Vec<u8> = (0..44_100).flat_map(|at| sample(at).to_le_bytes()).collect();
        Wave { rate: 22_050, channels: 1, samples: &samples }.pack()
    }

    #[tokio::test]
    async fn opus_is_as_long_as_it_was_and_nothing_longer_is_taken() {
        let Some(ffmpeg) = Ffmpeg::find(None, "/nonexistent".as_ref()) else {
            return skipped("ffmpeg is not installed");
        };
        let ogg = Packer::new(Some(ffmpeg.clone())).pack(wave().into(), AudioFormat::Opus).await.unwrap();
        let to = ["-c:a", "libopus", "-f", "webm"];
        let webm = ffmpeg.turn("wav", &wave(), &to, 1 << 20).await.unwrap();
        for file in [&ogg[..], &webm] {
            assert_eq!(
                Sound::decode(file.to_vec().into(), LONG),
                Err(SoundError::Unknown),
                "nobody else knows it"
            );
            let sound = unpack(&ffmpeg, file, LONG).await.unwrap();
            assert!((1_950..2_100).contains(&sound.length().0), "{:?}", sound.length());
            let second = Duration::from_secs(1);
            assert_eq!(unpack(&ffmpeg, file, second).await, Err(SoundError::TooLong(second)));
            let cut = unpack(&ffmpeg, &file[..file.len() / 2], LONG).await.unwrap();
            assert!(cut.length() < sound.length(), "what is cut off ends where it is cut");
            let head = unpack(&ffmpeg, &file[..40], LONG).await;
            assert!(matches!(head, Err(SoundError::Broken | SoundError::Empty)), "{head:?}");
        }
    }

    #[tokio::test]
    async fn what_looks_like_something_else_is_not_even_tried() {
        let Some(ffmpeg) = Ffmpeg::find(None, "/nonexistent".as_ref()) else {
            return skipped("ffmpeg is not installed");
        };
        // A playlist would make ffmpeg open other files.
        for file in [&b"#EXTM3U\nfile:///etc/passwd\n"[..], b"ffconcat version 1.0\nfile /etc/passwd\n", b""]
        {
            assert_eq!(unpack(&ffmpeg, file, LONG).await, Err(SoundError::Unknown));
        }
        let lie = [b"OggS".as_slice(), b"#EXTM3U\nfile:///etc/passwd\n"].concat();
        assert!(matches!(unpack(&ffmpeg, &lie, LONG).await, Err(SoundError::Broken | SoundError::Empty)));
    }
}
