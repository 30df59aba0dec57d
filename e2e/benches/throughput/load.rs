//! The load: keep-alive connections that ask again as soon as they have an answer. Written by hand because a general
//! client would cost more than what is measured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::stage::Peer;
use crate::tls::Trust;

/// What ends every event.
const EVENT_END: &[u8] = b"\n\n";
/// What is in every event with content, and in no other: the end of its word.
pub const WORD_END: &[u8] = b"he\"}";

/// What is asked, over and over.
#[derive(Clone, Debug)]
pub struct Question {
    address: SocketAddr,
    trust: Option<Trust>,
    /// The whole request, head and body.
    bytes: Arc<[u8]>,
    /// Whether the answer is a stream of events.
    streamed: bool,
}

/// What the stand-in and the upstream should do; both read it from the prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Script {
    /// Content events of the answer.
    pub events: u32,
    /// Time between events.
    pub pace_ms: u32,
    /// Whether the answer never ends.
    pub hold: bool,
    /// The stream whose emissions are noted.
    pub stream: Option<usize>,
}

impl Script {
    /// So many events without delay.
    pub const fn of(events: u32) -> Self {
        Self { events, pace_ms: 0, hold: false, stream: None }
    }

    /// How it is written in a prompt, after `bench `.
    fn words(&self) -> String {
        let Self { events, pace_ms, .. } = self;
        let hold = if self.hold { " hold" } else { "" };
        let stream = self.stream.map(|number| format!(" #{number}")).unwrap_or_default();
        format!("{events} {pace_ms}{hold}{stream}")
    }

    /// What the prompt in a request asks for; the gateway's own checks ask for nothing and get three events.
    pub fn read(body: &[u8]) -> Self {
        let mut script = Self::of(3);
        let Some(at) = body.windows(6).position(|window| window == b"bench ") else { return script };
        let text = String::from_utf8_lossy(&body[at + 6..]);
        let mut words = text.split_whitespace();
        if let (Some(Ok(events)), Some(Ok(pace_ms))) =
            (words.next().map(str::parse), words.next().map(str::parse))
        {
            script = Self { pace_ms, ..Self::of(events) };
            for word in words.take(2) {
                script.hold |= word == "hold";
                script.stream =
                    script.stream.or(word.strip_prefix('#').and_then(|number| number.parse().ok()));
            }
        }
        script
    }
}

impl Question {
    /// A chat completion.
    pub fn chat(peer: &Peer, key: &str, script: Script, streamed: bool) -> Self {
        let (address, events, words) = (peer.address, script.events, script.words());
        let body = format!(
            "{{\"model\":\"cxm-tiny\",\"stream\":{streamed},\"max_tokens\":{events},\"messages\":[{{\"role\":\"user\",\
             \"content\":\"bench {words} What is the answer to this question?\"}}]}}"
        );
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Self { address, trust: peer.trust.clone(), bytes: (head + &body).into_bytes().into(), streamed }
    }
}

/// What came of it so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Whole answers.
    pub answers: AtomicU64,
    /// Events of streamed answers.
    pub events: AtomicU64,
    /// Anything else, with the first example.
    pub errors: Mutex<Vec<String>>,
    /// Time to the first byte of the body, microseconds.
    pub first_us: Mutex<Vec<u32>>,
}

/// A load that runs until it is stopped.
pub struct Load {
    /// What came of it.
    pub tally: Arc<Tally>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Load {
    /// Starts `connections` askers, spread evenly over `spread`: answers that take equally long stay spread, so that
    /// they do not queue behind each other in step.
    pub fn start(question: &Question, connections: usize, spread: Duration) -> Self {
        let tally = Arc::new(Tally::default());
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks = JoinSet::new();
        for number in 0..connections {
            let (question, tally, stop) = (question.clone(), tally.clone(), stop.clone());
            let wait = spread.mul_f64(number as f64 / connections as f64);
            tasks.spawn(async move {
                tokio::time::sleep(wait).await;
                if let Err(error) = ask(&question, &tally, &stop).await {
                    tally.errors.lock().push(format!("{error:#}"));
                }
            });
        }
        Self { tally, stop, tasks }
    }

    /// Lets the running answers end; fails if anything went wrong, since a proxy that errs is not measured.
    ///
    /// # Errors
    /// An asker met anything but whole answers.
    pub async fn finish(mut self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        while self.tasks.join_next().await.is_some() {}
        let errors = self.tally.errors.lock();
        ensure!(errors.is_empty(), "{} askers failed, the first with: {}", errors.len(), errors[0]);
        Ok(self.tally.answers.load(Ordering::Relaxed))
    }
}

async fn ask(question: &Question, tally: &Tally, stop: &AtomicBool) -> Result<()> {
    let mut connection = Connection::open(question).await?;
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        let mut first = None;
        let events = connection
            .ask(question, EVENT_END, |_| {
                first.get_or_insert_with(|| asked.elapsed());
            })
            .await?;
        let first = first.unwrap_or_else(|| asked.elapsed());
        tally.answers.fetch_add(1, Ordering::Relaxed);
        tally.events.fetch_add(events, Ordering::Relaxed);
        tally.first_us.lock().push(u32::try_from(first.as_micros()).unwrap_or(u32::MAX));
    }
    Ok(())
}

/// A connection to a peer, plain or with TLS.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Wire for T {}

/// A keep-alive connection.
pub struct Connection {
    wire: Box<dyn Wire>,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects to whom the question goes.
    ///
    /// # Errors
    /// Nobody listens, or the certificate is another's.
    pub async fn open(question: &Question) -> Result<Self> {
        let tcp = TcpStream::connect(question.address).await?;
        tcp.set_nodelay(true)?;
        let wire: Box<dyn Wire> = match &question.trust {
            Some(trust) => Box::new(trust.connect(tcp).await?),
            None => Box::new(tcp),
        };
        Ok(Self { wire, buffer: Vec::with_capacity(16 * 1024) })
    }

    async fn send(&mut self, question: &Question) -> Result<()> {
        self.wire.write_all(&question.bytes).await?;
        Ok(self.wire.flush().await?)
    }

    async fn read(&mut self) -> Result<()> {
        let got = self.wire.read_buf(&mut self.buffer).await?;
        ensure!(got > 0, "the connection was closed in the middle of an answer");
        Ok(())
    }

    /// Asks and reads the whole answer. `seen` hears after each read that brought something of the body how often the
    /// needle was new in it; gives how often it was in all of it. Both are 0 where the answer is no stream.
    ///
    /// # Errors
    /// Anything but a whole answer came.
    pub async fn ask(
        &mut self,
        question: &Question,
        needle: &'static [u8],
        mut seen: impl FnMut(u64),
    ) -> Result<u64> {
        self.send(question).await?;
        self.buffer.clear();
        let body = self.head().await?;
        let length = content_length(&self.buffer[..body])?;
        let (mut finder, mut found) = (Finder { needle, from: body }, 0);
        loop {
            if self.buffer.len() > body {
                let new = if question.streamed { finder.count(&self.buffer) } else { 0 };
                found += new;
                seen(new);
            }
            let ended = match length {
                Some(length) => self.buffer.len() >= body + length,
                None => self.buffer.ends_with(b"\r\n0\r\n\r\n"),
            };
            if ended {
                break;
            }
            self.read().await?;
        }
        let end = &self.buffer[self.buffer.len().saturating_sub(64)..];
        if question.streamed && !contains(end, b"data: [DONE]\n\n") {
            bail!("a stream without [DONE]: …{}", tail(&self.buffer));
        }
        Ok(found)
    }

    /// Reads the head; gives where the body begins.
    async fn head(&mut self) -> Result<usize> {
        loop {
            if let Some(at) = position(&self.buffer, b"\r\n\r\n") {
                ensure!(self.buffer.starts_with(b"HTTP/1.1 200"), "not answered: {}", tail(&self.buffer));
                return Ok(at + 4);
            }
            self.read().await?;
        }
    }
}

fn content_length(head: &[u8]) -> Result<Option<usize>> {
    let head = std::str::from_utf8(head).context("a head that is not text")?;
    for line in head.split("\r\n") {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            return Ok(Some(value.trim().parse()?));
        }
    }
    Ok(None)
}

/// Counts a needle in a buffer that grows.
struct Finder {
    needle: &'static [u8],
    /// Nothing that begins before is new.
    from: usize,
}

impl Finder {
    fn count(&mut self, buffer: &[u8]) -> u64 {
        let mut found = 0;
        while let Some(at) = position(&buffer[self.from..], self.needle) {
            self.from += at + self.needle.len();
            found += 1;
        }
        // What is left may be the beginning of one.
        self.from = self.from.max((buffer.len() + 1).saturating_sub(self.needle.len()));
        found
    }
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    position(haystack, needle).is_some()
}

fn tail(buffer: &[u8]) -> String {
    let from = buffer.len().saturating_sub(400);
    String::from_utf8_lossy(&buffer[from..]).into_owned()
}

/// Opens streams that stay open once their first event has come.
///
/// # Errors
/// One of them was not answered.
pub async fn hold(question: &Question, count: usize) -> Result<Vec<Connection>> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::open(question).await?;
        connection.send(question).await?;
        let body = connection.head().await?;
        while !contains(&connection.buffer[body..], WORD_END) {
            connection.read().await?;
        }
        connection.buffer = Vec::new();
        held.push(connection);
    }
    Ok(held)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_counted_once_however_they_are_cut() {
        let whole = b"data: a\n\ndata: b\n\ndata: [DONE]\n\n";
        for cut in 0..whole.len() {
            let mut finder = Finder { needle: EVENT_END, from: 0 };
            let first = finder.count(&whole[..cut]);
            assert_eq!(first + finder.count(whole), 3, "cut at {cut}");
        }
    }

    #[test]
    fn the_length_of_a_body_is_found_whatever_its_case() {
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\ncontent-Length: 12\r\n\r\n").unwrap(), Some(12));
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\n\r\n").unwrap(), None);
    }

    #[test]
    fn the_prompt_carries_the_script() {
        for script in [
            Script { pace_ms: 10, hold: true, stream: Some(7), ..Script::of(20) },
            Script { stream: Some(0), ..Script::of(3) },
            Script::of(200),
        ] {
            let body = format!("...\"content\":\"bench {} What?\"", script.words());
            assert_eq!(Script::read(body.as_bytes()), script);
        }
        assert_eq!(Script::read(b"{\"content\":\"Say hello.\"}"), Script::of(3));
    }
}
