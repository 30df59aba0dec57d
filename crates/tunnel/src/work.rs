//! One piece of work as the gateway sees it: a request that was sent, and the answer as it comes.

use bytes::{Bytes, BytesMut};
use cxmpute_wire::{Code, Epoch, RequestId};
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, StatusCode};

use crate::handshake::{CX_CODE, CX_EPOCH, CX_REQUEST_ID, parse};
use crate::link::Slot;

/// Largest refusal that is read.
const REFUSAL_LIMIT_BYTES: usize = 8 * 1024;

/// What went wrong with a piece of work, by who failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WorkError {
    /// The node said no before accepting: nothing was computed.
    #[error("the node refused with status {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The machine code, if the node gave one that we know.
        code: Option<Code>,
        /// Its sentence; untrusted text.
        message: String,
    },
    /// The tunnel ended.
    #[error("the connection to the node was lost")]
    Lost,
    /// The node ended the stream before its end.
    #[error("the node broke the answer off ({0})")]
    Reset(String),
    /// The node does not keep to the protocol.
    #[error("the node broke the protocol: {0}")]
    Protocol(String),
}

/// The node's acceptance; the caller checks that it speaks of the caller's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Echo of the request's id.
    pub request_id: RequestId,
    /// Echo of the tunnel's epoch.
    pub epoch: Epoch,
    /// All headers of the node, for the known-bad variant that passes them on.
    #[cfg(feature = "sabotage")]
    pub headers: HeaderMap,
}

/// A piece of work at a node. Dropping it cancels the work; the node learns it at once.
pub struct WorkStream {
    state: State,
    send: SendStream<Bytes>,
    request_id: RequestId,
    slot: Option<Slot>,
}

enum State {
    Waiting(ResponseFuture),
    Reading(RecvStream),
    Ended,
}

impl std::fmt::Debug for WorkStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WorkStream({})", self.request_id)
    }
}

impl WorkStream {
    pub(crate) fn new(
        response: ResponseFuture,
        send: SendStream<Bytes>,
        slot: Slot,
        request_id: RequestId,
    ) -> Self {
        Self { state: State::Waiting(response), send, request_id, slot: Some(slot) }
    }

    /// Waits for the node's yes or no. Ask once, before the first [`WorkStream::chunk`]; it may be dropped and
    /// asked again while it waits.
    pub async fn accepted(&mut self) -> Result<Accepted, WorkError> {
        let State::Waiting(response) = &mut self.state else {
            return Err(WorkError::Protocol("the answer was already taken".into()));
        };
        let response = match response.await {
            Ok(response) => response,
            Err(error) => {
                self.state = State::Ended;
                return Err(before_accept(&error));
            }
        };
        let (parts, body) = response.into_parts();
        if parts.status != StatusCode::OK {
            self.state = State::Ended;
            return Err(refusal(parts.status, &parts.headers, body).await);
        }
        let echo = echo(&parts.headers);
        self.state = if echo.is_ok() { State::Reading(body) } else { State::Ended };
        echo
    }

    /// The next bytes of the answer; `None` at its proper end. The node may send more only as chunks are taken.
    pub async fn chunk(&mut self) -> Option<Result<Bytes, WorkError>> {
        let State::Reading(body) = &mut self.state else {
            return None;
        };
        let next = loop {
            match body.data().await {
                // The frame that ends a stream may be empty.
                Some(Ok(data)) if data.is_empty() => {}
                next => break next,
            }
        };
        match next {
            Some(Ok(data)) => {
                // The only error is to give back more than came.
                let _ = body.flow_control().release_capacity(data.len());
                Some(Ok(data))
            }
            Some(Err(error)) => {
                self.state = State::Ended;
                Some(Err(after_accept(&error)))
            }
            None => {
                self.state = State::Ended;
                None
            }
        }
    }

    /// The answer is complete: only the frame that ends the stream is missing, and it comes right behind. The stream does
    /// not count any more; dropped before that frame has come, it is reset.
    pub fn complete(&mut self) {
        self.slot = None;
    }

    /// Tells the node to stop. Same as dropping, said aloud.
    pub fn cancel(self) {}

    /// The request this works for.
    pub fn request_id(&self) -> &RequestId {
        &self.request_id
    }
}

impl Drop for WorkStream {
    fn drop(&mut self) {
        // On a stream that has ended this does nothing.
        self.send.send_reset(Reason::CANCEL);
    }
}

fn echo(headers: &HeaderMap) -> Result<Accepted, WorkError> {
    let wrong = |error: crate::handshake::HeadError| WorkError::Protocol(error.to_string());
    Ok(Accepted {
        request_id: parse(headers, &CX_REQUEST_ID, "cx-request-id").map_err(wrong)?,
        epoch: Epoch(parse(headers, &CX_EPOCH, "cx-epoch").map_err(wrong)?),
        #[cfg(feature = "sabotage")]
        headers: headers.clone(),
    })
}

async fn refusal(status: StatusCode, headers: &HeaderMap, mut body: RecvStream) -> WorkError {
    let mut text = BytesMut::new();
    while let Some(Ok(data)) = body.data().await {
        let _ = body.flow_control().release_capacity(data.len());
        text.extend_from_slice(&data);
        if text.len() > REFUSAL_LIMIT_BYTES {
            break;
        }
    }
    let json: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    let message = json["error"]["message"].as_str().unwrap_or("no reason given");
    let code = headers.get(CX_CODE).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok());
    WorkError::Refused { status: status.as_u16(), code, message: message.chars().take(500).collect() }
}

fn before_accept(error: &h2::Error) -> WorkError {
    if error.is_reset() && error.is_remote() && error.reason() == Some(Reason::REFUSED_STREAM) {
        return WorkError::Refused {
            status: Code::CapacityFull.status(),
            code: Some(Code::CapacityFull),
            message: "the node takes no more streams".into(),
        };
    }
    after_accept(error)
}

fn after_accept(error: &h2::Error) -> WorkError {
    let reason = || error.reason().map_or_else(|| error.to_string(), |reason| reason.to_string());
    if !error.is_reset() {
        WorkError::Lost
    } else if error.is_remote() {
        WorkError::Reset(reason())
    } else {
        WorkError::Protocol(reason())
    }
}
