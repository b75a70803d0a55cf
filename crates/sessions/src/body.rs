//! Bodies on their way: what a client sends, bounded; what a session answers, with what must live until its last byte.
//!
//! **Invariant:** the lease of a session lives as long as its answer is being read; a silent session is cut.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use cove_model::ReplicaName;
use http_body::{Body as HttpBody, Frame, SizeHint};
use http_body_util::Limited;
use hyper::body::Incoming;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, Sleep},
};

use crate::{
    connections::{Connections, Sender},
    ports::Lease,
};

/// What a client sends.
pub(crate) type RequestBody = Limited<Body>;

/// What is held while an answer is read.
pub(crate) struct Held {
    pub(crate) lease: Lease,
    pub(crate) replica: ReplicaName,
    pub(crate) sender: Sender,
    pub(crate) connections: Arc<Connections>,
}

/// A session's answer.
pub(crate) struct AnswerBody {
    inner: Incoming,
    held: Option<Held>,
    idle: Duration,
    silence: Pin<Box<Sleep>>,
}

/// An answer whose request is open until it has been read, or nobody reads it any more.
pub(crate) struct Counted {
    inner: Body,
    permit: Option<OwnedSemaphorePermit>,
}

impl Counted {
    pub(crate) fn new(inner: Body, permit: OwnedSemaphorePermit) -> Self {
        let permit = (!inner.is_end_stream()).then_some(permit);
        Self { inner, permit }
    }
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) || self.inner.is_end_stream() {
            self.permit = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The session said nothing for too long.
#[derive(Debug)]
struct Silent(Duration);

impl std::fmt::Display for Silent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the session sent nothing for {} s", self.0.as_secs())
    }
}

impl std::error::Error for Silent {}

impl AnswerBody {
    pub(crate) fn new(inner: Incoming, held: Held, idle: Duration) -> Self {
        let mut body = Self { inner, held: Some(held), idle, silence: Box::pin(tokio::time::sleep(idle)) };
        if body.inner.is_end_stream() {
            body.finish();
        }
        body
    }

    /// The last byte is here: the session is free, its connection is kept.
    fn finish(&mut self) {
        let Some(Held { lease, replica, sender, connections }) = self.held.take() else { return };
        drop(lease);
        tokio::spawn(async move { connections.keep(&replica, sender).await });
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.silence.as_mut().reset(Instant::now() + this.idle);
                if this.inner.is_end_stream() {
                    this.finish();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                this.held = None;
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                this.finish();
                Poll::Ready(None)
            }
            Poll::Pending => match this.silence.as_mut().poll(cx) {
                Poll::Ready(()) => {
                    this.held = None;
                    Poll::Ready(Some(Err(Silent(this.idle).into())))
                }
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
