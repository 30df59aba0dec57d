//! What a rogue node sends in P1, and how each of it must end.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};

use crate::paths::{DONE, OWN_WORD, Path};
use crate::stand_in::{Script, Step};

/// `max_tokens` of the gate's requests.
pub const LIMIT: u64 = 64;

/// A dripping node sends a byte this often; real ones take 20 s, beside deadlines of 30 s.
pub const DRIP: Duration = Duration::from_millis(100);

/// Bytes of one event that the relay takes.
const EVENT: u64 = 256 * 1024;

/// Times that stand for "for ever".
const ENDLESS: u64 = 1_000_000;

/// How a play must end for the client.
#[derive(Clone, Debug)]
pub enum Ends {
    /// Status and code, before any content.
    Refused(u16, &'static str),
    /// The code of the error event after content; status and code where the answer is not streamed.
    Cut(&'static str, u16, &'static str),
    /// A complete answer with this text.
    Text(String),
    /// A complete answer of the longest length.
    Full,
}

/// What the node sends, how that must end, and how many bytes the relay may take in before it ends it.
#[derive(Clone, Debug)]
pub struct Play {
    /// Headers and bytes.
    pub script: Script,
    /// The end.
    pub ends: Ends,
    /// Bytes taken in.
    pub bytes: u64,
}

impl Play {
    fn new(steps: Vec<Step>, ends: Ends) -> Self {
        Self { script: Script::of(steps), ends, bytes: EVENT }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.script.headers.append(name, value);
        }
        self
    }
}

const NO_ANSWER: Ends = Ends::Refused(502, "provider_error");
const LATE: Ends = Ends::Refused(504, "first_token_timeout");
const GARBLED: Ends = Ends::Cut("provider_protocol_error", 502, "provider_error");
const STALLED: Ends = Ends::Cut("provider_stalled", 504, "first_token_timeout");

fn raw(bytes: impl Into<Bytes>) -> Step {
    Step::Raw(bytes.into())
}

fn repeat(bytes: impl Into<Bytes>) -> Step {
    Step::Repeat(bytes.into(), ENDLESS)
}

fn comment() -> Bytes {
    Bytes::from(format!(": {OWN_WORD}\n\n"))
}

fn html() -> Bytes {
    let page = format!("<!doctype html>\r\n<title>{OWN_WORD}</title>\r\n<script>alert(1)</script>\r\n");
    Bytes::from(page.repeat(50))
}

/// The bytes of a gzip member, as an engine behind a compressing proxy would send them.
fn gzip() -> Bytes {
    let mut bytes = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    bytes
        .extend((0..4096_u32).map(|n| u8::try_from(n.wrapping_mul(2_654_435_761) >> 24).unwrap_or_default()));
    bytes.into()
}

/// The content with every character that could end a line, a text or an event somewhere.
fn tricky() -> String {
    "a\r\nb\u{0}c\u{2028}d\u{2029}e\u{85}f\n\ndata: [DONE]\n\ng".to_owned()
}

type Plays = Vec<(&'static str, Vec<(Path, Play)>)>;

/// One play on every path that answers with text.
fn on_text(name: &'static str, make: impl Fn(Path) -> Play) -> (&'static str, Vec<(Path, Play)>) {
    (name, Path::TEXT.into_iter().map(|path| (path, make(path))).collect())
}

/// The plays for text.
pub fn text_plays() -> Plays {
    let mut plays = endless();
    plays.extend(slow());
    plays.extend(garbled());
    plays
}

fn endless() -> Plays {
    vec![
        on_text("endless", |path| Play::new(vec![repeat(path.piece(" the"))], Ends::Full)),
        on_text("endless-fat", |path| Play::new(vec![repeat(path.piece(&" the".repeat(50)))], Ends::Full)),
        on_text("endless-one-byte-tokens", |path| {
            Play::new(vec![repeat(path.piece(&"7".repeat(40)))], Ends::Full)
        }),
        on_text("one-line-of-a-gibibyte", |_| {
            let line = Step::Repeat(vec![b'x'; 64 * 1024].into(), 16 * 1024);
            Play::new(vec![raw(format!("data: {OWN_WORD}")), line], NO_ANSWER)
        }),
        on_text("a-line-after-content", |path| {
            let line = Step::Repeat(vec![b'x'; 64 * 1024].into(), 16 * 1024);
            Play::new(vec![raw(path.piece("The")), raw("data: "), line], Ends::Full)
        }),
        on_text("an-event-without-end", |_| {
            Play::new(vec![repeat(format!("data: {OWN_WORD}\n").repeat(64))], NO_ANSWER)
        }),
        on_text("empty-deltas", |path| Play::new(vec![repeat(path.piece("").repeat(64))], NO_ANSWER)),
        on_text("comments-only", |_| Play::new(vec![repeat(comment().repeat(64))], NO_ANSWER)),
        on_text("empty-deltas-after-content", |path| {
            Play::new(vec![raw(path.piece("The")), repeat(path.piece("").repeat(64))], Ends::Full)
        }),
    ]
}

fn slow() -> Plays {
    vec![
        on_text("silence", |_| Play::new(vec![Step::Hold], LATE)),
        on_text("one-byte-now-and-then", |path| Play::new(vec![Step::Drip(path.piece(" the"), DRIP)], LATE)),
        on_text("comments-now-and-then", |_| {
            Play::new(vec![Step::Drip(comment().repeat(8).into(), DRIP)], LATE)
        }),
        on_text("silence-after-content", |path| Play::new(vec![raw(path.piece("The")), Step::Hold], STALLED)),
        on_text("one-byte-now-and-then-after-content", |path| {
            Play::new(vec![raw(path.piece("The")), Step::Drip(path.piece(" the"), DRIP)], STALLED)
        }),
    ]
}

fn garbled() -> Plays {
    let large = || HeaderValue::from_str(&OWN_WORD.repeat((1 << 20) / OWN_WORD.len()));
    vec![
        on_text("gzip", |_| Play::new(vec![raw(gzip())], NO_ANSWER).with("content-encoding", "gzip")),
        on_text("html", |_| Play::new(vec![raw(html())], NO_ANSWER).with("content-type", "text/html")),
        on_text("nothing", |_| Play::new(Vec::new(), NO_ANSWER)),
        on_text("only-an-end", |_| Play::new(vec![raw(DONE)], NO_ANSWER)),
        on_text("broken-off", |path| {
            let ends = Ends::Cut("provider_lost", 502, "provider_error");
            let pause = Step::Drip(Bytes::from_static(b"\n"), DRIP);
            Play::new(vec![raw(path.piece("The")), pause, Step::Break], ends)
        }),
        on_text("large-header", |path| {
            let mut play = Play::new(vec![raw(path.piece("The"))], NO_ANSWER);
            let mut headers = HeaderMap::new();
            if let Ok(value) = large() {
                headers.insert("x-large", value);
            }
            play.script.headers = headers;
            play
        }),
        on_text("not-utf-8", |_| Play::new(vec![raw(&b"data: {\"x\":\"\xff\"}\n\n"[..])], NO_ANSWER)),
        on_text("not-utf-8-after-content", |path| {
            Play::new(vec![raw(path.piece("The")), raw(&b"data: {\"x\":\"\xc3\x28\"}\n\n"[..])], GARBLED)
        }),
        on_text("line-ends-in-content", |path| {
            Play::new(
                vec![raw(path.piece(&tricky())), raw(path.finish("stop")), raw(DONE)],
                Ends::Text(tricky()),
            )
        }),
        on_text("a-fake-end", |path| {
            let steps = vec![raw(path.piece("The")), raw(DONE), raw(path.piece(OWN_WORD)), Step::Hold];
            Play::new(steps, GARBLED)
        }),
        on_text("more-after-the-end", |path| {
            let steps = vec![
                raw(path.piece("The")),
                raw(path.finish("stop")),
                raw(path.piece(OWN_WORD)),
                raw(DONE),
                raw(path.piece(OWN_WORD)),
                raw(html()),
            ];
            Play::new(steps, Ends::Text("The".to_owned()))
        }),
        on_text("more-after-the-end-in-one-read", |path| {
            let all = [
                &path.piece("The")[..],
                &path.finish("stop"),
                &DONE,
                &path.piece(OWN_WORD),
                b"data: \xff\n\n",
            ];
            Play::new(vec![raw(all.concat())], Ends::Text("The".to_owned()))
        }),
    ]
}

/// The plays for vectors.
pub fn embeddings_plays() -> Vec<(&'static str, Play)> {
    let vector = |numbers: &str| {
        let body =
            format!("{{\"model\":\"{OWN_WORD}\",\"data\":[{{\"index\":0,\"embedding\":[{numbers}]}}]}}");
        Play::new(vec![raw(body)], NO_ANSWER)
    };
    let late = || Ends::Refused(504, "deadline_exceeded");
    vec![
        ("endless-vectors", Play::new(vec![raw("{\"data\":["), repeat(vec![b' '; 64 * 1024])], NO_ANSWER)),
        ("vectors-as-html", Play::new(vec![raw(html())], NO_ANSWER)),
        ("vectors-as-gzip", Play::new(vec![raw(gzip())], NO_ANSWER).with("content-encoding", "gzip")),
        ("vectors-not-utf-8", Play::new(vec![raw(&b"{\"data\":\"\xff\"}"[..])], NO_ANSWER)),
        ("vectors-too-deep", Play::new(vec![raw("[".repeat(60_000))], NO_ANSWER)),
        ("vectors-beyond-numbers", vector("1,2,3,1e400")),
        ("vectors-beyond-floats", vector("1,2,3,1e39")),
        ("vectors-of-texts", vector("\"a\",\"b\",\"c\",\"d\"")),
        ("vectors-too-short", vector("1,2,3")),
        ("no-vectors", Play::new(Vec::new(), NO_ANSWER)),
        ("silent-vectors", Play::new(vec![Step::Hold], late())),
        ("dripping-vectors", Play::new(vec![Step::Drip(vec![b' '; 1000].into(), DRIP)], late())),
    ]
}
