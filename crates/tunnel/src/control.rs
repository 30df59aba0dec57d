//! The control stream: one JSON object per line, both ways, for as long as the tunnel lives.

use std::marker::PhantomData;

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest line that is read. Desired states list every service with its files; this is far above any real one.
const LINE_LIMIT_BYTES: usize = 1024 * 1024;

/// The control stream cannot be used (any more).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ControlError {
    /// The tunnel has ended.
    #[error("the control stream is closed")]
    Closed,
    /// The other end does not want a control stream.
    #[error("the control stream was refused with status {0}")]
    Refused(u16),
    /// What came is not a control message.
    #[error("the control stream is broken: {0}")]
    Protocol(String),
}

/// Sends messages of one direction.
pub struct ControlSender<T> {
    stream: SendStream<Bytes>,
    kind: PhantomData<fn(T)>,
}

impl<T: Serialize> ControlSender<T> {
    pub(crate) fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, kind: PhantomData }
    }

    /// Sends one message; waits while the other end does not read.
    pub async fn send(&mut self, message: &T) -> Result<(), ControlError> {
        let mut line =
            serde_json::to_vec(message).map_err(|error| ControlError::Protocol(error.to_string()))?;
        line.push(b'\n');
        send_all(&mut self.stream, line.into()).await.map_err(|Gone| ControlError::Closed)
    }
}

/// Receives messages of one direction.
pub struct ControlReceiver<T> {
    stream: RecvStream,
    buffer: BytesMut,
    /// Bytes of `buffer` that are known to hold no line end.
    searched: usize,
    /// Messages that were skipped because this version does not know them.
    unknown: u64,
    kind: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> ControlReceiver<T> {
    pub(crate) fn new(stream: RecvStream) -> Self {
        Self { stream, buffer: BytesMut::new(), searched: 0, unknown: 0, kind: PhantomData }
    }

    /// The next message; `None` when the other end or the tunnel is gone. Objects of a type we do not know are
    /// skipped and counted, so that versions may differ (NR24). May be dropped while it waits without losing data.
    pub async fn next(&mut self) -> Option<Result<T, ControlError>> {
        loop {
            if let Some(at) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + at);
                self.buffer.advance(1);
                self.searched = 0;
                match self.read(&line) {
                    Some(result) => return Some(result),
                    None => continue,
                }
            }
            self.searched = self.buffer.len();
            if self.searched > LINE_LIMIT_BYTES {
                return Some(Err(ControlError::Protocol("a line is too long".into())));
            }
            match self.stream.data().await {
                Some(Ok(data)) => {
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.buffer.extend_from_slice(&data);
                }
                Some(Err(_)) | None => return None,
            }
        }
    }

    fn read(&mut self, line: &[u8]) -> Option<Result<T, ControlError>> {
        if line.iter().all(u8::is_ascii_whitespace) {
            return None;
        }
        let error = match serde_json::from_slice(line) {
            Ok(message) => return Some(Ok(message)),
            Err(error) => error,
        };
        let is_object =
            serde_json::from_slice::<serde_json::Value>(line).is_ok_and(|value| value.is_object());
        if !is_object {
            return Some(Err(ControlError::Protocol(error.to_string())));
        }
        self.unknown += 1;
        tracing::debug!(%error, unknown = self.unknown, "unknown control message skipped");
        None
    }
}

/// The other end of a stream is gone, or wants no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other end of the stream is gone")]
pub struct Gone;

/// Sends as fast as the other end reads; never queues more than one send buffer.
pub(crate) async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), Gone> {
    // An empty frame would be legal, but `h2` ends a connection that sees a hundred of them.
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let mut room = stream.capacity();
        if room == 0 {
            room = match std::future::poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(room)) => room,
                Some(Err(_)) | None => return Err(Gone),
            };
        }
        let part = data.split_to(room.min(data.len()));
        if !part.is_empty() {
            stream.send_data(part, false).map_err(|_| Gone)?;
        }
    }
    Ok(())
}
