//! Tool calls as models write them, taken out of the text: each family has marks and a shape of its own.

use serde::Deserialize;
use serde_json::Value;

use crate::text::{Span, overlap};

/// How a family of models writes calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Syntax {
    /// What begins a call or a list of calls; empty: the answer as a whole is the call.
    pub open: &'static str,
    /// What ends it.
    pub close: &'static str,
    /// What stands between the marks.
    pub shape: CallShape,
    /// The field of the arguments.
    pub arguments: &'static str,
}

/// What stands between the marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallShape {
    /// One call: `{"name": …, "arguments": {…}}`.
    Object,
    /// A list of such objects.
    List,
    /// The bare name, this mark, and the arguments.
    Tagged(&'static str),
}

const HERMES: Syntax =
    Syntax { open: "<tool_call>", close: "</tool_call>", shape: CallShape::Object, arguments: "arguments" };
const MISTRAL: Syntax =
    Syntax { open: "[TOOL_CALLS]", close: "", shape: CallShape::List, arguments: "arguments" };
const MISTRAL_TAGGED: Syntax = Syntax { shape: CallShape::Tagged("[ARGS]"), ..MISTRAL };
const PHI: Syntax =
    Syntax { open: "<|tool_call|>", close: "<|/tool_call|>", shape: CallShape::List, arguments: "arguments" };
const LLAMA: Syntax = Syntax { open: "", close: "", shape: CallShape::Object, arguments: "parameters" };

/// The mark that Llama 3 may write before a call.
pub const PYTHON_TAG: &str = "<|python_tag|>";

impl Syntax {
    /// The syntax that a chat template teaches; `None` when the template never mentions tools.
    pub fn of_template(source: &str) -> Option<Self> {
        let mentions = |mark: &str| source.contains(mark);
        if !mentions("tools") {
            None
        } else if mentions(HERMES.open) {
            Some(HERMES)
        } else if mentions(MISTRAL.open) {
            Some(if mentions("[ARGS]") { MISTRAL_TAGGED } else { MISTRAL })
        } else if mentions(PHI.open) {
            Some(PHI)
        } else if mentions("<|start_header_id|>") || mentions(PYTHON_TAG) {
            Some(LLAMA)
        } else {
            Some(HERMES)
        }
    }

    /// The marks that a vocabulary may have as control tokens.
    pub fn marks(&self) -> Vec<&'static str> {
        let tag = if let CallShape::Tagged(tag) = self.shape { tag } else { "" };
        let python = if self.open.is_empty() { PYTHON_TAG } else { "" };
        [self.open, self.close, tag, python].into_iter().filter(|mark| !mark.is_empty()).collect()
    }
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text.
    Text(Span),
    /// A call of this function begins.
    Call(String),
    /// More of the arguments of the last call.
    Arguments(String),
}

/// Separates text from calls.
#[derive(Debug)]
pub struct ToolParser {
    syntax: Syntax,
    state: State,
    held: Span,
    called: bool,
    /// More than one call is told.
    several: bool,
}

#[derive(Debug)]
enum State {
    /// Nobody guarantees the syntax: from the first mark on everything is kept until the end.
    Kept { opened: bool },
    /// The answer is held to the syntax: before a mark.
    Text,
    /// Before the arguments of a call.
    Head,
    /// In the arguments.
    Arguments(JsonEnd),
    /// Behind the arguments.
    Tail,
}

impl ToolParser {
    /// For an answer that may hold calls in any form.
    pub fn lenient(syntax: Syntax, several: bool) -> Self {
        Self { several, ..Self::new(syntax, State::Kept { opened: false }) }
    }

    /// For an answer whose every token was held to the syntax: calls are sent as they are written.
    pub fn live(syntax: Syntax) -> Self {
        Self::new(syntax, if syntax.open.is_empty() { State::Head } else { State::Text })
    }

    fn new(syntax: Syntax, state: State) -> Self {
        Self { syntax, state, held: Span::default(), called: false, several: true }
    }

    /// Whether there was a call.
    pub fn called(&self) -> bool {
        self.called
    }

    /// Adds text; returns what became certain.
    pub fn push(&mut self, span: Span) -> Vec<Part> {
        self.held.append(span);
        let mut parts = Vec::new();
        while self.step(&mut parts) {}
        parts
    }

    /// Ends the text.
    pub fn finish(&mut self) -> Vec<Part> {
        let held = std::mem::take(&mut self.held);
        let calls = match self.state {
            State::Kept { opened: true } => parse_calls(self.syntax, &held.text),
            State::Kept { opened: false } | State::Text => None,
            // Cut in the middle of a call: what came of the arguments was sent, the marks are nobody's text.
            State::Head | State::Arguments(_) | State::Tail => return Vec::new(),
        };
        match calls {
            Some(calls) => {
                self.called = true;
                let parts = |(name, arguments)| [Part::Call(name), Part::Arguments(arguments)];
                let most = if self.several { calls.len() } else { 1 };
                calls.into_iter().take(most).flat_map(parts).collect()
            }
            None => self.text_part(held).into_iter().collect(),
        }
    }

    /// The white space between calls is nobody's text.
    fn text_part(&self, span: Span) -> Option<Part> {
        let empty = span.text.is_empty() || (self.called && span.text.trim().is_empty());
        (!empty).then_some(Part::Text(span))
    }

    /// One step; whether another one may be possible.
    fn step(&mut self, parts: &mut Vec<Part>) -> bool {
        let syntax = self.syntax;
        match &mut self.state {
            State::Kept { opened: true } => false,
            State::Kept { opened } if syntax.open.is_empty() => {
                let begin = self.held.text.trim_start();
                *opened = begin.starts_with('{') || begin.starts_with(PYTHON_TAG);
                let may_open = begin.is_empty() || PYTHON_TAG.starts_with(begin);
                if !*opened && !may_open {
                    parts.extend(self.text_part_of_all());
                }
                false
            }
            State::Kept { .. } | State::Text => {
                let Some(place) = self.held.text.find(syntax.open) else {
                    let place = self.held.text.len() - overlap(&self.held.text, syntax.open);
                    let text = self.held.take_until(place);
                    parts.extend(self.text_part(text));
                    return false;
                };
                let call = self.held.split_off(place);
                let text = std::mem::replace(&mut self.held, call);
                parts.extend(self.text_part(text));
                if let State::Kept { opened } = &mut self.state {
                    *opened = true;
                    return false;
                }
                self.held = Span::plain(&self.held.text[syntax.open.len()..]);
                self.state = State::Head;
                true
            }
            State::Head => {
                let Some((name, used)) = read_head(syntax, &self.held.text) else { return false };
                self.held = Span::plain(&self.held.text[used..]);
                self.called = true;
                parts.push(Part::Call(name));
                self.state = State::Arguments(JsonEnd::default());
                true
            }
            State::Arguments(end) => {
                let used = end.read(&self.held.text);
                let rest = self.held.text.split_off(used);
                let arguments = std::mem::replace(&mut self.held, Span::plain(rest)).text;
                let complete = end.complete;
                if !arguments.is_empty() {
                    parts.push(Part::Arguments(arguments));
                }
                if complete {
                    self.state = State::Tail;
                }
                complete
            }
            State::Tail => {
                let Some((next, used)) = read_tail(syntax, &self.held.text) else { return false };
                self.held = Span::plain(&self.held.text[used..]);
                self.state = next;
                true
            }
        }
    }

    fn text_part_of_all(&mut self) -> Option<Part> {
        let all = std::mem::take(&mut self.held);
        self.text_part(all)
    }
}

/// Reads the beginning of a call up to its arguments: the name, and the bytes it took. `None`: there is more to come.
fn read_head(syntax: Syntax, text: &str) -> Option<(String, usize)> {
    let taken = |rest: &str| text.len() - rest.len();
    if let CallShape::Tagged(tag) = syntax.shape {
        let place = text.find(tag)?;
        return Some((text[..place].trim().to_owned(), place + tag.len()));
    }
    let rest = text.trim_start_matches(['[', ',', ' ', '\n', ';']);
    let rest = rest.strip_prefix('{')?.trim_start().strip_prefix("\"name\"")?.trim_start();
    let rest = rest.strip_prefix(':')?.trim_start().strip_prefix('"')?;
    let (name, rest) = rest.split_once('"')?;
    let rest = rest.trim_start().strip_prefix(',')?.trim_start();
    let rest = rest.strip_prefix('"')?.strip_prefix(syntax.arguments)?.strip_prefix('"')?;
    let rest = rest.trim_start().strip_prefix(':')?.trim_start_matches(' ');
    (!rest.is_empty()).then(|| (name.to_owned(), taken(rest)))
}

/// Reads what follows the arguments of a call: what comes next, and the bytes it took.
fn read_tail(syntax: Syntax, text: &str) -> Option<(State, usize)> {
    let rest = text.trim_start();
    let rest = match syntax.shape {
        CallShape::Tagged(_) => return Some((State::Text, 0)),
        CallShape::Object | CallShape::List => rest.strip_prefix('}')?.trim_start(),
    };
    if syntax.shape == CallShape::List {
        if let Some(rest) = rest.strip_prefix(',') {
            return Some((State::Head, text.len() - rest.len()));
        }
        let rest = rest.strip_prefix(']')?.trim_start().strip_prefix(syntax.close)?;
        return Some((State::Text, text.len() - rest.len()));
    }
    let rest = rest.strip_prefix(syntax.close)?;
    let next = if syntax.open.is_empty() { State::Head } else { State::Text };
    Some((next, text.len() - rest.len()))
}

/// Finds the end of a JSON object or list as its text comes.
#[derive(Debug, Default)]
struct JsonEnd {
    depth: usize,
    in_text: bool,
    escaped: bool,
    complete: bool,
}

impl JsonEnd {
    /// The bytes of `text` that belong to the value.
    fn read(&mut self, text: &str) -> usize {
        for (place, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_text => self.escaped = true,
                b'"' => self.in_text = !self.in_text,
                _ if self.in_text => {}
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        self.complete = true;
                        return place + 1;
                    }
                }
                _ => {}
            }
        }
        text.len()
    }
}

#[derive(Deserialize)]
struct Call {
    name: String,
    #[serde(alias = "parameters", default)]
    arguments: Value,
}

impl Call {
    fn into_texts(self) -> (String, String) {
        let arguments = match self.arguments {
            Value::String(text) => text,
            Value::Null => "{}".to_owned(),
            other => other.to_string(),
        };
        (self.name, arguments)
    }
}

/// The calls of a text that begins with one, or `None` if it is none.
fn parse_calls(syntax: Syntax, text: &str) -> Option<Vec<(String, String)>> {
    let bodies: Vec<&str> = if syntax.open.is_empty() {
        let text = text.trim().strip_prefix(PYTHON_TAG).unwrap_or(text.trim());
        vec![text]
    } else {
        text.split(syntax.open).skip(1).collect()
    };
    let mut calls = Vec::new();
    for body in bodies {
        let body = if syntax.close.is_empty() { body } else { body.split(syntax.close).next()? };
        match syntax.shape {
            CallShape::Object => {
                let separated = body.trim().replace("};", "}\n");
                for call in serde_json::Deserializer::from_str(&separated).into_iter::<Call>() {
                    calls.push(call.ok()?.into_texts());
                }
            }
            CallShape::List => {
                let list: Vec<Call> = serde_json::from_str(body.trim()).ok()?;
                calls.extend(list.into_iter().map(Call::into_texts));
            }
            CallShape::Tagged(tag) => {
                let (name, arguments) = body.split_once(tag)?;
                serde_json::from_str::<serde_json::Map<String, Value>>(arguments.trim()).ok()?;
                calls.push((name.trim().to_owned(), arguments.trim().to_owned()));
            }
        }
    }
    Some(calls).filter(|calls| !calls.is_empty())
}

#[cfg(test)]
mod tests;
