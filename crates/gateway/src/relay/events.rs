//! Events of a node: server-sent events are cut by event, never by network read, checked, and turned into the few
//! things an answer can consist of (GR15). Nothing a node sends leaves this module as bytes.

use std::collections::VecDeque;

use cxmpute_wire::Code;
use cxmpute_wire::openai::FinishReason;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::logprobs::Logprobs;

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
            let Some(end) = memchr::memchr2(b'\n', b'\r', bytes) else {
                return self.keep(bytes);
            };
            if let Some(data) = self.whole_event(bytes, end) {
                each(std::str::from_utf8(data).map_err(|_| EventFault::NotUtf8)?)?;
                bytes = &bytes[end + 2..];
                continue;
            }
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

    /// The data of an event that begins and ends here, as most do: one line of data, which ends at `end`, and an empty
    /// one. It needs no copy.
    fn whole_event<'b>(&mut self, bytes: &'b [u8], end: usize) -> Option<&'b [u8]> {
        let fresh = self.line.is_empty() && !self.has_data && end <= self.cap;
        if !fresh || !bytes[end..].starts_with(b"\n\n") {
            return None;
        }
        let data = bytes[..end].strip_prefix(b"data: ")?;
        self.at_start = false;
        Some(data)
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), EventFault> {
        self.check_size(part.len())?;
        make_room(&mut self.line, part.len(), self.cap);
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
        make_room(&mut self.data, value.len() + 1, self.cap);
        if std::mem::replace(&mut self.has_data, true) {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        Ok(())
    }
}

/// Room for what is longer than events of honest engines is made once and for all: its pages cost nothing before they are
/// written, while growth by doubling would leave a buffer of each size behind, for each stream of a rogue node.
fn make_room(buffer: &mut Vec<u8>, more: usize, cap: usize) {
    /// An event with a few tokens and their probabilities.
    const USUAL: usize = 8 * 1024;
    if buffer.len() + more > USUAL && buffer.capacity() < cap {
        buffer.reserve_exact((cap - buffer.len()).max(more));
    }
}

/// One thing a node said.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// More text of a choice, with what is known of its tokens.
    Text {
        /// Which choice.
        choice: usize,
        /// The text; empty only beside probabilities.
        text: String,
        /// Probabilities of the tokens, where they were asked for.
        logprobs: Option<Box<Logprobs>>,
    },
    /// Parts of tool calls of a choice.
    Tools {
        /// Which choice.
        choice: usize,
        /// The parts.
        calls: Vec<CallPart>,
    },
    /// A choice ended.
    Finish {
        /// Which choice.
        choice: usize,
        /// Why.
        reason: FinishReason,
    },
    /// The node's claim of tokens.
    Claim(Claim),
    /// The node gave up after it had accepted.
    Failed {
        /// Its code, where we know it.
        code: Option<Code>,
    },
    /// The end marker.
    Done,
}

/// A part of a tool call, without the node's ids and kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallPart {
    /// Position of the call in its choice.
    pub index: usize,
    /// Name of the function, in the first part.
    pub name: Option<String>,
    /// More of the arguments.
    pub arguments: String,
}

/// The tokens a node says it used; evidence at best (MR21).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Claim {
    /// Prompt tokens.
    pub prompt: u64,
    /// Completion tokens of all choices.
    pub completion: u64,
    /// Prompt tokens that came out of a prefix cache.
    pub cached: u64,
}

/// The shape of an answer's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `chat.completion.chunk`.
    Chat,
    /// `text_completion`.
    Completion,
}

/// What was asked for, as far as it decides what a node may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Shape of the events.
    pub dialect: Dialect,
    /// Number of choices; another index is a fault.
    pub choices: usize,
    /// How many likely tokens to list at each place; none when probabilities were not asked for.
    pub logprobs: Option<usize>,
}

#[derive(Deserialize)]
struct NodeEvent<'a> {
    #[serde(default, borrow)]
    choices: Vec<NodeChoice<'a>>,
    #[serde(default, borrow)]
    usage: Option<&'a RawValue>,
    #[serde(default)]
    error: Option<NodeError>,
}

#[derive(Deserialize)]
struct NodeChoice<'a> {
    #[serde(default)]
    index: usize,
    #[serde(default, borrow)]
    delta: Option<NodeDelta<'a>>,
    #[serde(default, borrow)]
    text: Option<&'a RawValue>,
    #[serde(default)]
    finish_reason: Option<FinishReason>,
    #[serde(default, borrow)]
    logprobs: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct NodeDelta<'a> {
    #[serde(default, borrow)]
    content: Option<&'a RawValue>,
    #[serde(default)]
    tool_calls: Option<Vec<NodeCall>>,
}

#[derive(Deserialize)]
struct NodeCall {
    index: usize,
    #[serde(default)]
    function: Option<NodeFunction>,
}

#[derive(Deserialize)]
struct NodeFunction {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    arguments: Option<String>,
}

impl From<NodeCall> for CallPart {
    fn from(call: NodeCall) -> Self {
        let (name, arguments) = call.function.map_or((None, None), |part| (part.name, part.arguments));
        Self { index: call.index, name, arguments: arguments.unwrap_or_default() }
    }
}

#[derive(Deserialize)]
struct NodeError {
    #[serde(default)]
    code: Option<Value>,
}

/// Reads the events of one answer.
#[derive(Debug)]
pub struct EventReader {
    asked: Asked,
    frame: Option<Frame>,
}

/// What stands around the text of an event that held a piece of text and nothing else that matters. Most events of an
/// answer differ in nothing but that text, and are read by comparing instead of parsing.
#[derive(Debug)]
struct Frame {
    before: String,
    after: String,
    choice: usize,
}

impl Frame {
    /// The text, if `data` is the same event around another one. The text is written without escapes, so where its
    /// string ends is plain, and the rest means what it meant before.
    fn text<'d>(&self, data: &'d str) -> Option<&'d str> {
        let text = data.strip_prefix(self.before.as_str())?.strip_suffix(self.after.as_str())?;
        (!text.is_empty() && is_plain(text)).then_some(text)
    }
}

/// Whether a text stands in JSON as it is.
fn is_plain(text: &str) -> bool {
    text.bytes().all(|byte| byte >= 0x20 && byte != b'"' && byte != b'\\')
}

impl EventReader {
    /// A reader of an answer to what was asked.
    #[must_use]
    pub const fn new(asked: Asked) -> Self {
        Self { asked, frame: None }
    }

    /// Reads the pieces of one event's data. Fields that nobody asked for vanish.
    ///
    /// # Errors
    /// The data is not what a node may send.
    pub fn read(&mut self, data: &str, out: &mut VecDeque<Piece>) -> Result<(), EventFault> {
        if let Some(frame) = &self.frame
            && let Some(text) = frame.text(data)
        {
            out.push_back(Piece::Text { choice: frame.choice, text: text.to_owned(), logprobs: None });
            return Ok(());
        }
        if data.trim() == "[DONE]" {
            out.push_back(Piece::Done);
            return Ok(());
        }
        // A struct may be written as a list, too, as far as serde is concerned.
        if !data.trim_start().starts_with('{') {
            return Err(EventFault::Shape);
        }
        let event: NodeEvent<'_> = serde_json::from_str(data).map_err(|_| EventFault::Shape)?;
        if let Some(error) = event.error {
            let code = error.code.as_ref().and_then(Value::as_str).and_then(|code| code.parse().ok());
            out.push_back(Piece::Failed { code });
            return Ok(());
        }
        let alone = event.choices.len() == 1 && event.usage.is_none();
        let before = out.len();
        for choice in event.choices {
            let said = read_choice(self.asked, choice, out)?;
            if alone && out.len() == before + 1 {
                self.frame =
                    said.and_then(|said| frame(data, said.get(), &out[before])).or(self.frame.take());
            }
        }
        out.extend(event.usage.and_then(|usage| claim(usage.get())).map(Piece::Claim));
        Ok(())
    }
}

/// What stands around `said`, a string within `data` whose text is the whole of `piece`.
fn frame(data: &str, said: &str, piece: &Piece) -> Option<Frame> {
    let Piece::Text { choice, text, logprobs: None } = piece else { return None };
    if !is_plain(text) || said.len() != text.len() + 2 {
        return None;
    }
    let from = (said.as_ptr() as usize).checked_sub(data.as_ptr() as usize)? + 1;
    let (before, after) = (data.get(..from)?, data.get(from + text.len()..)?);
    Some(Frame { before: before.to_owned(), after: after.to_owned(), choice: *choice })
}

/// Reads the pieces of a choice; gives its text as it stands in the event.
fn read_choice<'a>(
    asked: Asked,
    choice: NodeChoice<'a>,
    out: &mut VecDeque<Piece>,
) -> Result<Option<&'a RawValue>, EventFault> {
    let index = choice.index;
    if index >= asked.choices {
        return Err(EventFault::Shape);
    }
    let (said, calls) = match asked.dialect {
        Dialect::Chat => {
            let delta = choice.delta.unwrap_or_default();
            (delta.content, delta.tool_calls)
        }
        Dialect::Completion => (choice.text, None),
    };
    let logprobs = match (asked.logprobs, choice.logprobs) {
        (Some(top), Some(raw)) => Logprobs::read(asked.dialect, top, raw.get())?.map(Box::new),
        _ => None,
    };
    let text: String = match said {
        Some(said) => serde_json::from_str(said.get()).map_err(|_| EventFault::Shape)?,
        None => String::new(),
    };
    if !text.is_empty() || logprobs.is_some() {
        out.push_back(Piece::Text { choice: index, text, logprobs });
    }
    if let Some(calls) = calls.filter(|calls| !calls.is_empty()) {
        let calls = calls.into_iter().map(CallPart::from).collect();
        out.push_back(Piece::Tools { choice: index, calls });
    }
    if let Some(reason) = choice.finish_reason {
        out.push_back(Piece::Finish { choice: index, reason });
    }
    Ok(said)
}

/// A claim that is no pair of counts is no claim; it is evidence at best (MR21), never a reason to fail.
fn claim(usage: &str) -> Option<Claim> {
    #[derive(Deserialize)]
    struct Usage<'a> {
        #[serde(default, borrow)]
        prompt_tokens: Option<&'a RawValue>,
        #[serde(default, borrow)]
        completion_tokens: Option<&'a RawValue>,
        #[serde(default, borrow)]
        prompt_tokens_details: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Details<'a> {
        #[serde(default, borrow)]
        cached_tokens: Option<&'a RawValue>,
    }
    /// A list is no object, whatever serde makes of it.
    fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Option<T> {
        text.starts_with('{').then(|| serde_json::from_str(text).ok())?
    }
    // Whatever else stands there is no count.
    let count = |value: Option<&RawValue>| value?.get().parse().ok();
    let usage: Usage<'_> = object(usage)?;
    let details = usage.prompt_tokens_details.and_then(|details| object::<Details<'_>>(details.get()));
    let cached = details.and_then(|details| count(details.cached_tokens));
    Some(Claim {
        prompt: count(usage.prompt_tokens)?,
        completion: count(usage.completion_tokens)?,
        cached: cached.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests;
