//! Both ends of an answer that is handed on while a node makes it: what comes from the node, within its bound, and what goes to
//! the client. Until the first part has left, such an errand is like any other.

use bytes::Bytes;
use cxmpute_tunnel::WorkStream;
use cxmpute_wire::openai::ErrorEnvelope;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::delivery::{Chunk, Outlet, Undelivered};
use super::super::forward;
use super::super::retry::Fault;
use super::super::run::{Head, Meta};
use super::Misread;
use crate::error::ApiError;
use crate::room::{Room, Share};

/// How an answer is handed on.
#[derive(Debug, Clone, Copy)]
pub struct Live {
    /// Its type.
    pub content_type: &'static str,
    /// Of a stream of events, where comments may be: the event that says that it broke off. Anything else is cut.
    pub failure: Option<fn(ErrorEnvelope) -> Bytes>,
}

/// What a node sends.
#[derive(Debug)]
pub struct Incoming<'a> {
    stream: &'a mut WorkStream,
    left: u64,
    room: &'a Room,
    share: Share,
}

impl<'a> Incoming<'a> {
    pub(super) fn new(stream: &'a mut WorkStream, most: u64, room: &'a Room) -> Self {
        Self { stream, left: most, room, share: Share::default() }
    }

    /// The room that what was read as a whole takes.
    pub(super) fn share(self) -> Share {
        self.share
    }

    /// The next bytes; `None` at the proper end. May be dropped and asked again while it waits.
    ///
    /// # Errors
    /// The node broke off, or sends too much.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        let Some(chunk) = self.stream.chunk().await else { return Ok(None) };
        let chunk = chunk.map_err(|error| forward::after_accept(&error))?;
        self.left = self.left.checked_sub(chunk.len() as u64).ok_or(Fault::Protocol)?;
        Ok(Some(chunk))
    }

    /// All that comes.
    ///
    /// # Errors
    /// As [`Self::chunk`]; there is no room for so much.
    pub async fn whole(&mut self) -> Result<Vec<u8>, Misread> {
        let mut whole = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            self.share.grow(self.room, whole.len() + chunk.len()).map_err(Misread::Ours)?;
            whole.extend_from_slice(&chunk);
        }
        Ok(whole)
    }
}

/// What goes to the client: one head, and behind the head of a live answer its body.
#[derive(Debug)]
pub struct Outflow {
    live: Option<Live>,
    head: Option<oneshot::Sender<Head>>,
    outlet: Outlet,
    pub(super) meta: Meta,
    begun: Option<Instant>,
}

impl Outflow {
    pub(super) fn new(live: Option<Live>, head: oneshot::Sender<Head>, outlet: Outlet) -> Self {
        Self { live, head: Some(head), outlet, meta: Meta::default(), begun: None }
    }

    /// When the first part left, if one has.
    pub(super) const fn begun(&self) -> Option<Instant> {
        self.begun
    }

    /// Hands a part over, waiting for room; the first one makes the answer a 200.
    ///
    /// # Errors
    /// The client left, or stopped reading.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), Undelivered> {
        if let Some(head) = self.head.take() {
            self.begun = Some(Instant::now());
            let _ = head.send(Head::Stream(self.meta.clone()));
        }
        self.outlet.send(Chunk { bytes, mark: None }).await
    }

    /// Waits until all that was sent has been handed out.
    pub(super) async fn drained(&self) -> Result<(), Undelivered> {
        self.outlet.drained().await
    }

    /// Says the whole answer, or that there is none; behind the first part of a live one an error is an event, or a cut.
    pub(super) async fn conclude(mut self, head: Head, request_id: &cxmpute_wire::RequestId) {
        match (self.head.take(), head) {
            (Some(channel), head) => {
                let _ = channel.send(head);
            }
            (None, Head::Failed(error)) => self.fail(&error, request_id).await,
            (None, Head::Whole(printed, _)) if !printed.bytes.is_empty() => {
                let _ = self.send(printed.bytes).await;
            }
            (None, Head::Whole(..) | Head::Stream(_)) => {}
        }
    }

    async fn fail(&mut self, error: &ApiError, request_id: &cxmpute_wire::RequestId) {
        match self.live.and_then(|live| live.failure) {
            Some(event) => {
                let _ = self.send(event(error.envelope(Some(request_id)))).await;
            }
            None => self.outlet.cut(),
        }
    }
}
