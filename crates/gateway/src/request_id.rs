//! Ids of requests and of the gateway's own questions: UUIDv7, for ordering only, never a secret (MR35).

use cxmpute_runtime::{Clock, random};
use cxmpute_wire::RequestId;

/// A fresh id.
#[must_use]
pub fn fresh(clock: &Clock) -> RequestId {
    let millis = u64::try_from(clock.now().0).unwrap_or(0);
    let id = uuid::Builder::from_unix_timestamp_millis(millis, &random::quick::<10>()).into_uuid();
    let mut text = [0; 32];
    RequestId::from_tail(id.simple().encode_lower(&mut text))
}
