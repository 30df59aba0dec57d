//! The one form in which sound travels between gateway, node and engine: a RIFF/WAVE file of 16-bit samples. Reading is
//! bounded and looks at nothing but the two chunks that matter.

/// Sound: 16-bit little-endian samples, the channels by turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wave<'a> {
    /// Samples per second of one channel.
    pub rate: u32,
    /// Channels, 1 or 2.
    pub channels: u16,
    /// The samples.
    pub samples: &'a [u8],
}

/// Why something is no such file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WaveError {
    /// It does not begin like one, or ends before its samples.
    #[error("this is no RIFF/WAVE file")]
    NoWave,
    /// Its samples are not 16-bit integers of one or two channels at 8,000 to 192,000 per second.
    #[error("the samples are not 16-bit integers of one or two channels")]
    OtherSamples,
}

/// Plain samples.
const PCM: u16 = 1;
/// Plain samples whose kind stands in the first two bytes of a longer description.
const EXTENSIBLE: u16 = 0xFFFE;
/// Bytes of the header that [`Wave::pack`] writes.
const HEADER: usize = 44;

/// What stands before the samples of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaveHead {
    /// Samples per second of one channel.
    pub rate: u32,
    /// Channels, 1 or 2.
    pub channels: u16,
    /// Where the samples begin.
    pub start: usize,
    /// How many bytes of them there are, as the file says; programs that do not know it yet say too many.
    pub length: usize,
}

impl WaveHead {
    /// Reads the beginning of a file; `None` when more of it is needed.
    ///
    /// # Errors
    /// It is the beginning of no such file.
    pub fn read(file: &[u8]) -> Result<Option<Self>, WaveError> {
        let is = |from: usize, word: &[u8]| {
            file.get(from..).unwrap_or_default().iter().zip(word).all(|(a, b)| a == b)
        };
        if !is(0, b"RIFF") || !is(8, b"WAVE") {
            return Err(WaveError::NoWave);
        }
        let mut format = None;
        let mut at = 12;
        loop {
            let Some((head, body)) = file.get(at..).and_then(|rest| rest.split_at_checked(8)) else {
                return Ok(None);
            };
            let length = u32_at(head, 4) as usize;
            match &head[..4] {
                b"fmt " if length < 16 => return Err(WaveError::NoWave),
                b"fmt " => match body.get(..16) {
                    Some(body) => format = Some(body),
                    None => return Ok(None),
                },
                b"data" => {
                    let format = format.ok_or(WaveError::NoWave)?;
                    let (kind, channels) = (u16_at(format, 0), u16_at(format, 2));
                    let (rate, bits) = (u32_at(format, 4), u16_at(format, 14));
                    let fits = matches!(kind, PCM | EXTENSIBLE)
                        && bits == 16
                        && (1..=2).contains(&channels)
                        && (8_000..=192_000).contains(&rate);
                    let head = Self { rate, channels, start: at + 8, length };
                    return if fits { Ok(Some(head)) } else { Err(WaveError::OtherSamples) };
                }
                _ => {}
            }
            // Chunks begin at even places.
            at += 8 + length + length % 2;
        }
    }

    /// Bytes of one sample of every channel.
    #[must_use]
    pub fn frame(&self) -> usize {
        usize::from(self.channels) * 2
    }
}

impl<'a> Wave<'a> {
    /// Finds the samples. A length that is longer than the file, as programs write that do not know it yet, means "to the
    /// end".
    ///
    /// # Errors
    /// It is no such file.
    pub fn read(file: &'a [u8]) -> Result<Self, WaveError> {
        let head = WaveHead::read(file)?.ok_or(WaveError::NoWave)?;
        let body = &file[head.start..];
        let there = head.length.min(body.len());
        Ok(Self { rate: head.rate, channels: head.channels, samples: &body[..there - there % head.frame()] })
    }

    /// Length in milliseconds, rounded up.
    #[must_use]
    pub fn millis(&self) -> u64 {
        let frames = self.samples.len() as u64 / (u64::from(self.channels) * 2);
        (frames * 1_000).div_ceil(u64::from(self.rate))
    }

    /// Whether every sample is zero.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.samples.iter().all(|byte| *byte == 0)
    }

    /// The file, with a header that says what follows.
    #[must_use]
    pub fn pack(&self) -> Vec<u8> {
        let length = u32::try_from(self.samples.len()).unwrap_or(u32::MAX - HEADER as u32);
        let mut file = header(self.rate, self.channels, length, length + HEADER as u32 - 8);
        file.extend_from_slice(self.samples);
        file
    }

    /// The header of a file whose length is not known yet: it says "to the end", with the largest number there is.
    #[must_use]
    pub fn open_header(rate: u32, channels: u16) -> Vec<u8> {
        header(rate, channels, u32::MAX, u32::MAX)
    }
}

/// A header before so many bytes of samples, in a file that is so long behind its first eight bytes.
fn header(rate: u32, channels: u16, samples: u32, rest: u32) -> Vec<u8> {
    let frame = channels * 2;
    let mut file = Vec::with_capacity(HEADER + if samples == u32::MAX { 0 } else { samples as usize });
    file.extend_from_slice(b"RIFF");
    file.extend_from_slice(&rest.to_le_bytes());
    file.extend_from_slice(b"WAVEfmt ");
    file.extend_from_slice(&16_u32.to_le_bytes());
    file.extend_from_slice(&PCM.to_le_bytes());
    file.extend_from_slice(&channels.to_le_bytes());
    file.extend_from_slice(&rate.to_le_bytes());
    file.extend_from_slice(&(rate * u32::from(frame)).to_le_bytes());
    file.extend_from_slice(&frame.to_le_bytes());
    file.extend_from_slice(&16_u16.to_le_bytes());
    file.extend_from_slice(b"data");
    file.extend_from_slice(&samples.to_le_bytes());
    file
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_packed_is_read_again() {
        let samples: Vec<u8> = (0..200).collect();
        for (rate, channels) in [(22_050, 1), (16_000, 2)] {
            let wave = Wave { rate, channels, samples: &samples };
            assert_eq!(Wave::read(&wave.pack()), Ok(wave));
        }
        assert_eq!(Wave { rate: 8_000, channels: 1, samples: &samples[..2] }.millis(), 1);
    }

    #[test]
    fn a_length_that_was_not_known_yet_means_to_the_end() {
        let samples = [1, 2, 3, 4];
        let mut file = Wave { rate: 22_050, channels: 1, samples: &samples }.pack();
        file[40..44].copy_from_slice(&0x7fff_f000_u32.to_le_bytes());
        assert_eq!(Wave::read(&file).map(|wave| wave.samples.to_vec()), Ok(samples.to_vec()));
        // Half a sample at the end is left out.
        file.push(9);
        assert_eq!(Wave::read(&file).map(|wave| wave.samples.len()), Ok(4));
    }

    #[test]
    fn the_beginning_of_a_file_is_enough_for_its_head() {
        let file = Wave { rate: 22_050, channels: 2, samples: &[1, 2, 3, 4] }.pack();
        let head = WaveHead { rate: 22_050, channels: 2, start: HEADER, length: 4 };
        for end in 0..=file.len() {
            let wanted = if end < HEADER { None } else { Some(head) };
            assert_eq!(WaveHead::read(&file[..end]), Ok(wanted), "{end}");
        }
        assert_eq!(WaveHead::read(b"{\"error\""), Err(WaveError::NoWave));
        let open = Wave::open_header(8_000, 1);
        assert_eq!(WaveHead::read(&open).unwrap().unwrap().length, u32::MAX as usize);
        assert_eq!(Wave::read(&[&open[..], &[1, 2]].concat()).unwrap().samples, [1, 2]);
    }

    #[test]
    fn other_files_are_refused_wherever_they_end() {
        let good = Wave { rate: 22_050, channels: 1, samples: &[1, 2, 3, 4] }.pack();
        for end in 0..HEADER {
            assert!(Wave::read(&good[..end]).is_err(), "{end}");
        }
        let broken = |at: usize, value: u8| {
            let mut file = good.clone();
            file[at] = value;
            Wave::read(&file).map(|wave| wave.rate)
        };
        assert_eq!(broken(34, 8), Err(WaveError::OtherSamples));
        assert_eq!(broken(22, 7), Err(WaveError::OtherSamples));
        assert_eq!(broken(20, 3), Err(WaveError::OtherSamples));
        assert_eq!(broken(0, b'x'), Err(WaveError::NoWave));
        // A chunk in front whose length leads nowhere.
        assert_eq!(broken(19, 0xff), Err(WaveError::NoWave));
    }
}
