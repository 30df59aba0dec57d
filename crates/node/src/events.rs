//! Cutting an engine's stream at the ends of its events, so that whatever the node adds to it (an error) never lands in
//! the middle of one. The events themselves are not read here; the gateway parses every one of them.

use bytes::{Bytes, BytesMut};

/// Longest event of an engine.
const EVENT_LIMIT_BYTES: usize = 1024 * 1024;

/// Collects bytes until events are whole.
#[derive(Debug, Default)]
pub struct EventGate {
    rest: BytesMut,
    done: bool,
}

/// An event that never ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an event of the engine is longer than {EVENT_LIMIT_BYTES} bytes")]
pub struct EventTooLong;

impl EventGate {
    /// Takes bytes in; gives all whole events, possibly none.
    ///
    /// # Errors
    /// The event that is being collected is too long.
    pub fn push(&mut self, chunk: Bytes) -> Result<Bytes, EventTooLong> {
        if self.done {
            return Ok(Bytes::new());
        }
        if self.rest.is_empty() && end_of_last_event(&chunk) == Some(chunk.len()) {
            self.done = ends_the_stream(&chunk);
            return Ok(chunk);
        }
        self.rest.extend_from_slice(&chunk);
        let whole = match end_of_last_event(&self.rest) {
            Some(end) => self.rest.split_to(end).freeze(),
            None => Bytes::new(),
        };
        if self.rest.len() > EVENT_LIMIT_BYTES {
            return Err(EventTooLong);
        }
        self.done = ends_the_stream(&whole);
        Ok(whole)
    }

    /// Whether `[DONE]` has come; what comes after it is not for anybody.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        self.done
    }

    /// The engine ended its stream: a last `[DONE]` without its blank line counts.
    pub fn end(&mut self) -> Option<Bytes> {
        if self.done || !ends_the_stream(&self.rest) {
            return None;
        }
        self.done = true;
        Some(Bytes::from_static(b"data: [DONE]\n\n"))
    }
}

/// The position after the last blank line.
fn end_of_last_event(bytes: &[u8]) -> Option<usize> {
    let mut end = bytes.len();
    while let Some(at) = bytes[..end].iter().rposition(|byte| *byte == b'\n') {
        let before = &bytes[..at];
        if before.ends_with(b"\n") || before.ends_with(b"\n\r") {
            return Some(at + 1);
        }
        end = at;
    }
    None
}

/// Whether the last event is `[DONE]`. No JSON event can end with it: those end with a brace.
fn ends_the_stream(events: &[u8]) -> bool {
    let events = events.trim_ascii_end();
    events.ends_with(b"data: [DONE]") || events.ends_with(b"data:[DONE]")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_whole_block_passes_without_a_copy() {
        let block = Bytes::from_static(b"data: {}\n\ndata: {}\n\n");
        let passed = EventGate::default().push(block.clone()).unwrap();
        assert_eq!((passed.as_ptr(), passed.len()), (block.as_ptr(), block.len()));
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut gate = EventGate::default();
        assert!(gate.push(vec![b'x'; EVENT_LIMIT_BYTES].into()).is_ok());
        assert_eq!(gate.push(Bytes::from_static(b"x")), Err(EventTooLong));
    }

    #[test]
    fn a_done_without_its_blank_line_counts_and_a_cut_event_does_not() {
        let mut gate = EventGate::default();
        assert_eq!(gate.push(Bytes::from_static(b"data: {}\n\ndata: [DONE]")).unwrap(), "data: {}\n\n");
        assert_eq!(gate.end().as_deref(), Some(&b"data: [DONE]\n\n"[..]));
        let mut gate = EventGate::default();
        gate.push(Bytes::from_static(b"data: {\"a\": \"[DON")).unwrap();
        assert!(gate.end().is_none() && !gate.is_done());
    }

    proptest! {
        #[test]
        fn however_it_is_cut_only_whole_events_pass(
            cuts in proptest::collection::vec(0usize..200, 0..20),
            carriage_returns in any::<bool>(),
        ) {
            let line_end = if carriage_returns { "\r\n" } else { "\n" };
            let event = |text: &str| format!("data: {text}{line_end}{line_end}");
            let whole: String =
                ["{\"a\":1}", "{\"b\":\"\\n\\n\"}", "{\"c\":\"ü\"}", "[DONE]"].map(event).concat();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % whole.len()).collect();
            cuts.extend([0, whole.len()]);
            cuts.sort_unstable();
            let mut gate = EventGate::default();
            let mut passed = Vec::new();
            for pair in cuts.windows(2) {
                let part = Bytes::copy_from_slice(&whole.as_bytes()[pair[0]..pair[1]]);
                let out = gate.push(part).unwrap();
                prop_assert!(out.is_empty() || out.ends_with(line_end.as_bytes()));
                passed.extend_from_slice(&out);
                prop_assert!(whole.as_bytes().starts_with(&passed));
            }
            prop_assert!(gate.is_done());
            prop_assert_eq!(passed, whole.into_bytes());
            prop_assert!(gate.push(Bytes::from_static(b"data: more\n\n")).unwrap().is_empty());
        }
    }
}
