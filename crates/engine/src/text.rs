//! From token bytes to text that may be sent: whole characters only, and nothing that may turn out to be the
//! beginning of a stop text. Where probabilities are wanted, text carries the tokens that wrote it, and is released
//! in whole tokens.

use crate::logprobs::Scored;

/// Text with the tokens that wrote it; without tokens where nobody asked for them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Span {
    /// The text.
    pub text: String,
    /// Its tokens in order; their bytes together are the text, but for bytes that are no UTF-8.
    pub tokens: Vec<Mark>,
}

/// A token and its place in a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// The token.
    pub scored: Scored,
    /// Bytes of text that were complete with this token and not before.
    pub len: usize,
    /// Bytes of its first character that earlier tokens brought.
    before: usize,
    /// It ends within a character: never the last token of released text.
    open: bool,
}

impl Span {
    /// A text without tokens.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), tokens: Vec::new() }
    }

    /// Appends.
    pub fn append(&mut self, mut more: Self) {
        self.text.push_str(&more.text);
        self.tokens.append(&mut more.tokens);
    }

    /// Takes the text up to `place` or, where tokens are known, up to the last end of a token before it.
    pub fn take_until(&mut self, place: usize) -> Self {
        let (mut count, mut end, mut reached) = (0, 0, 0);
        for (number, mark) in (1..).zip(&self.tokens) {
            reached += mark.len;
            if reached > place {
                break;
            }
            if !mark.open {
                (count, end) = (number, reached);
            }
        }
        let place = if self.tokens.is_empty() { place } else { end };
        let rest = Self { text: self.text.split_off(place), tokens: self.tokens.split_off(count) };
        std::mem::replace(self, rest)
    }

    /// Cuts at `place` and returns what follows; a token on both sides is shared out between them.
    pub fn split_off(&mut self, place: usize) -> Self {
        let text = self.text.split_off(place);
        let mut reached = 0;
        let whole = self.tokens.iter().take_while(|mark| {
            let fits = reached + mark.len <= place;
            reached += if fits { mark.len } else { 0 };
            fits
        });
        let mut tokens = self.tokens.split_off(whole.count());
        if let Some(mark) = tokens.first_mut().filter(|_| reached < place) {
            self.tokens.push(mark.split(place - reached));
        }
        // Bytes of a character that is not on this side.
        while let Some(last) = self.tokens.last_mut().filter(|mark| mark.open) {
            last.open = false;
            if last.len > 0 {
                drop(last.split_rest(last.len));
                break;
            }
            self.tokens.pop();
        }
        Self { text, tokens }
    }
}

impl Mark {
    /// Cuts the first `len` bytes of text off and returns them.
    fn split(&mut self, len: usize) -> Self {
        let rest = self.split_rest(len);
        std::mem::replace(self, rest)
    }

    /// Keeps the first `len` bytes of text and returns the rest.
    fn split_rest(&mut self, len: usize) -> Self {
        let place = len.saturating_sub(self.before).min(self.scored.bytes.len());
        let bytes = self.scored.bytes.split_off(place);
        let rest = Self {
            scored: Scored { bytes, ..self.scored.clone() },
            len: self.len - len,
            before: 0,
            open: self.open,
        };
        (self.len, self.open) = (len, false);
        rest
    }
}

/// Text that became certain.
#[derive(Debug, Default, PartialEq)]
pub struct Piece {
    /// May be empty.
    pub span: Span,
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
    held: Span,
    /// The next token begins with a space that is not part of the answer.
    leading_space: bool,
}

impl TextAssembly {
    /// An empty text that ends before the first of `stops`.
    pub fn new(stops: Vec<String>, leading_space: bool) -> Self {
        Self { stops, bytes: Vec::new(), held: Span::default(), leading_space }
    }

    /// Adds the bytes of one token, with its probability if that is wanted.
    pub fn push(&mut self, bytes: &[u8], scored: Option<Scored>) -> Piece {
        if bytes.is_empty() {
            return self.release();
        }
        let bytes = match bytes {
            [b' ', rest @ ..] if self.leading_space => rest,
            other => other,
        };
        self.leading_space = false;
        let before = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let whole = self.take_whole_characters();
        self.held.text.push_str(&whole);
        if let Some(scored) = scored.filter(|_| !bytes.is_empty()) {
            let scored = Scored { bytes: bytes.to_vec(), ..scored };
            self.held.tokens.push(Mark { scored, len: whole.len(), before, open: !self.bytes.is_empty() });
        }
        self.release()
    }

    /// Ends the text: an incomplete character becomes U+FFFD, held text is released.
    pub fn finish(&mut self) -> Piece {
        if !self.bytes.is_empty() {
            self.bytes.clear();
            self.held.text.push(char::REPLACEMENT_CHARACTER);
            if let Some(last) = self.held.tokens.last_mut() {
                last.len += char::REPLACEMENT_CHARACTER.len_utf8();
            }
            self.held.tokens.iter_mut().for_each(|mark| mark.open = false);
        }
        let mut piece = self.release();
        if !piece.stopped {
            piece.span.append(std::mem::take(&mut self.held));
        }
        piece
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
        let first = self.stops.iter().filter_map(|stop| self.held.text.find(stop.as_str())).min();
        if let Some(place) = first {
            self.held.split_off(place);
            return Piece { span: std::mem::take(&mut self.held), stopped: true };
        }
        let kept = self.stops.iter().map(|stop| overlap(&self.held.text, stop)).max().unwrap_or(0);
        Piece { span: self.held.take_until(self.held.text.len() - kept), stopped: false }
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
    use proptest::prelude::*;

    fn assembly(stops: &[&str]) -> TextAssembly {
        TextAssembly::new(stops.iter().map(|stop| (*stop).to_owned()).collect(), false)
    }

    fn pieces(stops: &[&str], tokens: &[&[u8]]) -> (Vec<String>, bool) {
        let mut text = assembly(stops);
        let mut out = Vec::new();
        for token in tokens {
            let piece = text.push(token, None);
            out.push(piece.span.text);
            if piece.stopped {
                return (out, true);
            }
        }
        let last = text.finish();
        out.push(last.span.text);
        (out, last.stopped)
    }

    fn scored(bytes: &[u8]) -> Option<Scored> {
        Some(Scored { bytes: bytes.to_vec(), logprob: Some(-1.0), top: Vec::new() })
    }

    /// All pieces, each checked: the bytes of its tokens are its text.
    fn checked(stops: &[&str], tokens: &[Vec<u8>]) -> (String, bool) {
        let mut text = assembly(stops);
        let mut whole = String::new();
        let mut take = |piece: Piece| {
            let bytes: Vec<u8> =
                piece.span.tokens.iter().flat_map(|mark| mark.scored.bytes.clone()).collect();
            assert_eq!(String::from_utf8_lossy(&bytes), piece.span.text, "{piece:?}");
            whole.push_str(&piece.span.text);
            piece.stopped
        };
        for token in tokens {
            if take(text.push(token, scored(token))) {
                return (whole, true);
            }
        }
        let stopped = take(text.finish());
        (whole, stopped)
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
        let first = text.push(b" a", scored(b" a")).span;
        assert_eq!((first.text.as_str(), first.tokens[0].scored.bytes.as_slice()), ("a", b"a".as_slice()));
        assert_eq!(text.push(b" b", None).span.text, " b");
    }

    #[test]
    fn a_token_on_both_sides_of_a_stop_text_is_cut() {
        let euro = "€".as_bytes();
        let tokens = [b"a".to_vec(), b"b END".to_vec()];
        assert_eq!(checked(&["END"], &tokens), ("ab ".into(), true));
        let tokens = [[b"x", &euro[..2]].concat(), [&euro[2..], b"y"].concat()];
        assert_eq!(checked(&["€"], &tokens), ("x".into(), true));
        assert_eq!(checked(&["y"], &tokens), ("x€".into(), true));
        let tokens = [euro[..1].to_vec(), euro[1..2].to_vec(), [&euro[2..], "€".as_bytes()].concat()];
        assert_eq!(checked(&["€€"], &tokens), (String::new(), true));
    }

    proptest! {
        #[test]
        fn tokens_and_text_stay_together(
            text in "[aE€NDé😀]{0,24}", cuts in prop::collection::vec(0usize..70, 0..12), stop in "[aEN€]{1,3}",
        ) {
            let bytes = text.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < bytes.len()).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let tokens: Vec<Vec<u8>> = cuts.windows(2).map(|pair| bytes[pair[0]..pair[1]].to_vec()).collect();
            let (whole, stopped) = checked(&[&stop], &tokens);
            let expected = text.find(&stop);
            prop_assert_eq!(stopped, expected.is_some());
            prop_assert_eq!(whole, &text[..expected.unwrap_or(text.len())]);
        }

        #[test]
        fn broken_bytes_keep_their_tokens(
            tokens in prop::collection::vec(prop::collection::vec(prop_oneof![Just(0xE2u8), Just(0x82), Just(0xAC), Just(b'a')], 0..4), 0..12),
        ) {
            let mut text = assembly(&[]);
            let (mut whole, mut bytes) = (String::new(), Vec::new());
            let mut take = |piece: Piece| {
                whole.push_str(&piece.span.text);
                bytes.extend(piece.span.tokens.iter().flat_map(|mark| mark.scored.bytes.clone()));
            };
            for token in &tokens {
                take(text.push(token, scored(token)));
            }
            take(text.finish());
            prop_assert_eq!(&bytes, &tokens.concat());
            prop_assert_eq!(String::from_utf8_lossy(&bytes), whole);
        }
    }
}
