//! Room in memory for what sessions answer, over all of them.
//!
//! What a session answers is read whole and written again before the client has its first byte, and how long it is is for the
//! session to say. So a long answer takes room first, and waits where there is none; a short one never waits, so nobody's
//! long answers hold up everybody else's work. A single session never has all the room, however its code answers and its
//! clients read.
//!
//! **Invariant:** the room of an answer is free when the last byte of it is, whoever held that.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use axum::body::Body;
use bytes::Bytes;
use cove_model::ReplicaName;
use futures_util::stream;
use tokio::{
    sync::{AcquireError, OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::answer::Refused;

/// Bytes that long answers take at most over all sessions.
const ROOM_BYTES: u32 = 256 << 20;
/// Bytes of that for the answers of one session: the longest one, and what a batch of tools may have before it.
const SESSION_BYTES: u32 = 176 << 20;
/// How often an answer is in memory at most while it is read and written again, in another shape and with escapes.
const COPIES: u32 = 4;
/// Answers up to this take no room: they are as many as requests may be open, and four of each of those are 256 MiB too.
const SMALL_BYTES: u32 = 16 << 10;
/// Bytes of an answer that are sent at once.
const PIECE_BYTES: usize = 64 << 10;

/// All the room there is.
#[derive(Debug)]
pub(crate) struct Rooms {
    all: Arc<Semaphore>,
    /// Of sessions whose answers take room.
    sessions: Mutex<HashMap<ReplicaName, Weak<Semaphore>>>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(ROOM_BYTES as usize)), sessions: Mutex::default() }
    }
}

/// The room of an answer, or of several in one; none for a short one.
#[derive(Debug, Default)]
pub(crate) struct Room(Vec<Taken>);

/// The same of the session's room and of all.
#[derive(Debug)]
struct Taken {
    of_session: OwnedSemaphorePermit,
    of_all: OwnedSemaphorePermit,
}

impl Rooms {
    /// Room for an answer of so many bytes, as soon as there is.
    pub(super) async fn take(&self, session: &ReplicaName, bytes: usize, until: Instant) -> Result<Room, Refused> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        if bytes <= SMALL_BYTES {
            return Ok(Room::default());
        }
        let wanted = bytes.saturating_mul(COPIES).min(SESSION_BYTES);
        let own = self.of_session(session);
        let taken = async {
            let of_session = own.acquire_many_owned(wanted).await?;
            Ok(Taken { of_session, of_all: Arc::clone(&self.all).acquire_many_owned(wanted).await? })
        };
        let taken: Result<Taken, AcquireError> =
            tokio::time::timeout_at(until, taken).await.map_err(|_| Refused::no_room())?;
        Ok(Room(vec![taken.expect("nobody closes the semaphores")]))
    }

    fn of_session(&self, session: &ReplicaName) -> Arc<Semaphore> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = sessions.get(session).and_then(Weak::upgrade) {
            return known;
        }
        sessions.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(Semaphore::new(SESSION_BYTES as usize));
        sessions.insert(session.clone(), Arc::downgrade(&new));
        new
    }
}

#[cfg(test)]
impl Rooms {
    /// Bytes that are taken.
    pub(crate) fn taken(&self) -> usize {
        ROOM_BYTES as usize - self.all.available_permits()
    }
}

impl Room {
    /// Gives back all but what `bytes` take, where this is the room of one answer.
    pub(super) fn shrink(&mut self, bytes: usize) {
        if let [Taken { of_session, of_all }] = &mut self.0[..] {
            for permit in [of_session, of_all] {
                let rest = permit.num_permits().saturating_sub(bytes);
                drop(permit.split(rest));
            }
        }
    }

    /// Is for what another room is for, too.
    pub(super) fn join(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Gives back what an answer turned out not to need that came to `bytes`.
    pub(super) fn shrink_to_answer(&mut self, bytes: usize) {
        self.shrink(bytes.saturating_mul(COPIES as usize));
    }

    /// A body of `bytes`, which needs this room until all of it was sent.
    pub(crate) fn into_body(mut self, bytes: Bytes) -> Body {
        self.shrink(bytes.len());
        if self.0.is_empty() {
            return Body::from(bytes);
        }
        let whole = Bytes::from_owner(Roomy { bytes, _room: self });
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
    _room: Room,
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

    fn session(name: &str) -> ReplicaName {
        ReplicaName::new(format!("pool--abc1234-{name}")).unwrap()
    }

    #[tokio::test]
    async fn a_long_answer_waits_for_room_and_a_short_one_does_not() {
        let (rooms, now) = (Rooms::default(), Instant::now());
        let longest = rooms.take(&session("a"), 40 << 20, now).await.unwrap();
        let long = rooms.take(&session("b"), 20 << 20, now).await.unwrap();
        let refused = rooms.take(&session("c"), 20 << 20, now).await.unwrap_err();
        assert_eq!((refused.error.status, refused.error.code.as_str()), (503, "TooManyLongAnswers"));
        assert!(rooms.take(&session("c"), SMALL_BYTES as usize, now).await.unwrap().0.is_empty());
        drop(longest);
        assert!(rooms.take(&session("c"), 20 << 20, now).await.is_ok());
        drop(long);
        assert_eq!(rooms.taken(), 0);
    }

    #[tokio::test]
    async fn a_session_never_takes_all_the_room() {
        let (rooms, now) = (Rooms::default(), Instant::now());
        let mut all = Room::default();
        while let Ok(more) = rooms.take(&session("a"), 1 << 20, now).await {
            all.join(more);
        }
        assert_eq!(rooms.taken(), SESSION_BYTES as usize);
        assert!(rooms.take(&session("b"), 20 << 20, now).await.is_ok());
        drop(all);
        // more than a session may have takes all of that
        assert!(rooms.take(&session("a"), usize::MAX, now).await.is_ok());
        assert_eq!((rooms.taken(), rooms.sessions.lock().unwrap().len()), (0, 1), "sessions are forgotten");
    }

    #[tokio::test]
    async fn the_room_of_a_body_is_free_when_its_last_byte_is() {
        let rooms = Rooms::default();
        let room = rooms.take(&session("a"), 40 << 20, Instant::now()).await.unwrap();
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
