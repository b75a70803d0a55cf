//! Room in memory for what sessions answer, over all of them.
//!
//! What a session answers is read whole and written again before the client has its first byte, and how long it is is for the
//! session to say. So a long answer takes room first, and waits where there is none; a short one never waits, so nobody's
//! long answers hold up everybody else's work.
//!
//! **Invariant:** the room of an answer is free when the last byte of it is, whoever held that.

use std::sync::Arc;

use axum::body::Body;
use bytes::Bytes;
use futures_util::stream;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::answer::Refused;

/// Bytes that long answers take at most over all sessions.
const ROOM_BYTES: u32 = 256 << 20;
/// How often an answer is in memory at most while it is read and written again, in another shape and with escapes.
const COPIES: u32 = 4;
/// Answers up to this take no room: they are as many as requests may be open, and four of each of those are 256 MiB too.
const SMALL_BYTES: u32 = 16 << 10;
/// Bytes of an answer that are sent at once.
const PIECE_BYTES: usize = 64 << 10;

/// All the room there is.
#[derive(Debug)]
pub(crate) struct Rooms(Arc<Semaphore>);

impl Default for Rooms {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(ROOM_BYTES as usize)))
    }
}

/// The room of one answer; none for a short one.
#[derive(Debug, Default)]
pub(crate) struct Room(Option<OwnedSemaphorePermit>);

impl Rooms {
    /// Room for an answer of so many bytes, as soon as there is.
    pub(super) async fn take(&self, bytes: usize, until: Instant) -> Result<Room, Refused> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if bytes <= SMALL_BYTES {
            return Ok(Room::default());
        }
        let wanted = bytes.saturating_mul(COPIES).min(ROOM_BYTES);
        let taken = tokio::time::timeout_at(until, Arc::clone(&self.0).acquire_many_owned(wanted)).await;
        let permit = taken.map_err(|_| Refused::no_room())?;
        Ok(Room(Some(permit.expect("nobody closes the semaphore"))))
    }
}

#[cfg(test)]
impl Rooms {
    /// Bytes that are taken.
    pub(crate) fn taken(&self) -> usize {
        ROOM_BYTES as usize - self.0.available_permits()
    }
}

impl Room {
    /// Gives back all but what `bytes` take.
    pub(super) fn shrink(&mut self, bytes: usize) {
        if let Some(permit) = &mut self.0 {
            let rest = permit.num_permits().saturating_sub(bytes);
            drop(permit.split(rest));
        }
    }

    /// Is for what another room is for, too.
    pub(super) fn join(&mut self, other: Self) {
        match (&mut self.0, other.0) {
            (Some(permit), Some(other)) => permit.merge(other),
            (none, other) => *none = none.take().or(other),
        }
    }

    /// Gives back what an answer turned out not to need that came to `bytes`.
    pub(super) fn shrink_to_answer(&mut self, bytes: usize) {
        self.shrink(bytes.saturating_mul(COPIES as usize));
    }

    /// A body of `bytes`, which needs this room until all of it was sent.
    pub(crate) fn into_body(mut self, bytes: Bytes) -> Body {
        self.shrink(bytes.len());
        let Some(permit) = self.0 else { return Body::from(bytes) };
        let whole = Bytes::from_owner(Roomy { bytes, _permit: permit });
        // in pieces, since what is sent may be copied once more on its way
        let pieces = stream::unfold(whole, |mut rest| async move {
            let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
            (!piece.is_empty()).then_some((Ok::<_, std::convert::Infallible>(piece), rest))
        });
        Body::from_stream(pieces)
    }
}

struct Roomy {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Roomy {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_long_answer_waits_for_room_and_a_short_one_does_not() {
        let rooms = Rooms::default();
        let now = Instant::now();
        let longest = rooms.take(40 << 20, now).await.unwrap();
        let long = rooms.take(20 << 20, now).await.unwrap();
        let refused = rooms.take(20 << 20, now).await.unwrap_err();
        assert_eq!((refused.error.status, refused.error.code.as_str()), (503, "TooManyLongAnswers"));
        assert!(rooms.take(SMALL_BYTES as usize, now).await.unwrap().0.is_none());
        drop(longest);
        rooms.take(20 << 20, now).await.unwrap();
        // more than there is at all takes all of it
        drop(long);
        assert!(rooms.take(usize::MAX, now).await.is_ok());
    }

    #[tokio::test]
    async fn the_room_of_a_body_is_free_when_its_last_byte_is() {
        let rooms = Rooms::default();
        let room = rooms.take(40 << 20, Instant::now()).await.unwrap();
        let mut body = room.into_body(Bytes::from(vec![b'x'; 3 * PIECE_BYTES + 1]));
        assert_eq!(rooms.taken(), 3 * PIECE_BYTES + 1, "what was for reading it is free already");
        let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert_eq!(first.len(), PIECE_BYTES);
        let rest = body.collect().await.unwrap().to_bytes();
        assert_eq!((rest.len(), rooms.taken()), (2 * PIECE_BYTES + 1, 3 * PIECE_BYTES + 1));
        drop(first);
        assert_eq!(rooms.taken(), 0);
    }
}
