//! A client's body on its way to a replica: streamed, counted, and kept for another try as far as there is room for it.
//!
//! Every try has its own handle. A later handle ends those before it, so that bytes of the client reach one try only.
//!
//! **Invariant:** a body of which nothing was read can be sent again; one that was read, only while all that was read is kept.
//! **Invariant:** what is kept is bounded for each request and, by [`Budget`], over all requests.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::Notify;

use crate::{observe::Seen, unread::ClientBody};

/// A client's body; its clones are the same try's.
#[derive(Clone)]
pub(crate) struct RequestBody {
    /// `None`: there is no body.
    shared: Option<Arc<Shared>>,
    /// The try that this handle belongs to.
    generation: u32,
    /// Kept parts that this handle gave already.
    at: usize,
}

struct Shared {
    state: Mutex<State>,
    is_started: AtomicBool,
    is_over: AtomicBool,
    has_failed: AtomicBool,
    is_too_large: AtomicBool,
    over: Notify,
}

struct State {
    incoming: ClientBody,
    /// The newest try.
    generation: u32,
    kept: Option<Kept>,
    /// Bytes that may still come.
    room: u64,
    /// The client's end was read.
    is_finished: bool,
    /// Its bytes are noted there; it may end before they do.
    seen: Weak<Seen>,
}

/// Room for kept bodies, in bytes, over all requests.
#[derive(Debug)]
pub(crate) struct Budget(AtomicUsize);

impl Budget {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(AtomicUsize::new(bytes))
    }

    fn take(&self, bytes: usize) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes)).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.0.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// All that was read so far.
struct Kept {
    parts: Vec<Part>,
    bytes: usize,
    bytes_max: usize,
    budget: Arc<Budget>,
}

enum Part {
    Data(Bytes),
    Trailers(HeaderMap),
}

/// What a kept part costs besides its bytes: a body of one-byte chunks must not take hundreds of times its size.
const PART_BYTES: usize = 64;

impl Kept {
    /// Keeps a frame too; `false` when there is no room for it.
    fn push(&mut self, frame: &Frame<Bytes>) -> bool {
        let (part, bytes) = if let Some(data) = frame.data_ref() {
            // a copy: the bytes as they came may be a small part of a large buffer
            (Part::Data(Bytes::copy_from_slice(data)), data.len() + PART_BYTES)
        } else if let Some(trailers) = frame.trailers_ref() {
            let sizes = trailers.iter().map(|(name, value)| name.as_str().len() + value.len() + PART_BYTES);
            (Part::Trailers(trailers.clone()), sizes.sum())
        } else {
            return false;
        };
        if self.bytes + bytes > self.bytes_max || !self.budget.take(bytes) {
            return false;
        }
        self.bytes += bytes;
        self.parts.push(part);
        true
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// How much of a body is let through, and how much is kept.
#[derive(Clone, Debug)]
pub(crate) struct BodyLimits {
    /// More bytes are an error.
    pub(crate) bytes_max: u64,
    /// Bytes kept for another try, and the room that all share; `None`: nothing is kept.
    pub(crate) keep: Option<(usize, Arc<Budget>)>,
}

/// Why a body ends before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestBodyError {
    /// The client broke it off.
    #[error("the client broke its request off")]
    Client(#[source] hyper::Error),
    /// It has more bytes than are let through.
    #[error("the request's body is too large")]
    TooLarge,
    /// Another try has it now.
    #[error("the request is being sent anew")]
    Superseded,
}

impl RequestBody {
    pub(crate) fn new(incoming: ClientBody, limits: &BodyLimits) -> Self {
        if incoming.is_end_stream() {
            return Self { shared: None, generation: 0, at: 0 };
        }
        // one that is announced to be larger than what is kept would only be copied in vain
        let least = usize::try_from(incoming.size_hint().lower()).unwrap_or(usize::MAX);
        let keep = limits.keep.as_ref().filter(|(bytes_max, _)| least < *bytes_max);
        let kept = keep.map(|(bytes_max, budget)| Kept {
            parts: Vec::new(),
            bytes: 0,
            bytes_max: *bytes_max,
            budget: Arc::clone(budget),
        });
        let state =
            State { incoming, generation: 0, kept, room: limits.bytes_max, is_finished: false, seen: Weak::new() };
        let shared = Shared {
            state: Mutex::new(state),
            is_started: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
            is_too_large: AtomicBool::new(false),
            over: Notify::new(),
        };
        Self { shared: Some(Arc::new(shared)), generation: 0, at: 0 }
    }

    /// From now on its bytes are noted.
    pub(crate) fn observed_by(&self, seen: &Arc<Seen>) {
        if let Some(shared) = &self.shared {
            shared.lock().seen = Arc::downgrade(seen);
        }
    }

    /// There is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.shared.is_none()
    }

    fn has(&self, flag: impl Fn(&Shared) -> &AtomicBool) -> bool {
        self.shared.as_deref().is_some_and(|shared| flag(shared).load(Ordering::Acquire))
    }

    /// A part of it was read already.
    pub(crate) fn is_started(&self) -> bool {
        self.has(|shared| &shared.is_started)
    }

    /// The newest try read it to its end.
    pub(crate) fn is_over(&self) -> bool {
        self.is_empty() || self.has(|shared| &shared.is_over)
    }

    /// The client broke it off.
    pub(crate) fn has_failed(&self) -> bool {
        self.has(|shared| &shared.has_failed)
    }

    /// It has more bytes than are let through.
    pub(crate) fn is_too_large(&self) -> bool {
        self.has(|shared| &shared.is_too_large)
    }

    /// Waits until it was read to its end.
    pub(crate) async fn over(&self) {
        if let Some(shared) = &self.shared {
            while !shared.is_over.load(Ordering::Acquire) {
                shared.over.notified().await;
            }
        }
    }

    /// The handle of another try, from the body's begin; those before it end. `None` when a part is not there any more.
    pub(crate) fn renew(&self) -> Option<Self> {
        let Some(shared) = &self.shared else { return Some(self.clone()) };
        if self.has_failed() || self.is_too_large() {
            return None;
        }
        let mut state = shared.lock();
        if self.is_started() && state.kept.is_none() {
            return None;
        }
        state.generation += 1;
        shared.is_over.store(false, Ordering::Release);
        Some(Self { shared: Some(Arc::clone(shared)), generation: state.generation, at: 0 })
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.over.notify_one();
    }
}

impl State {
    /// Kept parts from `at` on.
    fn left(&self, at: usize) -> &[Part] {
        self.kept.as_ref().and_then(|kept| kept.parts.get(at..)).unwrap_or(&[])
    }

    /// Everything was given from `at` on.
    fn is_at_end(&self, at: usize) -> bool {
        self.left(at).is_empty() && (self.is_finished || self.incoming.is_end_stream())
    }

    /// Notes what came; says whether it may pass.
    fn note(&mut self, frame: &Frame<Bytes>) -> bool {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        if let Some(seen) = self.seen.upgrade() {
            seen.received(bytes);
        }
        let Some(room) = self.room.checked_sub(bytes) else { return false };
        self.room = room;
        if self.kept.as_mut().is_some_and(|kept| !kept.push(frame)) {
            self.kept = None;
        }
        true
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let this = self.get_mut();
        let Some(shared) = &this.shared else { return Poll::Ready(None) };
        let mut state = shared.lock();
        if state.generation != this.generation {
            return Poll::Ready(Some(Err(RequestBodyError::Superseded)));
        }
        if let Some(part) = state.left(this.at).first() {
            let frame = match part {
                Part::Data(data) => Frame::data(data.clone()),
                Part::Trailers(trailers) => Frame::trailers(trailers.clone()),
            };
            this.at += 1;
            if state.is_at_end(this.at) {
                shared.end();
            }
            return Poll::Ready(Some(Ok(frame)));
        }
        if state.is_finished {
            shared.end();
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut state.incoming).poll_frame(cx)) {
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                shared.has_failed.store(true, Ordering::Release);
                return Poll::Ready(Some(Err(RequestBodyError::Client(error))));
            }
            None => {
                state.is_finished = true;
                shared.is_started.store(true, Ordering::Release);
                shared.end();
                return Poll::Ready(None);
            }
        };
        shared.is_started.store(true, Ordering::Release);
        if !state.note(&frame) {
            shared.is_too_large.store(true, Ordering::Release);
            return Poll::Ready(Some(Err(RequestBodyError::TooLarge)));
        }
        this.at = state.kept.as_ref().map_or(0, |kept| kept.parts.len());
        if state.is_at_end(this.at) {
            shared.end();
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        let Some(shared) = &self.shared else { return true };
        shared.lock().is_at_end(self.at)
    }

    fn size_hint(&self) -> SizeHint {
        let Some(shared) = &self.shared else { return SizeHint::with_exact(0) };
        let state = shared.lock();
        let size = |part: &Part| match part {
            Part::Data(data) => data.len() as u64,
            Part::Trailers(_) => 0,
        };
        let kept: u64 = state.left(self.at).iter().map(size).sum();
        let rest = state.incoming.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + kept);
        }
        hint.set_lower(rest.lower() + kept);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_has_a_limit_of_its_own_and_one_with_others() {
        let budget = Arc::new(Budget::new(300));
        let kept = |bytes_max| Kept { parts: Vec::new(), bytes: 0, bytes_max, budget: Arc::clone(&budget) };
        let frame = |bytes: usize| Frame::data(Bytes::from(vec![0; bytes]));
        let mut first = kept(200);
        assert!(first.push(&frame(36)) && first.push(&frame(36)), "200 with what the parts cost");
        assert!(!first.push(&frame(1)), "its own limit");
        let mut second = kept(200);
        assert!(second.push(&frame(36)) && !second.push(&frame(1)), "the room that all share");
        drop(first);
        assert!(second.push(&frame(36)), "given back");
        drop(second);
        assert_eq!(budget.0.load(Ordering::Relaxed), 300);
    }
}
