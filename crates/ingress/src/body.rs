//! Answers on their way back: streamed, never collected, each end noticed.
//!
//! **Invariant:** a response holds its lease until its last byte came from the replica or the client left.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::Bytes;
use cove_base::Tasks;
use cove_traffic::Ending;
use http_body::{Body, Frame, SizeHint};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::{
    gate::{Lease, Ticket},
    observe::Seen,
    pool::Connection,
    quiet::Answering,
    request_body::RequestBody,
};

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

impl ResponseError {
    fn ending(&self) -> Ending {
        match self {
            Self::Upstream(_) => Ending::AppCut,
            Self::Idle(_) => Ending::AppSilent,
        }
    }
}

/// A response body: ours, or a replica's with all that it holds.
pub(crate) struct ResponseBody {
    kind: Kind,
    seen: Option<Arc<Seen>>,
    /// Its connection answers until this is gone.
    answering: Option<Answering>,
}

enum Kind {
    Own(Full<Bytes>),
    Upstream(Box<Upstream>),
}

struct Upstream {
    incoming: Incoming,
    held: Option<Held>,
    /// The replica broke it off; to be told next.
    broken: Option<hyper::Error>,
    idle_timeout: Duration,
    /// Since when we wait for the replica; a wait for the client does not count.
    waiting_since: Option<Instant>,
    /// Made at the first wait; moved on only when it fires.
    timer: Option<Pin<Box<Sleep>>>,
}

impl From<Full<Bytes>> for ResponseBody {
    fn from(body: Full<Bytes>) -> Self {
        Kind::Own(body).into()
    }
}

impl From<Kind> for ResponseBody {
    fn from(kind: Kind) -> Self {
        Self { kind, seen: None, answering: None }
    }
}

impl ResponseBody {
    /// A replica's body.
    pub(crate) fn upstream(incoming: Incoming, held: Held, idle_timeout: Duration) -> Self {
        if incoming.is_end_stream() {
            held.finish();
            return Self::empty();
        }
        Kind::Upstream(Box::new(Upstream {
            incoming,
            held: Some(held),
            broken: None,
            idle_timeout,
            waiting_since: None,
            timer: None,
        }))
        .into()
    }

    /// Nothing.
    pub(crate) fn empty() -> Self {
        Full::default().into()
    }

    /// Keeps its connection from being called quiet.
    pub(crate) fn keep(mut self, answering: Answering) -> Self {
        self.answering = Some(answering);
        self
    }

    /// Notes what goes through and how it ends.
    pub(crate) fn observed(mut self, seen: Arc<Seen>) -> Self {
        if self.is_end_stream() {
            seen.over(Ending::Complete);
        } else {
            self.seen = Some(seen);
        }
        self
    }

    fn note(&self, polled: Option<&Result<Frame<Bytes>, ResponseError>>) {
        let Some(seen) = &self.seen else { return };
        match polled {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    seen.sent(data.len() as u64);
                }
                if frame.is_trailers() || self.is_end_stream() {
                    seen.over(Ending::Complete);
                }
            }
            None => seen.over(Ending::Complete),
            Some(Err(error)) => seen.over(error.ending()),
        }
    }
}

impl Upstream {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ResponseError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(ResponseError::Upstream(error))));
        }
        match self.poll_incoming(cx) {
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
                self.broken = Some(error);
                // an error ends the client's connection at once: what came before it is let out first
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Poll::Pending => self.poll_idle(cx),
        }
    }

    /// What came; moves bytes of the replica's connection where nothing is here yet.
    fn poll_incoming(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let connection = self.held.as_mut().and_then(|held| held.connection.as_mut());
        let Some(connection) = connection.filter(|connection| connection.is_driven()) else {
            return Pin::new(&mut self.incoming).poll_frame(cx);
        };
        // the same task moves the bytes and takes them: it need not be woken for what it does itself
        let mut unwoken = Context::from_waker(Waker::noop());
        if let Poll::Ready(polled) = Pin::new(&mut self.incoming).poll_frame(&mut unwoken) {
            return Poll::Ready(polled);
        }
        connection.drive(cx);
        let is_driven = connection.is_driven();
        Pin::new(&mut self.incoming).poll_frame(if is_driven { &mut unwoken } else { cx })
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
        let polled = ready!(match &mut self.kind {
            Kind::Own(body) => Pin::new(body).poll_frame(cx).map_err(impossible),
            Kind::Upstream(upstream) => upstream.poll_frame(cx),
        });
        self.note(polled.as_ref());
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Own(body) => body.is_end_stream(),
            Kind::Upstream(upstream) => upstream.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Own(body) => body.size_hint(),
            Kind::Upstream(upstream) => upstream.incoming.size_hint(),
        }
    }
}
