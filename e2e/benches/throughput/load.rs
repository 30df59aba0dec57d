//! The load: keep-alive connections that ask again as soon as they have an answer. Written by hand because a general
//! client would cost more than what is measured.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// What is asked, over and over.
#[derive(Clone, Debug)]
pub struct Question {
    /// Whom.
    pub address: SocketAddr,
    /// The whole request, head and body.
    pub bytes: Arc<[u8]>,
    /// Whether the answer is a stream of events.
    pub streamed: bool,
}

/// What the stand-in and the upstream should do; both read it from the prompt.
#[derive(Clone, Copy, Debug)]
pub struct Script {
    /// Content events of the answer.
    pub events: u32,
    /// Time between events.
    pub pace_ms: u32,
    /// Whether the answer never ends.
    pub hold: bool,
}

impl Question {
    /// A chat completion.
    pub fn chat(address: SocketAddr, key: &str, script: Script, streamed: bool) -> Self {
        let Script { events, pace_ms, hold } = script;
        let hold = if hold { " hold" } else { "" };
        let body = format!(
            "{{\"model\":\"cxm-tiny\",\"stream\":{streamed},\"max_tokens\":{events},\"messages\":[{{\"role\":\"user\",\
             \"content\":\"bench {events} {pace_ms}{hold} What is the answer to this question?\"}}]}}"
        );
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {key}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        Self { address, bytes: (head + &body).into_bytes().into(), streamed }
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
    let mut connection = Connection::open(question.address).await?;
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        connection.tcp.write_all(&question.bytes).await?;
        let answer = connection.answer(question.streamed, asked).await?;
        tally.answers.fetch_add(1, Ordering::Relaxed);
        tally.events.fetch_add(answer.events, Ordering::Relaxed);
        tally.first_us.lock().push(u32::try_from(answer.first.as_micros()).unwrap_or(u32::MAX));
    }
    Ok(())
}

/// One answer.
struct Answer {
    events: u64,
    first: Duration,
}

/// A keep-alive connection.
struct Connection {
    tcp: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self> {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        Ok(Self { tcp, buffer: Vec::with_capacity(64 * 1024) })
    }

    async fn read(&mut self) -> Result<()> {
        let got = self.tcp.read_buf(&mut self.buffer).await?;
        ensure!(got > 0, "the connection was closed in the middle of an answer");
        Ok(())
    }

    async fn answer(&mut self, streamed: bool, asked: Instant) -> Result<Answer> {
        self.buffer.clear();
        let body = self.head().await?;
        let length = content_length(&self.buffer[..body])?;
        let mut searched = body;
        let mut events = 0;
        let mut first = None;
        loop {
            if first.is_none() && self.buffer.len() > body {
                first = Some(asked.elapsed());
            }
            if streamed {
                events += count_events(&self.buffer, &mut searched);
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
        if streamed && !contains(&self.buffer[self.buffer.len().saturating_sub(64)..], b"data: [DONE]\n\n") {
            bail!("a stream without [DONE]: …{}", tail(&self.buffer));
        }
        Ok(Answer { events, first: first.unwrap_or_else(|| asked.elapsed()) })
    }

    /// Reads the head; gives where the body begins.
    async fn head(&mut self) -> Result<usize> {
        loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
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

/// Events whose end (an empty line) lies beyond `searched`.
fn count_events(buffer: &[u8], searched: &mut usize) -> u64 {
    let from = searched.saturating_sub(1);
    let ends = buffer[from..].windows(2).filter(|pair| pair == b"\n\n").count();
    *searched = buffer.len();
    ends as u64
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn tail(buffer: &[u8]) -> String {
    let from = buffer.len().saturating_sub(400);
    String::from_utf8_lossy(&buffer[from..]).into_owned()
}

/// Opens streams that stay open once their first event has come.
///
/// # Errors
/// One of them was not answered.
pub async fn hold(question: &Question, count: usize) -> Result<Vec<TcpStream>> {
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut connection = Connection::open(question.address).await?;
        connection.tcp.write_all(&question.bytes).await?;
        let body = connection.head().await?;
        while !contains(&connection.buffer[body..], b"data: ") {
            connection.read().await?;
        }
        held.push(connection.tcp);
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
            let mut searched = 0;
            let first = count_events(&whole[..cut], &mut searched);
            assert_eq!(first + count_events(whole, &mut searched), 3, "cut at {cut}");
        }
    }

    #[test]
    fn the_length_of_a_body_is_found_whatever_its_case() {
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\ncontent-Length: 12\r\n\r\n").unwrap(), Some(12));
        assert_eq!(content_length(b"HTTP/1.1 200 OK\r\n\r\n").unwrap(), None);
    }
}
