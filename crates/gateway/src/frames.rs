//! The frames of HTTP/2 as the bytes come, before h2 reads them: those that cost the other side nothing and us something
//! are counted, and a connection that lives on them is ended with GOAWAY (GR section 9).

use std::time::Duration;

/// Abusive frames that a connection may send at once.
const ALLOWANCE: f64 = 200.0;
/// Abusive frames a second that it may send for ever: honest clients cancel streams and send pings, too.
const PER_SECOND: f64 = 10.0;

/// The client's preface.
const PREFACE: usize = 24;
/// The head of a frame.
const HEAD: usize = 9;

const DATA: u8 = 0;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const CONTINUATION: u8 = 9;
/// END_STREAM of DATA, ACK of SETTINGS and PING.
const FLAG_1: u8 = 1;

/// A PING without its eight bytes: whoever reads it must answer with GOAWAY.
pub const POISON: [u8; HEAD] = [0, 0, 0, PING, 0, 0, 0, 0, 0];

/// Follows the frames of one connection.
#[derive(Debug)]
pub struct Frames {
    /// Bytes to skip: the rest of the preface or of a payload.
    skip: usize,
    head: [u8; HEAD],
    have: usize,
    allowance: f64,
    last: Duration,
    over: bool,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            skip: PREFACE,
            head: [0; HEAD],
            have: 0,
            allowance: ALLOWANCE,
            last: Duration::ZERO,
            over: false,
        }
    }
}

impl Frames {
    /// Takes bytes in at `now`, time since any fixed moment. Gives the place after which nothing may be read any more,
    /// the end of the frame that was one too many.
    pub fn feed(&mut self, bytes: &[u8], now: Duration) -> Option<usize> {
        let mut at = 0;
        loop {
            let skipped = self.skip.min(bytes.len() - at);
            self.skip -= skipped;
            at += skipped;
            if self.over && self.skip == 0 {
                return Some(at);
            }
            if at == bytes.len() {
                return None;
            }
            let taken = (HEAD - self.have).min(bytes.len() - at);
            self.head[self.have..self.have + taken].copy_from_slice(&bytes[at..at + taken]);
            self.have += taken;
            at += taken;
            if self.have == HEAD {
                self.have = 0;
                self.skip = usize::from(self.head[0]) << 16
                    | usize::from(self.head[1]) << 8
                    | usize::from(self.head[2]);
                self.over = self.is_abusive() && !self.spend(now);
            }
        }
    }

    fn is_abusive(&self) -> bool {
        let flagged = self.head[4] & FLAG_1 != 0;
        match self.head[3] {
            RST_STREAM | PRIORITY | CONTINUATION => true,
            SETTINGS | PING => !flagged,
            DATA => self.skip == 0 && !flagged,
            _ => false,
        }
    }

    fn spend(&mut self, now: Duration) -> bool {
        let since = now.saturating_sub(self.last).as_secs_f64();
        self.last = now;
        self.allowance = (self.allowance + since * PER_SECOND).min(ALLOWANCE) - 1.0;
        self.allowance >= 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).unwrap();
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    /// After how many of these frames the connection is over.
    fn over_after(each: &[u8], every: Duration, step: usize) -> Option<usize> {
        let mut frames = Frames::default();
        assert_eq!(frames.feed(&[b'x'; PREFACE], Duration::ZERO), None);
        (1..=2_000).find(|count| {
            let now = every * u32::try_from(*count).unwrap();
            each.chunks(step).any(|part| frames.feed(part, now).is_some())
        })
    }

    #[test]
    fn two_hundred_abusive_frames_are_enough() {
        for (kind, payload) in
            [(RST_STREAM, &[0; 4][..]), (SETTINGS, &[]), (PING, &[0; 8]), (DATA, &[]), (CONTINUATION, b"x")]
        {
            let each = frame(kind, 0, payload);
            for step in [1, 5, 100] {
                assert_eq!(
                    over_after(&each, Duration::ZERO, step),
                    Some(201),
                    "kind {kind} in steps of {step}"
                );
            }
        }
    }

    #[test]
    fn useful_frames_and_acknowledgements_are_not_counted() {
        for (kind, flags, payload) in [
            (DATA, 0, &b"x"[..]),
            (DATA, 1, b""),
            (SETTINGS, 1, b""),
            (PING, 1, &[0; 8]),
            (1, 4, b"xyz"),
            (8, 0, &[0; 4]),
        ] {
            assert_eq!(over_after(&frame(kind, flags, payload), Duration::ZERO, 7), None, "kind {kind}");
        }
    }

    #[test]
    fn what_comes_slowly_is_no_flood() {
        assert_eq!(over_after(&frame(PING, 0, &[0; 8]), Duration::from_millis(100), 50), None);
        assert!(over_after(&frame(PING, 0, &[0; 8]), Duration::from_millis(50), 50).is_some());
    }

    #[test]
    fn the_place_is_the_end_of_the_frame() {
        let mut frames = Frames::default();
        let mut bytes = vec![b'x'; PREFACE];
        bytes.extend(frame(PING, 0, &[0; 8]).repeat(300));
        assert_eq!(frames.feed(&bytes, Duration::ZERO), Some(PREFACE + 201 * 17));
    }
}
