//! An HTTP/1.1 client that misbehaves on demand: it can reset, half-close, stall, and it sees every event as it comes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::contract::{Contract, Response};

/// No read of the suite waits longer than this: a hang is a failure, never a stuck run.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The one address that the suite reads and that is no part of the API: it has a listener of its own.
const METRICS: &str = "/metrics";

/// Where the gateway listens and who is calling. Every answer is held against the published contract.
#[derive(Clone, Debug)]
pub struct Client {
    /// The gateway's address.
    pub address: SocketAddr,
    /// The API key, if any.
    pub key: Option<String>,
    /// Answers are taken as they come: a known-bad gateway is caught by its gate, not by the contract.
    pub lenient: bool,
}

/// A body and its type.
#[derive(Clone, Debug)]
pub struct Payload {
    /// `Content-Type`.
    pub content_type: String,
    /// The body.
    pub bytes: Vec<u8>,
}

impl Payload {
    /// JSON.
    #[must_use]
    pub fn json(body: &Value) -> Self {
        Self { content_type: "application/json".to_owned(), bytes: body.to_string().into_bytes() }
    }

    /// A form as browsers send one: plain fields, then a file, if there is one.
    #[must_use]
    pub fn form(fields: &[(&str, &str)], file: Option<&[u8]>) -> Self {
        const LINE: &str = "the-line-between-parts-of-a-test";
        let mut bytes = Vec::new();
        let mut part = |head: String, body: &[u8]| {
            bytes.extend_from_slice(
                format!("--{LINE}\r\nContent-Disposition: form-data; {head}\r\n\r\n").as_bytes(),
            );
            bytes.extend_from_slice(body);
            bytes.extend_from_slice(b"\r\n");
        };
        for (name, value) in fields {
            part(format!("name=\"{name}\""), value.as_bytes());
        }
        if let Some(file) = file {
            part("name=\"file\"; filename=\"sound.wav\"\r\nContent-Type: audio/wav".to_owned(), file);
        }
        bytes.extend_from_slice(format!("--{LINE}--\r\n").as_bytes());
        Self { content_type: format!("multipart/form-data; boundary={LINE}"), bytes }
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// Lower-case names, as they came.
    pub headers: Vec<(String, String)>,
    /// The body, decoded from chunks.
    pub body: Vec<u8>,
}

impl Reply {
    /// The first header of that lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// The body as JSON; `null` if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// `error.code` of the error envelope.
    #[must_use]
    pub fn error_code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// One event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A JSON event.
    Data(Value),
    /// `data: [DONE]`.
    Done,
}

impl Client {
    /// A client without a key.
    #[must_use]
    pub fn anonymous(address: SocketAddr) -> Self {
        Self { address, key: None, lenient: false }
    }

    /// The same gateway, called with a key.
    #[must_use]
    pub fn with_key(address: SocketAddr, key: &str) -> Self {
        Self { address, key: Some(key.to_owned()), lenient: false }
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// A connection that breaks, or an answer that is not HTTP.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Reply> {
        let mut conversation = self.open(method, path, body).await?;
        let body = conversation.rest().await?;
        let Conversation { status, headers, .. } = conversation;
        if path != METRICS && !self.lenient {
            Contract::shared().check(method, path, status, &headers, &body)?;
        }
        Ok(Reply { status, headers, body })
    }

    /// Posts a body of any type and reads the whole answer.
    ///
    /// # Errors
    /// A connection that breaks, or an answer that is not HTTP.
    pub async fn post(&self, path: &str, payload: &Payload) -> Result<Reply> {
        let mut conversation = self.send_payload("POST", path, Some(payload)).await?;
        conversation.read_head().await?;
        let body = conversation.rest().await?;
        let Conversation { status, headers, .. } = conversation;
        if !self.lenient {
            Contract::shared().check("POST", path, status, &headers, &body)?;
        }
        Ok(Reply { status, headers, body })
    }

    /// Sends a request and reads the head of the answer only.
    ///
    /// # Errors
    /// A connection that breaks, or an answer that is not HTTP.
    pub async fn open(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Conversation> {
        let mut sent = self.send(method, path, body).await?;
        sent.read_head().await?;
        Ok(sent)
    }

    /// Sends bytes as they are and reads the whole answer.
    ///
    /// # Errors
    /// A connection that breaks, or an answer that is not HTTP.
    pub async fn exchange(&self, bytes: &[u8]) -> Result<Reply> {
        let stream = timeout(PATIENCE, TcpStream::connect(self.address)).await.context("connecting")??;
        stream.set_nodelay(true)?;
        let mut conversation = Conversation::new(stream);
        // Whoever refuses early may close before it read everything; the answer is what counts.
        let _ = timeout(PATIENCE, conversation.stream.write_all(bytes)).await.context("sending")?;
        conversation.read_head().await?;
        let body = conversation.rest().await?;
        Ok(Reply { status: conversation.status, headers: conversation.headers, body })
    }

    /// Posts a body with a deadline of the client's own and reads the whole answer.
    ///
    /// # Errors
    /// A connection that breaks, or an answer that is not HTTP.
    pub async fn post_within(&self, path: &str, body: &Value, time: Duration) -> Result<Reply> {
        let key = self.key.as_deref().unwrap_or_default();
        let body = body.to_string();
        let message = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\nauthorization: Bearer {key}\r\n\
             x-cxmpute-timeout-ms: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.address,
            time.as_millis(),
            body.len()
        );
        self.exchange(message.as_bytes()).await
    }

    /// Sends a request and reads nothing.
    ///
    /// # Errors
    /// A connection that cannot be made.
    pub async fn send(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Conversation> {
        self.send_payload(method, path, body.map(Payload::json).as_ref()).await
    }

    /// Sends a request with a body of any type and reads nothing.
    ///
    /// # Errors
    /// A connection that cannot be made.
    pub async fn send_payload(
        &self,
        method: &str,
        path: &str,
        payload: Option<&Payload>,
    ) -> Result<Conversation> {
        let asked = (method.to_owned(), path.to_owned());
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n", self.address);
        if let Some(key) = &self.key {
            head.push_str(&format!("authorization: Bearer {key}\r\n"));
        }
        if let Some(Payload { content_type, bytes }) = payload {
            head.push_str(&format!("content-type: {content_type}\r\ncontent-length: {}\r\n", bytes.len()));
        }
        head.push_str("\r\n");
        let mut message = head.into_bytes();
        message.extend_from_slice(payload.map_or(&[], |payload| payload.bytes.as_slice()));
        let mut conversation = self.send_bytes(&message).await?;
        conversation.asked = Some(asked).filter(|_| !self.lenient);
        Ok(conversation)
    }

    /// Sends bytes as they are on a connection of their own. What comes back is not held against the contract.
    ///
    /// # Errors
    /// A connection that cannot be made.
    pub async fn send_bytes(&self, bytes: &[u8]) -> Result<Conversation> {
        let mut stream =
            timeout(PATIENCE, TcpStream::connect(self.address)).await.context("connecting")??;
        stream.set_nodelay(true)?;
        stream.write_all(bytes).await?;
        Ok(Conversation::new(stream))
    }
}

/// A request on its own connection.
#[derive(Debug)]
pub struct Conversation {
    stream: TcpStream,
    buffer: Vec<u8>,
    lines: Vec<u8>,
    left: Option<usize>,
    chunked: bool,
    ended: bool,
    /// Method and path, where the answer is held against the contract.
    asked: Option<(String, String)>,
    judge: Option<Response>,
    /// The HTTP status, 0 until the head was read.
    pub status: u16,
    /// Lower-case names, as they came.
    pub headers: Vec<(String, String)>,
}

impl Conversation {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            buffer: Vec::new(),
            lines: Vec::new(),
            left: None,
            chunked: false,
            ended: false,
            asked: None,
            judge: None,
            status: 0,
            headers: Vec::new(),
        }
    }

    /// The first header of that lower-case name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// Reads status and headers.
    ///
    /// # Errors
    /// A connection that ends first.
    pub async fn read_head(&mut self) -> Result<()> {
        let end = loop {
            if let Some(at) = find(&self.buffer, b"\r\n\r\n") {
                break at;
            }
            ensure!(self.fill().await?, "the connection ended before the head of the answer");
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap_or_default();
        self.status = status
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .with_context(|| format!("no status in {status:?}"))?;
        self.headers = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.trim().to_lowercase(), value.trim().to_owned()))
            .collect();
        self.chunked = self.header("transfer-encoding").is_some_and(|value| value.contains("chunked"));
        self.left = self.header("content-length").and_then(|value| value.parse().ok());
        if let Some((method, path)) = self.asked.as_ref().filter(|(_, path)| path != METRICS) {
            let judge = Contract::shared().check_head(method, path, self.status, &self.headers)?;
            self.judge = judge.filter(Response::is_stream);
        }
        Ok(())
    }

    /// The rest of the body.
    ///
    /// # Errors
    /// A connection that breaks inside a chunk or before the promised length.
    pub async fn rest(&mut self) -> Result<Vec<u8>> {
        let mut body = std::mem::take(&mut self.lines);
        while let Some(piece) = self.piece().await? {
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// The next event of the stream; `None` when the body ended.
    ///
    /// # Errors
    /// A connection that breaks, or an event that is not JSON.
    pub async fn event(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(at) = find(&self.lines, b"\n\n") {
                let block: Vec<u8> = self.lines.drain(..at + 2).collect();
                let block = String::from_utf8(block)?;
                let Some(data) = block.lines().find_map(|line| line.strip_prefix("data:")) else { continue };
                let data = data.trim();
                if data == "[DONE]" {
                    return Ok(Some(Event::Done));
                }
                let value = serde_json::from_str(data)
                    .with_context(|| format!("an event that is not JSON: {data:?}"))?;
                if let Some(judge) = &self.judge {
                    Contract::shared().check_event(judge, &value)?;
                }
                return Ok(Some(Event::Data(value)));
            }
            match self.piece().await? {
                Some(piece) => self.lines.extend_from_slice(&piece),
                None => return Ok(None),
            }
        }
    }

    /// Reads until `count` content events arrived (or the stream ended) and gives their texts.
    ///
    /// # Errors
    /// A connection that breaks.
    pub async fn contents(&mut self, count: usize) -> Result<Vec<String>> {
        let mut texts = Vec::new();
        while texts.len() < count {
            match self.event().await? {
                Some(Event::Data(value)) => {
                    if let Some(text) = content(&value) {
                        texts.push(text.to_owned());
                    }
                }
                Some(Event::Done) | None => break,
            }
        }
        Ok(texts)
    }

    /// Ends the connection with a TCP reset.
    ///
    /// # Errors
    /// A socket that refuses the option.
    pub fn reset(self) -> Result<()> {
        self.stream.set_zero_linger()?;
        drop(self.stream);
        Ok(())
    }

    /// Closes the sending half and keeps reading.
    ///
    /// # Errors
    /// A connection that is gone.
    pub async fn half_close(&mut self) -> Result<()> {
        Ok(self.stream.shutdown().await?)
    }

    async fn piece(&mut self) -> Result<Option<Vec<u8>>> {
        if self.ended {
            return Ok(None);
        }
        if self.chunked {
            return self.chunk().await;
        }
        match self.left {
            Some(0) => {
                self.ended = true;
                Ok(None)
            }
            Some(left) => {
                if self.buffer.is_empty() {
                    ensure!(
                        self.fill().await?,
                        "the connection ended {left} bytes before the promised length"
                    );
                }
                let take = left.min(self.buffer.len());
                self.left = Some(left - take);
                Ok(Some(self.buffer.drain(..take).collect()))
            }
            None => {
                if self.buffer.is_empty() && !self.fill().await? {
                    self.ended = true;
                    return Ok(None);
                }
                Ok(Some(std::mem::take(&mut self.buffer)))
            }
        }
    }

    async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let at = loop {
            if let Some(at) = find(&self.buffer, b"\r\n") {
                break at;
            }
            ensure!(self.fill().await?, "the connection ended between chunks");
        };
        let line = String::from_utf8_lossy(&self.buffer[..at]).into_owned();
        let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
            .with_context(|| format!("no chunk size in {line:?}"))?;
        while self.buffer.len() < at + 2 + size + 2 {
            ensure!(self.fill().await?, "the connection ended inside a chunk");
        }
        let piece = self.buffer[at + 2..at + 2 + size].to_vec();
        self.buffer.drain(..at + 2 + size + 2);
        if size == 0 {
            self.ended = true;
            return Ok(None);
        }
        Ok(Some(piece))
    }

    async fn fill(&mut self) -> Result<bool> {
        self.buffer.reserve(16 * 1024);
        let Ok(read) = timeout(PATIENCE, self.stream.read_buf(&mut self.buffer)).await else {
            bail!("nothing arrived for {PATIENCE:?}");
        };
        Ok(read? > 0)
    }
}

/// The visible text of a chat or text chunk.
#[must_use]
pub fn content(event: &Value) -> Option<&str> {
    let choice = event.get("choices")?.get(0)?;
    let text = choice.get("delta").and_then(|delta| delta.get("content")).or_else(|| choice.get("text"))?;
    text.as_str().filter(|text| !text.is_empty())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
