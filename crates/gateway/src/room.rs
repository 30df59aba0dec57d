//! Room for large bodies, of clients and of nodes: each is within its own limit, and what all of them take at a time is
//! within this one.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;
use crate::relay::overloaded;

/// Bodies up to here are not counted: they are as many as there are connections, and counting would be felt.
const SMALL: usize = 64 * 1024;
/// Room is taken in such pieces.
const PIECE: usize = 256 * 1024;

/// The room of this process.
#[derive(Debug)]
pub struct Room {
    /// One permit is a piece.
    free: Arc<Semaphore>,
}

/// Room that one body takes; it comes back with its end.
#[derive(Debug, Default)]
pub struct Share {
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Room for so many bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self { free: Arc::new(Semaphore::new((bytes / PIECE).clamp(1, Semaphore::MAX_PERMITS))) }
    }
}

impl Share {
    /// Takes what is missing for a body of so many bytes.
    ///
    /// # Errors
    /// 429: there is not so much room left. Nobody waits here for room: bodies that grow and wait for each other would wait
    /// for ever.
    pub fn grow(&mut self, room: &Room, bytes: usize) -> Result<(), ApiError> {
        let taken = self.permit.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if bytes <= SMALL || bytes <= taken * PIECE {
            return Ok(());
        }
        let missing = u32::try_from(bytes.div_ceil(PIECE) - taken).unwrap_or(u32::MAX);
        let Ok(more) = room.free.clone().try_acquire_many_owned(missing) else {
            metrics::counter!("cxmpute_limited_total", "limit" => "bodies").increment(1);
            return Err(overloaded());
        };
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }

    /// Whether it takes any room.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.permit.is_none()
    }

    /// The same bytes, which take this room as long as anybody has them.
    #[must_use]
    pub fn hold(self, bytes: Bytes) -> Bytes {
        if self.is_empty() { bytes } else { Bytes::from_owner(Held { bytes, _share: self }) }
    }
}

struct Held {
    bytes: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_the_room_and_give_it_back() {
        let room = Room::new(4 * PIECE);
        let (mut first, mut second) = (Share::default(), Share::default());
        second.grow(&room, SMALL).unwrap();
        assert!(second.is_empty(), "small bodies are not counted");
        for bytes in [1, PIECE, PIECE + 1, 3 * PIECE] {
            first.grow(&room, bytes).unwrap();
        }
        second.grow(&room, PIECE).unwrap();
        let refused = second.grow(&room, PIECE + 1).unwrap_err();
        assert_eq!(refused.status.as_u16(), 429);
        assert!(refused.retry_after.is_some());
        let bytes = first.hold(Bytes::from_static(b"printed"));
        let same = bytes.clone();
        drop(bytes);
        assert!(second.grow(&room, 2 * PIECE).is_err(), "it is held as long as anybody has the bytes");
        assert_eq!(same, "printed");
        drop(same);
        second.grow(&room, 4 * PIECE).unwrap();
        drop(second);
        assert_eq!(room.free.available_permits(), 4);
    }
}
