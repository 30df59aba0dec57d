//! Scripted misbehaviour: bytes as they are, over the real tunnel, whatever was asked.

use std::time::Duration;

use bytes::Bytes;
use cxmpute_tunnel::WorkResponder;
use http::HeaderMap;
use tokio::sync::Notify;

/// What a stand-in sends after it accepted.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// Headers beside those of the protocol.
    pub headers: HeaderMap,
    /// What follows, in order; the stream ends properly after the last step.
    pub steps: Vec<Step>,
}

/// One step of a script.
#[derive(Clone, Debug)]
pub enum Step {
    /// Bytes, as they are.
    Raw(Bytes),
    /// The same bytes so many times.
    Repeat(Bytes, u64),
    /// The bytes one by one, with a pause before each.
    Drip(Bytes, Duration),
    /// Nothing, until the test lets it go on ([`super::StandIn::go_on`]).
    Await,
    /// Nothing more, until the gateway cancels.
    Hold,
    /// Breaks the stream off.
    Break,
}

impl Script {
    /// A script without headers.
    #[must_use]
    pub fn of(steps: Vec<Step>) -> Self {
        Self { headers: HeaderMap::new(), steps }
    }

    /// Bytes, then a proper end.
    #[must_use]
    pub fn raw(bytes: impl Into<Bytes>) -> Self {
        Self::of(vec![Step::Raw(bytes.into())])
    }
}

/// Plays the steps; `sent` hears of the bytes handed over so far. An error means that the gateway cancelled.
pub(super) async fn perform(
    responder: &mut WorkResponder,
    steps: &[Step],
    go_on: &Notify,
    sent: &impl Fn(u64),
) -> Result<(), ()> {
    let mut bytes = 0;
    for step in steps {
        match step {
            Step::Raw(data) => {
                responder.send(data.clone()).await.map_err(|_| ())?;
                bytes += data.len() as u64;
                sent(bytes);
            }
            Step::Repeat(data, times) => {
                for _ in 0..*times {
                    responder.send(data.clone()).await.map_err(|_| ())?;
                    bytes += data.len() as u64;
                    sent(bytes);
                }
            }
            Step::Drip(data, pause) => {
                for at in 0..data.len() {
                    let cancelled = tokio::time::timeout(*pause, responder.cancelled()).await;
                    if cancelled.is_ok() {
                        return Err(());
                    }
                    responder.send(data.slice(at..=at)).await.map_err(|_| ())?;
                    bytes += 1;
                    sent(bytes);
                }
            }
            Step::Await => tokio::select! {
                () = responder.cancelled() => return Err(()),
                () = go_on.notified() => {}
            },
            Step::Hold => {
                responder.cancelled().await;
                return Err(());
            }
            Step::Break => return Err(()),
        }
    }
    Ok(())
}
