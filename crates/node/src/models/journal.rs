//! What is known of a file that is not complete: which pieces of it are on the disk, with their sums. Pure.
//!
//! One JSON line for the file, then one per piece, in order. A line is written after the bytes that it speaks of are on the
//! disk, so whatever a crash cuts off, what can be read is true. A piece that does not have its sum any more ends the
//! list there.

use serde::{Deserialize, Serialize};

use super::digest::Digest;

/// What is on the disk of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Journal {
    /// Size of the whole file in bytes.
    pub size: u64,
    /// Size of every piece but the last.
    pub piece_bytes: u64,
    /// The pieces from the beginning of the file, without gaps.
    pub pieces: Vec<Piece>,
}

/// One piece.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Piece {
    /// Its sum, taken while it arrived.
    pub sha256: Digest,
    /// Where its last byte came from.
    pub source: String,
}

#[derive(Deserialize, Serialize)]
struct Head {
    size: u64,
    piece_bytes: u64,
}

impl Journal {
    /// An empty one. A piece has at least one byte.
    #[must_use]
    pub fn new(size: u64, piece_bytes: u64) -> Self {
        Self { size, piece_bytes: piece_bytes.max(1), pieces: Vec::new() }
    }

    /// Reads one; `None` when not even its first line is whole. Lines after the first that is torn or makes no sense
    /// are as if they had never been written.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        // What follows the last line break was cut off.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(&bytes[..0], |at| &bytes[..at]);
        let mut lines = whole.split(|byte| *byte == b'\n');
        let head: Head = serde_json::from_slice(lines.next()?).ok()?;
        let mut journal = Self::new(head.size, head.piece_bytes);
        let read = lines.map_while(|line| serde_json::from_slice(line).ok());
        journal.pieces = read.take(journal.most_pieces()).collect();
        Some(journal)
    }

    /// Its first line.
    #[must_use]
    pub fn head_line(&self) -> Vec<u8> {
        line(&Head { size: self.size, piece_bytes: self.piece_bytes })
    }

    /// All of it.
    #[must_use]
    pub fn print(&self) -> Vec<u8> {
        self.pieces.iter().fold(self.head_line(), |mut text, piece| {
            text.extend(piece.line());
            text
        })
    }

    /// How many pieces the file has.
    fn most_pieces(&self) -> usize {
        usize::try_from(self.size.div_ceil(self.piece_bytes)).unwrap_or(usize::MAX)
    }

    /// Bytes from the beginning that the pieces hold.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.pieces.len() as u64).saturating_mul(self.piece_bytes).min(self.size)
    }

    /// Where the piece that begins at or before `at` ends.
    #[must_use]
    pub fn end_of_piece(&self, at: u64) -> u64 {
        (at / self.piece_bytes).saturating_add(1).saturating_mul(self.piece_bytes).min(self.size)
    }
}

impl Piece {
    /// Its line.
    #[must_use]
    pub fn line(&self) -> Vec<u8> {
        line(self)
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn journal(size: u64, piece_bytes: u64, count: usize) -> Journal {
        let mut journal = Journal::new(size, piece_bytes);
        let piece = |n: usize| Piece { sha256: Digest::of(&n.to_le_bytes()), source: format!("m{n}\n") };
        journal.pieces = (0..count.min(journal.most_pieces())).map(piece).collect();
        journal
    }

    proptest! {
        /// A crash may cut the file anywhere and leave anything behind the cut.
        #[test]
        fn what_is_read_after_a_crash_is_a_beginning_of_what_was_written(
            (size, piece, count) in (0_u64..100_000, 1_u64..5_000, 0_usize..40),
            cut in 0.0_f64..1.0,
            rubbish in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let written = journal(size, piece, count);
            let whole = written.print();
            prop_assert_eq!(Journal::parse(&whole), Some(written.clone()));
            let at = (whole.len() as f64 * cut) as usize;
            let mut torn = whole[..at].to_vec();
            torn.extend(&rubbish);
            if let Some(read) = Journal::parse(&torn) {
                // Rubbish could only pass for a piece if it were a JSON line with a sum.
                prop_assert!(written.pieces.starts_with(&read.pieces));
                prop_assert_eq!((read.size, read.piece_bytes), (written.size, written.piece_bytes));
                prop_assert!(read.bytes() <= written.bytes());
            } else {
                prop_assert!(at < written.head_line().len());
            }
        }

        #[test]
        fn pieces_tile_the_file(size in 1_u64..100_000, piece in 1_u64..5_000) {
            let all = journal(size, piece, usize::MAX);
            prop_assert_eq!(all.bytes(), size);
            let (mut at, mut ends) = (0, 0);
            while at < size {
                let end = all.end_of_piece(at);
                prop_assert!(end > at && end - at <= piece && (end - at == piece || end == size));
                prop_assert_eq!(all.end_of_piece(end - 1), end);
                at = end;
                ends += 1;
            }
            prop_assert_eq!(ends, all.pieces.len());
        }
    }

    #[test]
    fn more_pieces_than_the_file_has_are_not_believed() {
        let mut text = journal(10, 5, 2).print();
        text.extend(journal(10, 5, 1).pieces[0].line());
        assert_eq!(Journal::parse(&text).unwrap().bytes(), 10);
        assert_eq!(Journal::parse(b""), None);
        assert_eq!(Journal::parse(b"{\"size\":5}\n"), None);
    }
}
