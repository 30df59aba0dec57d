//! What two processes must agree on: identifiers, units, the OpenAI shapes and the messages between gateway and
//! node. Only serde: no runtime, no database, no clock.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod anthropic;
pub mod control;
pub mod error;
pub mod form;
pub mod id;
pub mod openai;
pub mod scrape;
pub mod sight;
pub mod unit;
pub mod wave;

pub use error::Code;
pub use id::{Epoch, Generation, KeyId, ProvisionId, RequestId, ServiceId, ServiceKind, UserId};
pub use unit::{Bytes, MicroCredits, Millis, Timestamp, Tokens};
