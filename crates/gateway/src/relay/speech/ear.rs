//! Listens to a waveform while it comes, before anybody else hears it: a header that fits, something that sounds where there was
//! something to say, and no more of it than the text can take.

use bytes::{Bytes, BytesMut};
use cxmpute_wire::wave::WaveHead;

use super::super::errand::failure;
use super::super::retry::Fault;

/// Most bytes before the samples.
const HEAD: usize = 64 * 1024;

/// What was heard so far.
#[derive(Debug)]
pub(super) struct Ear {
    longest_ms: f64,
    /// What came before the samples.
    head: BytesMut,
    format: Option<WaveHead>,
    /// Bytes of samples that the file still announces.
    announced: usize,
    /// The beginning of a frame, or all samples while nothing sounded yet.
    held: BytesMut,
    sounded: bool,
    taken: usize,
}

impl Ear {
    /// One for a text; where it `says` something, silence is no speech.
    pub fn new(longest_ms: f64, says: bool) -> Self {
        Self {
            longest_ms,
            head: BytesMut::new(),
            format: None,
            announced: 0,
            held: BytesMut::new(),
            sounded: !says,
            taken: 0,
        }
    }

    /// Rate and channels, once they are known.
    pub fn format(&self) -> Option<(u32, u16)> {
        self.format.map(|head| (head.rate, head.channels))
    }

    /// Takes what came; gives the samples that may be heard, whole frames of them.
    pub fn hear(&mut self, chunk: &[u8]) -> Result<Option<Bytes>, Fault> {
        let Some(format) = self.format else {
            self.head.extend_from_slice(chunk);
            if self.head.len() > HEAD {
                return Err(Fault::Protocol);
            }
            // A failure of the node is no waveform; it is read at its end.
            if self.head.first() == Some(&b'{') {
                return Ok(None);
            }
            let Some(format) = WaveHead::read(&self.head).map_err(|_| Fault::Protocol)? else {
                return Ok(None);
            };
            self.format = Some(format);
            self.announced = format.length;
            let samples = self.head.split_off(format.start.min(self.head.len()));
            return self.listen(&samples, format);
        };
        self.listen(chunk, format)
    }

    fn listen(&mut self, samples: &[u8], format: WaveHead) -> Result<Option<Bytes>, Fault> {
        let samples = &samples[..samples.len().min(self.announced)];
        // The largest length means that it was not known.
        if format.length < u32::MAX as usize {
            self.announced -= samples.len();
        }
        self.taken += samples.len();
        let millis = (self.taken / format.frame()) as f64 * 1_000.0 / f64::from(format.rate);
        if millis > self.longest_ms {
            return Err(Fault::Protocol);
        }
        self.sounded |= samples.iter().any(|byte| *byte != 0);
        self.held.extend_from_slice(samples);
        let whole = self.held.len() - self.held.len() % format.frame();
        if !self.sounded || whole == 0 {
            return Ok(None);
        }
        Ok(Some(self.held.split_to(whole).freeze()))
    }

    /// That was all.
    pub fn finish(&self) -> Result<(), Fault> {
        match self.format {
            None => Err(failure(&self.head).unwrap_or(Fault::Protocol)),
            Some(format) if !self.sounded || self.taken < format.frame() => Err(Fault::Empty),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use cxmpute_wire::wave::Wave;

    use super::*;

    /// What is heard of a file that comes in pieces of this size.
    fn heard(file: &[u8], size: usize, says: bool) -> Result<Vec<u8>, Fault> {
        let mut ear = Ear::new(1_000.0, says);
        let mut all = Vec::new();
        for piece in file.chunks(size) {
            all.extend_from_slice(&ear.hear(piece)?.unwrap_or_default());
        }
        ear.finish().map(|()| all)
    }

    #[test]
    fn samples_are_heard_whole_however_they_come() {
        let samples: Vec<u8> = [[0; 100], [7; 100]].concat();
        let wave = Wave { rate: 8_000, channels: 2, samples: &samples };
        let open = [&Wave::open_header(8_000, 2)[..], &samples].concat();
        for file in [wave.pack(), open] {
            for size in [1, 3, 43, 45, 1_000] {
                assert_eq!(heard(&file, size, true), Ok(samples.clone()), "{size}");
            }
        }
        // What stands behind the samples is none of them.
        let more = [wave.pack(), b"LIST\x04\0\0\0abcd".to_vec()].concat();
        assert_eq!(heard(&more, 10, true), Ok(samples.clone()));
        // Half a frame at the end is left out.
        let cut = [&Wave::open_header(8_000, 2)[..], &samples[..199]].concat();
        assert_eq!(heard(&cut, 10, true).unwrap().len(), 196);
    }

    #[test]
    fn what_is_no_speech_is_a_fault_and_nobody_hears_it() {
        let silence = Wave { rate: 8_000, channels: 1, samples: &[0; 400] }.pack();
        assert_eq!(heard(&silence, 10, true), Err(Fault::Empty));
        assert_eq!(heard(&silence, 10, false).unwrap().len(), 400);
        assert_eq!(heard(&silence[..44], 10, false), Err(Fault::Empty));
        assert_eq!(heard(&silence[..30], 10, false), Err(Fault::Protocol));
        assert_eq!(heard(b"", 1, false), Err(Fault::Protocol));
        assert_eq!(heard(b"ID3 something", 5, true), Err(Fault::Protocol));
        let failed = br#"{"error":{"code":"engine_failed","message":"x"}}"#;
        assert_eq!(heard(failed, 7, true), Err(Fault::Engine));
        assert_eq!(heard(br#"{"text":"x"}"#, 7, true), Err(Fault::Protocol));
        let long = Wave { rate: 8_000, channels: 1, samples: &[7; 16_002] }.pack();
        assert_eq!(heard(&long, 1_000, true), Err(Fault::Protocol));
        let head = [b"RIFF\xff\xff\xff\xffWAVEjunk\xff\xff\xff\x7f".to_vec(), vec![0; HEAD]].concat();
        assert_eq!(heard(&head, 1_000, true), Err(Fault::Protocol));
    }
}
