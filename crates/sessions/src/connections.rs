//! Connections to sessions: HTTP/1.1, opened from inside the session's network, kept for the next request.
//!
//! **Invariant:** a connection is used for the replica that it was opened to and no other. **Invariant:** kept ones are
//! bounded per session and in time; those of a session that ended go when they are closed or their time is over.

use std::{
    collections::HashMap,
    error::Error as _,
    io,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use cove_model::ReplicaName;
use http::{Request, Response};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::{
    body::RequestBody,
    ports::{Dial, Limits},
};

/// One connection, ready for a request.
pub(crate) type Sender = http1::SendRequest<RequestBody>;

/// Idle connections.
#[derive(Debug)]
pub(crate) struct Connections {
    idle: Mutex<HashMap<ReplicaName, Vec<(Instant, Sender)>>>,
    connections_max: usize,
    idle_limit: Duration,
}

impl Connections {
    pub(crate) fn new(limits: &Limits) -> Self {
        Self { idle: Mutex::default(), connections_max: limits.connections_max, idle_limit: limits.connection_idle }
    }

    /// Sends a request over a kept connection or a new one; where asking twice is asking once, once more when a new one is
    /// closed unanswered.
    pub(crate) async fn send(
        &self,
        dial: &Dial,
        (replica, port): (&ReplicaName, u16),
        mut request: Request<RequestBody>,
    ) -> Result<(Response<Incoming>, Sender), SendError> {
        while let Some(mut sender) = self.take(replica) {
            let again = repeatable(&request);
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(mut error) => match error.take_message().or_else(|| again.filter(|_| is_unanswered(error.error())))
                {
                    // it was closed before anything was sent, or as it was
                    Some(back) => request = back,
                    None => return Err(SendError::Http(error.into_error())),
                },
            }
        }
        let again = repeatable(&request);
        let first = send_new(dial, (replica, port), request).await;
        match (first, again) {
            // a program that was interrupted as it began to read closes what it had just accepted
            (Err(SendError::Http(error)), Some(request)) if is_unanswered(&error) => {
                tracing::debug!(%replica, %error, "a session closed a new connection unanswered; it is asked once more");
                match send_new(dial, (replica, port), request).await {
                    // it is gone: how its connection ended says more
                    Err(SendError::Dial(_)) => Err(SendError::Http(error)),
                    answered => answered,
                }
            }
            (answered, _) => answered,
        }
    }

    fn take(&self, replica: &ReplicaName) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        if let Some(kept) = idle.get_mut(replica) {
            kept.retain(|(since, sender)| since.elapsed() < self.idle_limit && sender.is_ready());
            found = kept.pop().map(|(_, sender)| sender);
            if kept.is_empty() {
                idle.remove(replica);
            }
        }
        found
    }

    /// Keeps a connection whose answer was read to its end.
    pub(crate) async fn keep(&self, replica: &ReplicaName, mut sender: Sender) {
        // the next request may come only when the last bytes of this one are out
        let is_ready = tokio::time::timeout(Duration::from_secs(1), sender.ready()).await;
        if !matches!(is_ready, Ok(Ok(()))) {
            return;
        }
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        // sessions that are over leave theirs behind; they are dropped here, so there is no task for it
        if idle.len() > SWEEP_ABOVE && !idle.contains_key(replica) {
            for kept in idle.values_mut() {
                kept.retain(|(since, sender)| since.elapsed() < self.idle_limit && sender.is_ready());
            }
            idle.retain(|_, kept| !kept.is_empty());
        }
        let kept = idle.entry(replica.clone()).or_default();
        if kept.len() < self.connections_max {
            kept.push((Instant::now(), sender));
        }
    }
}

/// The same request once more, where asking twice is asking once (RFC 9110, 9.2.2): a session may close a kept connection in
/// the moment in which the next request is sent.
fn repeatable(request: &Request<RequestBody>) -> Option<Request<RequestBody>> {
    if !request.method().is_idempotent() || !request.body().is_end_stream() {
        return None;
    }
    let mut again = Request::new(RequestBody::new(axum::body::Body::empty(), 0));
    *again.method_mut() = request.method().clone();
    *again.uri_mut() = request.uri().clone();
    *again.version_mut() = request.version();
    *again.headers_mut() = request.headers().clone();
    Some(again)
}

/// The connection ended before the first byte of an answer.
fn is_unanswered(error: &hyper::Error) -> bool {
    let is_reset = |kind| matches!(kind, io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
    let cause = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
    error.is_incomplete_message() || error.is_closed() || cause.is_some_and(|cause| is_reset(cause.kind()))
}

/// Sessions with kept connections above which each new one clears the others.
const SWEEP_ABOVE: usize = 16;

/// Why a session did not answer.
#[derive(Debug)]
pub(crate) enum SendError {
    Dial(io::Error),
    Http(hyper::Error),
}

/// Sends a request over a connection of its own.
async fn send_new(
    dial: &Dial,
    (replica, port): (&ReplicaName, u16),
    request: Request<RequestBody>,
) -> Result<(Response<Incoming>, Sender), SendError> {
    let mut sender = open(dial, replica, port).await.map_err(SendError::Dial)?;
    let response = sender.send_request(request).await.map_err(SendError::Http)?;
    Ok((response, sender))
}

async fn open(dial: &Dial, replica: &ReplicaName, port: u16) -> io::Result<Sender> {
    let stream = dial(replica, port).await?;
    stream.set_nonblocking(true)?;
    stream.set_nodelay(true)?;
    let stream = TcpStream::from_std(stream)?;
    let (sender, connection) = http1::Builder::new()
        .preserve_header_case(true)
        .handshake::<_, RequestBody>(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    // ends when the sender is dropped or the session closes
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to a session ended early");
        }
    });
    Ok(sender)
}

#[cfg(test)]
mod tests;
