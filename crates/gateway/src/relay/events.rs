//! Events of a node: server-sent events are cut by event, never by network read, checked, and turned into the few
//! things an answer can consist of (GR15). Nothing a node sends leaves this module as bytes.

use cxmpute_wire::Code;
use cxmpute_wire::openai::{FinishReason, ToolCallDelta};
use serde::Deserialize;
use serde_json::Value;

/// Why a node's stream is not acceptable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EventFault {
    /// One event is larger than the cap.
    #[error("an event is larger than allowed")]
    TooLarge,
    /// An event is not UTF-8.
    #[error("an event is not UTF-8")]
    NotUtf8,
    /// An event is not the JSON it should be.
    #[error("an event does not have the agreed shape")]
    Shape,
}

/// Cuts a byte stream into the data of its events. Lines end in LF, CRLF or CR; several `data` lines of one event are
/// joined by LF; comments and other fields are skipped; an event that the stream's end cuts off is dropped.
#[derive(Debug)]
pub struct EventCutter {
    cap: usize,
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
    /// The last byte was CR: an LF now belongs to it.
    after_cr: bool,
    at_start: bool,
}

impl EventCutter {
    /// A cutter that refuses events over `cap` bytes.
    #[must_use]
    pub fn new(cap: usize) -> Self {
        Self { cap, line: Vec::new(), data: Vec::new(), has_data: false, after_cr: false, at_start: true }
    }

    /// Takes bytes in and calls `each` with the data of every event they complete.
    ///
    /// # Errors
    /// An event is too large or not UTF-8, or `each` refused it; the stream is unusable then.
    pub fn push(
        &mut self,
        mut bytes: &[u8],
        mut each: impl FnMut(&str) -> Result<(), EventFault>,
    ) -> Result<(), EventFault> {
        while !bytes.is_empty() {
            if self.after_cr {
                self.after_cr = false;
                if bytes[0] == b'\n' {
                    bytes = &bytes[1..];
                    continue;
                }
            }
            let Some(end) = bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                return self.keep(bytes);
            };
            self.after_cr = bytes[end] == b'\r';
            if self.line.is_empty() {
                self.check_size(end)?;
                self.take_line(&bytes[..end], &mut each)?;
            } else {
                self.keep(&bytes[..end])?;
                let line = std::mem::take(&mut self.line);
                self.take_line(&line, &mut each)?;
                self.line = line;
                self.line.clear();
            }
            bytes = &bytes[end + 1..];
        }
        Ok(())
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), EventFault> {
        self.check_size(part.len())?;
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn check_size(&self, more: usize) -> Result<(), EventFault> {
        let size = self.line.len() + self.data.len() + more;
        if size > self.cap { Err(EventFault::TooLarge) } else { Ok(()) }
    }

    fn take_line(
        &mut self,
        line: &[u8],
        each: &mut impl FnMut(&str) -> Result<(), EventFault>,
    ) -> Result<(), EventFault> {
        let line = if std::mem::take(&mut self.at_start) {
            line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line)
        } else {
            line
        };
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                let text = std::str::from_utf8(&self.data).map_err(|_| EventFault::NotUtf8)?;
                let taken = each(text);
                self.data.clear();
                return taken;
            }
            return Ok(());
        }
        let value = match line.strip_prefix(b"data") {
            Some([]) => &[][..],
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => value,
            // A comment, or a field that means nothing here.
            _ => return Ok(()),
        };
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        Ok(())
    }
}

/// One thing a node said.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// More text of a choice.
    Text {
        /// Which choice.
        choice: usize,
        /// The text; never empty.
        text: String,
    },
    /// Parts of tool calls of a choice.
    Tools {
        /// Which choice.
        choice: usize,
        /// The parts.
        calls: Vec<ToolCallDelta>,
    },
    /// A choice ended.
    Finish {
        /// Which choice.
        choice: usize,
        /// Why.
        reason: FinishReason,
    },
    /// The node's claim: prompt and completion tokens.
    Claim {
        /// Prompt tokens.
        prompt: u64,
        /// Completion tokens.
        completion: u64,
    },
    /// The node gave up after it had accepted.
    Failed {
        /// Its code, where we know it.
        code: Option<Code>,
    },
    /// The end marker.
    Done,
}

/// The shape of an answer's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `chat.completion.chunk`.
    Chat,
    /// `text_completion`.
    Completion,
}

#[derive(Deserialize)]
struct NodeEvent {
    #[serde(default)]
    choices: Vec<NodeChoice>,
    #[serde(default)]
    usage: Option<Value>,
    #[serde(default)]
    error: Option<NodeError>,
}

#[derive(Deserialize)]
struct NodeChoice {
    #[serde(default)]
    index: usize,
    #[serde(default)]
    delta: Option<NodeDelta>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    finish_reason: Option<FinishReason>,
}

#[derive(Deserialize, Default)]
struct NodeDelta {
    #[serde(default)]
    content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCallDelta>>,
}

#[derive(Deserialize)]
struct NodeError {
    #[serde(default)]
    code: Option<Value>,
}

/// Reads the pieces of one event's data. `choices` is the number of choices that were asked for; another index is a
/// fault.
///
/// # Errors
/// The data is not what a node may send.
pub fn read_event(
    dialect: Dialect,
    choices: usize,
    data: &str,
    out: &mut std::collections::VecDeque<Piece>,
) -> Result<(), EventFault> {
    if data.trim() == "[DONE]" {
        out.push_back(Piece::Done);
        return Ok(());
    }
    // A struct may be written as a list, too, as far as serde is concerned.
    if !data.trim_start().starts_with('{') {
        return Err(EventFault::Shape);
    }
    let event: NodeEvent = serde_json::from_str(data).map_err(|_| EventFault::Shape)?;
    if let Some(error) = event.error {
        let code = error.code.as_ref().and_then(Value::as_str).and_then(|code| code.parse().ok());
        out.push_back(Piece::Failed { code });
        return Ok(());
    }
    for choice in event.choices {
        let index = choice.index;
        if index >= choices {
            return Err(EventFault::Shape);
        }
        let (text, calls) = match dialect {
            Dialect::Chat => {
                let delta = choice.delta.unwrap_or_default();
                (delta.content, delta.tool_calls)
            }
            Dialect::Completion => (choice.text, None),
        };
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            out.push_back(Piece::Text { choice: index, text });
        }
        if let Some(calls) = calls.filter(|calls| !calls.is_empty()) {
            out.push_back(Piece::Tools { choice: index, calls });
        }
        if let Some(reason) = choice.finish_reason {
            out.push_back(Piece::Finish { choice: index, reason });
        }
    }
    // A claim that is no pair of counts is no claim; it is evidence at best (MR21), never a reason to fail.
    if let Some(usage) = event.usage {
        let count = |key: &str| usage.get(key).and_then(Value::as_u64);
        if let (Some(prompt), Some(completion)) = (count("prompt_tokens"), count("completion_tokens")) {
            out.push_back(Piece::Claim { prompt, completion });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    fn cut(parts: &[&[u8]]) -> Result<Vec<String>, EventFault> {
        let mut cutter = EventCutter::new(1024);
        let mut events = Vec::new();
        for part in parts {
            cutter.push(part, |data| {
                events.push(data.to_owned());
                Ok(())
            })?;
        }
        Ok(events)
    }

    #[test]
    fn line_ends_comments_and_several_data_lines() {
        let table: [(&[u8], &[&str]); 9] = [
            (b"data: a\n\ndata: b\n\n", &["a", "b"]),
            (b"data: a\r\n\r\ndata: b\r\n\r\n", &["a", "b"]),
            (b"data: a\r\rdata: b\r\r", &["a", "b"]),
            (b"data: one\ndata: two\n\n", &["one\ntwo"]),
            (b": comment\n\ndata:a\n: more\n\n", &["a"]),
            (b"event: x\nid: 1\nretry: 5\ndata: a\n\n", &["a"]),
            (b"\xef\xbb\xbfdata: a\n\n", &["a"]),
            (b"data\n\n", &[""]),
            (b"data: cut off\n", &[]),
        ];
        for (bytes, want) in table {
            assert_eq!(cut(&[bytes]).unwrap(), want, "{bytes:?}");
        }
    }

    #[test]
    fn large_events_and_bad_bytes_are_faults() {
        let long = [b"data: ".as_slice(), &[b'x'; 2000], b"\n\n"].concat();
        assert_eq!(cut(&[&long]), Err(EventFault::TooLarge));
        let lines = b"data: 0123456789\n".repeat(200);
        assert_eq!(cut(&[&lines]), Err(EventFault::TooLarge));
        let parts: Vec<&[u8]> = std::iter::repeat_n(b"0123456789".as_slice(), 200).collect();
        assert_eq!(cut(&parts), Err(EventFault::TooLarge));
        assert_eq!(cut(&[b"data: \xff\n\n"]), Err(EventFault::NotUtf8));
    }

    fn read(dialect: Dialect, data: &str) -> Result<Vec<Piece>, EventFault> {
        let mut out = VecDeque::new();
        read_event(dialect, 2, data, &mut out).map(|()| out.into())
    }

    #[test]
    fn chunks_become_pieces_and_extra_fields_vanish() {
        let data = r#"{"id":"theirs","model":"other","x":1,"choices":[{"index":1,"delta":{"role":"system","content":"hé"},
            "finish_reason":"stop"}],"usage":{"prompt_tokens":3,"completion_tokens":2}}"#;
        let want = vec![
            Piece::Text { choice: 1, text: "hé".into() },
            Piece::Finish { choice: 1, reason: FinishReason::Stop },
            Piece::Claim { prompt: 3, completion: 2 },
        ];
        assert_eq!(read(Dialect::Chat, data).unwrap(), want);
        let data = r#"{"choices":[{"text":"ab","index":0,"finish_reason":null}]}"#;
        assert_eq!(read(Dialect::Completion, data).unwrap(), [Piece::Text { choice: 0, text: "ab".into() }]);
        assert_eq!(read(Dialect::Chat, " [DONE]").unwrap(), [Piece::Done]);
        assert_eq!(
            read(Dialect::Chat, r#"{"error":{"code":"engine_failed","message":"x"}}"#).unwrap(),
            [Piece::Failed { code: Some(Code::EngineFailed) }]
        );
    }

    #[test]
    fn what_a_node_may_not_send_is_a_fault() {
        for data in [
            "",
            "<html>",
            "[]",
            r#"{"choices":[{"index":2,"delta":{"content":"x"}}]}"#,
            r#"{"choices":[{"index":-1,"delta":{"content":"x"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":7}}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"because"}]}"#,
        ] {
            assert_eq!(read(Dialect::Chat, data), Err(EventFault::Shape), "{data}");
        }
    }

    #[test]
    fn an_impossible_claim_is_no_claim() {
        for usage in [
            "{}",
            "7",
            r#"{"prompt_tokens":-1,"completion_tokens":2}"#,
            r#"{"prompt_tokens":1e99,"completion_tokens":2}"#,
        ] {
            assert_eq!(read(Dialect::Chat, &format!(r#"{{"choices":[],"usage":{usage}}}"#)).unwrap(), []);
        }
    }

    proptest! {
        #[test]
        fn the_events_do_not_depend_on_how_the_bytes_are_split(
            events in proptest::collection::vec("[a-zé世\u{1f600} :]{0,20}", 0..12),
            ends in proptest::collection::vec(0usize..3, 40),
            cuts in proptest::collection::vec(0usize..400, 0..30),
        ) {
            let mut bytes = Vec::new();
            for (i, event) in events.iter().enumerate() {
                let end = ["\n", "\r\n", "\r"][ends[i]];
                bytes.extend_from_slice(format!(": ping{end}data: {event}{end}data: more{end}{end}").as_bytes());
            }
            let whole = cut(&[&bytes]).unwrap();
            let want: Vec<String> = events.iter().map(|event| format!("{event}\nmore")).collect();
            prop_assert_eq!(&whole, &want);
            let mut places: Vec<usize> = cuts.into_iter().map(|c| c.min(bytes.len())).collect();
            places.push(0);
            places.push(bytes.len());
            places.sort_unstable();
            let parts: Vec<&[u8]> = places.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(&cut(&parts).unwrap(), &want);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000), at in 0usize..2000) {
            let at = at.min(bytes.len());
            let _ = cut(&[&bytes[..at], &bytes[at..]]);
        }
    }
}
