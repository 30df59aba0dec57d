//! From token bytes to text that may be sent: whole characters only, and nothing that may turn out to be the
//! beginning of a stop text.

/// Text that became certain.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// May be empty.
    pub text: String,
    /// A stop text was reached; nothing follows.
    pub stopped: bool,
}

/// Assembles the text of one answer.
#[derive(Debug)]
pub struct TextAssembly {
    stops: Vec<String>,
    /// Bytes of a character that is not complete.
    bytes: Vec<u8>,
    /// Text that may be the beginning of a stop text.
    held: String,
    /// The next token begins with a space that is not part of the answer.
    leading_space: bool,
}

impl TextAssembly {
    /// An empty text that ends before the first of `stops`.
    pub fn new(stops: Vec<String>, leading_space: bool) -> Self {
        Self { stops, bytes: Vec::new(), held: String::new(), leading_space }
    }

    /// Adds the bytes of one token.
    pub fn push(&mut self, bytes: &[u8]) -> Piece {
        let bytes = match bytes {
            [b' ', rest @ ..] if self.leading_space => rest,
            other => other,
        };
        self.leading_space = false;
        self.bytes.extend_from_slice(bytes);
        let whole = self.take_whole_characters();
        self.held.push_str(&whole);
        self.release()
    }

    /// Ends the text: an incomplete character becomes U+FFFD, held text is released.
    pub fn finish(&mut self) -> Piece {
        if !self.bytes.is_empty() {
            self.bytes.clear();
            self.held.push(char::REPLACEMENT_CHARACTER);
        }
        let piece = self.release();
        if piece.stopped {
            return piece;
        }
        Piece { text: piece.text + &std::mem::take(&mut self.held), stopped: false }
    }

    fn take_whole_characters(&mut self) -> String {
        let mut whole = String::new();
        loop {
            match std::str::from_utf8(&self.bytes) {
                Ok(text) => {
                    whole.push_str(text);
                    self.bytes.clear();
                    return whole;
                }
                Err(broken) => {
                    let valid = broken.valid_up_to();
                    whole.push_str(&String::from_utf8_lossy(&self.bytes[..valid]));
                    match broken.error_len() {
                        None => {
                            self.bytes.drain(..valid);
                            return whole;
                        }
                        Some(length) => {
                            whole.push(char::REPLACEMENT_CHARACTER);
                            self.bytes.drain(..valid + length);
                        }
                    }
                }
            }
        }
    }

    fn release(&mut self) -> Piece {
        let first = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(place) = first {
            self.held.truncate(place);
            return Piece { text: std::mem::take(&mut self.held), stopped: true };
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        Piece { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }
}

/// Length of the longest end of `text` that is a beginning of `marker`.
pub fn overlap(text: &str, marker: &str) -> usize {
    let longest = text.len().min(marker.len().saturating_sub(1));
    (1..=longest)
        .rev()
        .find(|length| {
            marker.is_char_boundary(*length) && text.as_bytes().ends_with(&marker.as_bytes()[..*length])
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(stops: &[&str], tokens: &[&[u8]]) -> (Vec<String>, bool) {
        let mut text = TextAssembly::new(stops.iter().map(|stop| (*stop).to_owned()).collect(), false);
        let mut out = Vec::new();
        for token in tokens {
            let piece = text.push(token);
            out.push(piece.text);
            if piece.stopped {
                return (out, true);
            }
        }
        let last = text.finish();
        out.push(last.text);
        (out, last.stopped)
    }

    #[test]
    fn a_character_is_sent_when_it_is_whole() {
        let euro = "€".as_bytes();
        assert_eq!(pieces(&[], &[&euro[..1], &euro[1..2], &euro[2..], b"x"]).0, ["", "", "€", "x", ""]);
        assert_eq!(pieces(&[], &[b"a", &euro[..2]]).0, ["a", "", "\u{FFFD}"]);
        assert_eq!(pieces(&[], &[b"\xFFa", &euro[..1], b"b"]).0, ["\u{FFFD}a", "", "\u{FFFD}b", ""]);
    }

    #[test]
    fn a_stop_text_is_never_sent_and_its_beginning_only_when_it_was_none() {
        assert_eq!(
            pieces(&["END"], &[b"a E", b"N", b"x"]),
            (vec!["a ".into(), String::new(), "ENx".into(), String::new()], false)
        );
        assert_eq!(pieces(&["END"], &[b"a E", b"ND b"]), (vec!["a ".into(), String::new()], true));
        assert_eq!(pieces(&["END", "a"], &[b"ban", b"x"]), (vec!["b".into()], true));
        assert_eq!(pieces(&["END"], &[b"EN"]), (vec![String::new(), "EN".into()], false));
        assert_eq!(pieces(&["..!"], &[b"...", b"!"]), (vec![".".into(), String::new()], true));
        assert_eq!(pieces(&["é"], &[b"x\xC3", b"\xA9y"]), (vec!["x".into(), String::new()], true));
    }

    #[test]
    fn only_the_first_space_is_dropped() {
        let mut text = TextAssembly::new(Vec::new(), true);
        assert_eq!(text.push(b" a").text, "a");
        assert_eq!(text.push(b" b").text, " b");
    }
}
