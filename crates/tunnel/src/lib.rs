//! The tunnel: a node dials out, and the gateway sends work back over that connection.
//!
//! On the wire: TLS, one signed HTTP/1.1 request that upgrades the connection, then HTTP/2 with the roles reversed
//! (the gateway is the HTTP/2 client). Control, heartbeats and work share the connection, so that a live heartbeat
//! proves a live work path (DESIGN D2).
//!
//! | gateway end | node end |
//! |---|---|
//! | [`accept`]: answers the upgrade | [`dial()`]: connects, signs, upgrades |
//! | [`Link`]: opens [`WorkStream`]s | [`NodeEnd`]: yields [`Incoming`] work |
//!
//! Nothing outside this crate knows that the transport is HTTP/2.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::disallowed_methods))]

pub mod accept;
pub mod control;
pub mod dial;
pub mod drain;
pub mod handshake;
pub mod http_client;
pub mod link;
mod node_end;
pub mod ping;
pub mod sign;
mod transport;
pub mod work;

pub use control::{ControlError, ControlReceiver, ControlSender};
pub use dial::{DialConfig, DialError, dial};
pub use drain::CloseReason;
pub use handshake::{WorkHead, WorkPath};
pub use http_client::{Answer, ClientError, HttpClient, Signer};
pub use link::{Link, LinkConfig, LinkError, OpenError};
pub use node_end::{BodyError, ControlPair, Incoming, NodeEnd, NodeHandle, WorkRequest, WorkResponder};
pub use sign::{SignatureError, Verified, provision_id, sign_request, verify_request};
pub use transport::{Roots, TransportError};
pub use work::{Accepted, WorkError, WorkStream};
