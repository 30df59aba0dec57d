//! A program while it runs: what it reads is given piece by piece, and what it prints is taken as it comes.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout};
use tokio::time::Instant;

use super::{Group, OnceError};

/// Most of its complaints that are kept.
const COMPLAINT_BYTES: usize = 2 * 1024;
/// Room for one reading.
const PIECE: usize = 16 * 1024;

/// A program that runs. Dropping this ends it and all it started.
#[derive(Debug)]
pub struct Running {
    child: Child,
    _group: Group,
    input: Option<ChildStdin>,
    waiting: VecDeque<Bytes>,
    closed: bool,
    output: Option<ChildStdout>,
    complaints: Option<ChildStderr>,
    said: BytesMut,
    printed: usize,
    output_limit: usize,
    time: Duration,
    until: Instant,
    over: bool,
}

impl Running {
    pub(super) fn new(mut child: Child, output_limit: usize, time: Duration) -> Self {
        Self {
            _group: Group::of(&child),
            input: child.stdin.take(),
            output: child.stdout.take(),
            complaints: child.stderr.take(),
            child,
            waiting: VecDeque::new(),
            closed: false,
            said: BytesMut::new(),
            printed: 0,
            output_limit,
            time,
            until: Instant::now() + time,
            over: false,
        }
    }

    /// Puts bytes behind those that it is still to read; they go to it while [`Self::chunk`] is waited for.
    pub fn give(&mut self, bytes: Bytes) {
        if self.input.is_some() && !bytes.is_empty() {
            self.waiting.push_back(bytes);
        }
    }

    /// Nothing more is given.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Bytes that it has not read yet.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.waiting.iter().map(Bytes::len).sum()
    }

    /// What it prints next; `None` once it has ended well. May be dropped and asked again while it waits.
    ///
    /// # Errors
    /// It ended badly, ran too long or printed too much; then it is over.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, OnceError>> {
        if self.over {
            return None;
        }
        let next = tokio::time::timeout_at(self.until, self.advance()).await;
        let next = next.unwrap_or(Err(OnceError::Late(self.time)));
        self.over = !matches!(next, Ok(Some(_)));
        next.transpose()
    }

    async fn advance(&mut self) -> Result<Option<Bytes>, OnceError> {
        let mut piece = BytesMut::with_capacity(PIECE);
        loop {
            if self.closed && self.waiting.is_empty() {
                self.input = None;
            }
            if self.output.is_none() && self.complaints.is_none() {
                return self.end().await;
            }
            tokio::select! {
                read = read(&mut self.output, &mut piece) => match read {
                    0 => self.output = None,
                    count => {
                        self.printed += count;
                        if self.printed > self.output_limit {
                            return Err(OnceError::TooLong(self.output_limit));
                        }
                        return Ok(Some(piece.freeze()));
                    }
                },
                read = listen(&mut self.complaints, &mut self.said) => if read == 0 {
                    self.complaints = None;
                },
                written = write(&mut self.input, self.waiting.front()) => match (written, self.waiting.front_mut()) {
                    (Some(count), Some(front)) => {
                        front.advance(count);
                        if front.is_empty() {
                            self.waiting.pop_front();
                        }
                    }
                    // A program that has read enough closes its end.
                    _ => {
                        self.input = None;
                        self.waiting.clear();
                    }
                },
            }
        }
    }

    async fn end(&mut self) -> Result<Option<Bytes>, OnceError> {
        let status = match self.child.wait().await {
            Ok(status) if status.success() => return Ok(None),
            Ok(status) => status.to_string(),
            Err(error) => error.to_string(),
        };
        Err(OnceError::Ended { status, complaint: String::from_utf8_lossy(&self.said).trim().to_owned() })
    }
}

/// Bytes that were read; 0 at the end. Waits for ever where the end was there before.
async fn read(from: &mut Option<ChildStdout>, into: &mut BytesMut) -> usize {
    match from {
        Some(from) => from.read_buf(into).await.unwrap_or(0),
        None => std::future::pending().await,
    }
}

/// The same for complaints, of which only the first are kept.
async fn listen(from: &mut Option<ChildStderr>, said: &mut BytesMut) -> usize {
    let Some(from) = from else { return std::future::pending().await };
    let mut piece = [0; 512];
    let count = from.read(&mut piece).await.unwrap_or(0);
    said.extend_from_slice(&piece[..count.min(COMPLAINT_BYTES.saturating_sub(said.len()))]);
    count
}

/// Bytes that were written; none when nobody reads them any more. Waits for ever where there is nothing to write.
async fn write(to: &mut Option<ChildStdin>, front: Option<&Bytes>) -> Option<usize> {
    match (to, front) {
        (Some(to), Some(front)) => to.write(front).await.ok().filter(|count| *count > 0),
        _ => std::future::pending().await,
    }
}
