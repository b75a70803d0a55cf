//! Bodies on their way through: streamed both ways, never collected, each end noticed.
//!
//! **Invariant:** a request body whose first byte was not read yet can be sent again on another connection.
//! **Invariant:** a response holds its lease until its last byte came from the replica or the client left.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use cove_base::Tasks;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::{
    gate::{Lease, Ticket},
    pool::Connection,
};

/// A client's body; shared so that a try that failed before its first byte gives it to the next.
#[derive(Clone)]
pub(crate) struct RequestBody(Option<Arc<SharedBody>>);

struct SharedBody {
    incoming: Mutex<Incoming>,
    is_started: AtomicBool,
    is_over: AtomicBool,
    has_failed: AtomicBool,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming) -> Self {
        if incoming.is_end_stream() {
            return Self(None);
        }
        Self(Some(Arc::new(SharedBody {
            incoming: Mutex::new(incoming),
            is_started: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        })))
    }

    /// There is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// A part of it was read already.
    pub(crate) fn is_started(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.is_started.load(Ordering::Acquire))
    }

    /// It was read to its end.
    pub(crate) fn is_over(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.is_over.load(Ordering::Acquire))
    }

    /// The client broke it off.
    pub(crate) fn has_failed(&self) -> bool {
        self.0.as_ref().is_some_and(|shared| shared.has_failed.load(Ordering::Acquire))
    }
}

impl SharedBody {
    fn lock(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(shared) = &self.0 else { return Poll::Ready(None) };
        let mut incoming = shared.lock();
        let frame = ready!(Pin::new(&mut *incoming).poll_frame(cx));
        match &frame {
            Some(Err(_)) => shared.has_failed.store(true, Ordering::Release),
            Some(Ok(_)) | None => shared.is_started.store(true, Ordering::Release),
        }
        if frame.is_none() || incoming.is_end_stream() {
            shared.is_over.store(true, Ordering::Release);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(|shared| shared.lock().is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), |shared| shared.lock().size_hint())
    }
}

/// What a response keeps until it is over.
pub(crate) struct Held {
    pub(crate) ticket: Ticket,
    pub(crate) lease: Lease,
    /// What was sent: if the replica answered before its end, the connection still carries it.
    pub(crate) request: RequestBody,
    /// Goes back to the pool at the response's end.
    pub(crate) connection: Option<Connection>,
    /// How long the replica keeps an idle connection, if it said so.
    pub(crate) keep_alive: Option<Duration>,
    pub(crate) tasks: Tasks,
}

impl Held {
    fn finish(mut self) {
        if let Some(connection) = self.connection.take()
            && self.request.is_over()
        {
            self.lease.replica().pool.put(connection, self.keep_alive, &self.tasks);
        }
        drop(self.ticket);
    }
}

/// Why a response ends before its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResponseError {
    /// The replica broke it off.
    #[error("the app broke its answer off")]
    Upstream(#[source] hyper::Error),
    /// The replica was silent for too long.
    #[error("the app sent nothing for {0:?}")]
    Idle(Duration),
}

/// A response body: ours, or a replica's with all that it holds.
pub(crate) struct ResponseBody(Kind);

enum Kind {
    Own(Full<Bytes>),
    Upstream(Box<Upstream>),
}

struct Upstream {
    incoming: Incoming,
    held: Option<Held>,
    idle_timeout: Duration,
    /// Since when we wait for the replica; a wait for the client does not count.
    waiting_since: Option<Instant>,
    /// Made at the first wait; moved on only when it fires.
    timer: Option<Pin<Box<Sleep>>>,
}

impl From<Full<Bytes>> for ResponseBody {
    fn from(body: Full<Bytes>) -> Self {
        Self(Kind::Own(body))
    }
}

impl ResponseBody {
    /// A replica's body.
    pub(crate) fn upstream(incoming: Incoming, held: Held, idle_timeout: Duration) -> Self {
        if incoming.is_end_stream() {
            held.finish();
            return Self(Kind::Own(Full::default()));
        }
        Self(Kind::Upstream(Box::new(Upstream {
            incoming,
            held: Some(held),
            idle_timeout,
            waiting_since: None,
            timer: None,
        })))
    }

    /// Nothing.
    pub(crate) fn empty() -> Self {
        Self(Kind::Own(Full::default()))
    }
}

impl Upstream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        match Pin::new(&mut self.incoming).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.waiting_since = None;
                if self.incoming.is_end_stream()
                    && let Some(held) = self.held.take()
                {
                    held.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                if let Some(held) = self.held.take() {
                    held.finish();
                }
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                self.held = None;
                Poll::Ready(Some(Err(ResponseError::Upstream(error))))
            }
            Poll::Pending => self.poll_idle(cx),
        }
    }

    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        let deadline = *self.waiting_since.get_or_insert_with(Instant::now) + self.idle_timeout;
        loop {
            let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                self.held = None;
                return Poll::Ready(Some(Err(ResponseError::Idle(self.idle_timeout))));
            }
            timer.as_mut().reset(deadline);
        }
    }
}

fn impossible(never: Infallible) -> ResponseError {
    match never {}
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = ResponseError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        match &mut self.0 {
            Kind::Own(body) => Pin::new(body).poll_frame(cx).map_err(impossible),
            Kind::Upstream(upstream) => upstream.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Own(body) => body.is_end_stream(),
            Kind::Upstream(upstream) => upstream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Own(body) => body.size_hint(),
            Kind::Upstream(upstream) => upstream.incoming.size_hint(),
        }
    }
}
