//! Speech that is packed while it is made: samples go in piece by piece, and what the client asked for comes out as soon as it is
//! there.

use std::collections::VecDeque;

use bytes::Bytes;
use cxmpute_runtime::once::Running;
use cxmpute_wire::wave::Wave;

use super::PackError;
use super::sound::Converter;

/// Bytes that may wait for the encoder; above it nothing more is taken from the node.
const UNREAD: usize = 256 * 1024;

/// One answer on its way.
#[derive(Debug)]
pub struct Packing {
    form: Form,
    channels: u16,
    made: VecDeque<Bytes>,
    closed: bool,
}

#[derive(Debug)]
pub(super) enum Form {
    /// The samples as they are, behind a header that is said first.
    Wave,
    /// The samples at another rate, and nothing around them; none once it is closed.
    Samples(Option<Box<Converter>>),
    /// What an encoder makes of them.
    Encoder(Box<Running>),
}

impl Packing {
    pub(super) fn new(form: Form, rate: u32, channels: u16) -> Self {
        let made = match form {
            Form::Wave => VecDeque::from([Wave::open_header(rate, channels).into()]),
            Form::Samples(_) | Form::Encoder(_) => VecDeque::new(),
        };
        Self { form, channels, made, closed: false }
    }

    /// Takes samples, whole frames of them.
    ///
    /// # Errors
    /// They cannot be turned into the wanted rate.
    pub fn give(&mut self, samples: Bytes) -> Result<(), PackError> {
        match &mut self.form {
            Form::Wave => self.made.push_back(samples),
            Form::Encoder(running) => running.give(samples),
            Form::Samples(None) => {}
            Form::Samples(Some(converter)) => {
                converter.take_frames(&samples, self.channels).map_err(|_| PackError::Rate)?;
                let made = converter.drain();
                if !made.is_empty() {
                    self.made.push_back(made.into());
                }
            }
        }
        Ok(())
    }

    /// That was all.
    ///
    /// # Errors
    /// As [`Self::give`].
    pub fn close(&mut self) -> Result<(), PackError> {
        self.closed = true;
        match &mut self.form {
            Form::Wave => {}
            Form::Encoder(running) => running.close(),
            Form::Samples(converter) => {
                if let Some(converter) = converter.take() {
                    self.made.push_back(converter.finish().map_err(|_| PackError::Rate)?.into());
                }
            }
        }
        Ok(())
    }

    /// Whether so much waits here that nothing more should be given.
    #[must_use]
    pub fn is_full(&self) -> bool {
        match &self.form {
            Form::Encoder(running) => running.unread() > UNREAD,
            Form::Wave | Form::Samples(_) => !self.made.is_empty(),
        }
    }

    /// The next part of the answer, when it is there; `None` after the last one. May be dropped and asked again.
    ///
    /// # Errors
    /// The encoder failed.
    pub async fn made(&mut self) -> Option<Result<Bytes, PackError>> {
        if let Form::Encoder(running) = &mut self.form {
            return running.chunk().await.map(|piece| piece.map_err(PackError::Encoder));
        }
        match self.made.pop_front() {
            Some(piece) => Some(Ok(piece)),
            None if self.closed => None,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use cxmpute_wire::openai::AudioFormat;

    use super::*;
    use crate::media::{Ffmpeg, Packer, Sound, skipped};

    const LONG: Duration = Duration::from_secs(60);

    /// A second of a tone in two channels, in pieces.
    fn pieces() -> Vec<Bytes> {
        let sample = |at: u32| ((f64::from(at) * 0.1).sin() * 9_000.0) as i16;
        let samples: Vec<u8> =
            (0..22_050).flat_map(|at| [sample(at), sample(at)]).flat_map(i16::to_le_bytes).collect();
        samples.chunks(4_000).map(Bytes::copy_from_slice).collect()
    }

    async fn pack(packer: &Packer, format: AudioFormat) -> (usize, Vec<u8>) {
        let mut packing = packer.begin(format, 22_050, 2, LONG).unwrap();
        let mut given = pieces().into_iter();
        let (mut count, mut whole) = (0, Vec::new());
        loop {
            if !packing.is_full() {
                match given.next() {
                    Some(piece) => packing.give(piece).unwrap(),
                    None => packing.close().unwrap(),
                }
            }
            let made = tokio::time::timeout(Duration::from_millis(1), packing.made()).await;
            match made {
                Ok(Some(piece)) => {
                    count += 1;
                    whole.extend_from_slice(&piece.unwrap());
                }
                Ok(None) => return (count, whole),
                Err(_) => {}
            }
        }
    }

    #[tokio::test]
    async fn samples_come_out_as_they_go_in() {
        let packer = Packer::new(None);
        let (count, whole) = pack(&packer, AudioFormat::Wav).await;
        let wave = Wave::read(&whole).unwrap();
        assert_eq!((wave.rate, wave.channels, wave.samples), (22_050, 2, &pieces().concat()[..]));
        assert_eq!(count, pieces().len() + 1);
        let (count, whole) = pack(&packer, AudioFormat::Pcm).await;
        assert!(count > 10, "{count}");
        assert_eq!(whole.len(), packer.pack(wave.pack().into(), AudioFormat::Pcm).await.unwrap().len());
        assert!(whole[whole.len() / 2..].iter().any(|byte| *byte != 0));
        assert!(matches!(packer.begin(AudioFormat::Mp3, 22_050, 1, LONG), Err(PackError::NoEncoder(_))));
    }

    #[tokio::test]
    async fn what_ffmpeg_packs_on_the_way_is_the_same_sound() {
        let ffmpeg = Ffmpeg::find(None, "/nonexistent".as_ref());
        let packer = Packer::new(ffmpeg.clone());
        if ffmpeg.is_none() {
            return skipped("ffmpeg is not installed");
        }
        for format in [AudioFormat::Mp3, AudioFormat::Opus, AudioFormat::Aac, AudioFormat::Flac] {
            let (_, whole) = pack(&packer, format).await;
            if format == AudioFormat::Opus {
                assert!(whole.starts_with(b"OggS"));
                continue;
            }
            let length = Sound::decode(whole.into(), LONG).unwrap().length().0;
            assert!((950..1_150).contains(&length), "{format:?} {length}");
        }
    }

    /// The first part is there long before the last samples are.
    #[tokio::test]
    async fn an_encoder_does_not_wait_for_the_end() {
        let Some(ffmpeg) = Ffmpeg::find(None, "/nonexistent".as_ref()) else {
            return skipped("ffmpeg is not installed");
        };
        let packer = Packer::new(Some(ffmpeg));
        for format in [AudioFormat::Mp3, AudioFormat::Opus] {
            let mut packing = packer.begin(format, 22_050, 2, LONG).unwrap();
            for _ in 0..4 {
                pieces().into_iter().for_each(|piece| packing.give(piece).unwrap());
            }
            let first = tokio::time::timeout(Duration::from_secs(20), packing.made()).await;
            assert!(first.is_ok_and(|piece| piece.is_some_and(|piece| piece.is_ok())), "{format:?}");
        }
    }
}
