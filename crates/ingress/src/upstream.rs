//! Sends one request to a replica, and decides when a failed try may be repeated.
//!
//! A try is repeated when the replica cannot have acted on it: the connection was refused; or an idle connection was closed
//! under the request before any byte of an answer, and the request is idempotent or its body had not begun.
//!
//! **Invariant:** a body that began to be read is never sent twice.

use cove_model::Transport;
use http::{HeaderValue, Method, Request, Response, Version, header, request::Parts};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    answer::Refusal,
    body::RequestBody,
    gate::{GateShared, Lease, Ticket},
    io::Socket,
    pool::Connection,
};

/// A replica's answer with what it needs to stay alive.
pub(crate) struct Answered {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Lease,
    pub(crate) connection: Connection,
    /// When the request was given a replica, if it was the first to be held in a wake from zero.
    pub(crate) woken_at: Option<Timestamp>,
}

/// Most tries on reused connections that turned out closed; then a fresh one is opened.
const STALE_TRIES_MAX: u32 = 1;

/// Gets an answer from the leased replica, or another one of the ticket's revision when that fails. Cancel-safe: everything is given back on drop.
///
/// # Errors
/// A [`Refusal`] that says which side failed.
pub(crate) async fn send(
    shared: &GateShared,
    (ticket, first): (&Ticket, Lease),
    transport: Transport,
    client: &Socket,
    (mut head, body): (Parts, RequestBody),
    deadline: Instant,
) -> Result<Answered, Refusal> {
    let mut connects_failed = 0;
    let mut stale = 0;
    let mut woken_at = None;
    let mut first = Some(first);
    loop {
        let lease = match first.take() {
            Some(lease) => lease,
            None => ticket.lease(Some(client), deadline).await?,
        };
        woken_at = woken_at.or(lease.woken_at);
        let idle = if stale < STALE_TRIES_MAX { lease.replica().pool.take(transport) } else { None };
        let mut connection = match idle {
            Some(connection) => connection,
            None => {
                let limit = shared.config.connect_timeout.min(deadline.saturating_duration_since(Instant::now()));
                let replica = lease.replica();
                match replica.pool.connect(replica.address, transport, limit, &shared.tasks).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        let (replica, revision) = (&lease.replica().name, ticket.gate().key());
                        tracing::debug!(%replica, %revision, %error, "failed to connect to a replica");
                        lease.refused();
                        connects_failed += 1;
                        if connects_failed >= shared.config.connect_attempts_max {
                            return Err(Refusal::UpstreamConnectFailed);
                        }
                        continue;
                    }
                }
            }
        };
        let can_repeat = connection.is_reused;
        let spare = can_repeat.then(|| head.clone());
        let request = request(head, body.clone());
        let failure = match tokio::time::timeout_at(deadline, connection.try_send(request)).await {
            Ok(Ok(response)) => {
                lease.answered();
                return Ok(Answered { response, lease, connection, woken_at });
            }
            Err(_late) => return Err(Refusal::UpstreamTimeout),
            Ok(Err(failure)) => failure,
        };
        let mut failure = failure;
        let unsent = failure.take_message();
        let error = failure.into_error();
        head = match (unsent, spare) {
            // never written: any request may be repeated
            (Some(request), _) if stale < STALE_TRIES_MAX + 1 => request.into_parts().0,
            (None, Some(spare)) if error.is_incomplete_message() || is_reset(&error) || is_refused(&error) => {
                let is_safe = if body.is_empty() { spare.method.is_idempotent() } else { !body.is_started() };
                if !is_safe {
                    return Err(refusal(&error, &body, (transport, can_repeat)));
                }
                spare
            }
            _ => return Err(refusal(&error, &body, (transport, can_repeat))),
        };
        tracing::debug!(replica = %lease.replica().name, %error, "an idle connection was closed; the request is repeated");
        stale += 1;
    }
}

fn request(mut head: Parts, body: RequestBody) -> Request<RequestBody> {
    if head.version == Version::HTTP_2 {
        // HTTP/2 frames say where a body ends
        return Request::from_parts(head, body);
    }
    if !body.is_empty() && !head.headers.contains_key(header::CONTENT_LENGTH) {
        // without it a body of unknown length would be left out for methods that rarely have one
        head.headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    } else if body.is_empty() && matches!(head.method, Method::POST | Method::PUT | Method::PATCH) {
        head.headers.entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from_static("0"));
    }
    Request::from_parts(head, body)
}

fn is_reset(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return matches!(
                io.kind(),
                std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::BrokenPipe
                    | std::io::ErrorKind::ConnectionAborted
                    | std::io::ErrorKind::UnexpectedEof
            );
        }
        source = cause.source();
    }
    false
}

/// The HTTP/2 error of a failure.
fn http2_reason(error: &hyper::Error) -> Option<h2::Reason> {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(error) = cause.downcast_ref::<h2::Error>() {
            return error.reason();
        }
        source = cause.source();
    }
    None
}

/// The replica said that it did not act on the request (RFC 9113, 8.7), or that its connection is at its end.
fn is_refused(error: &hyper::Error) -> bool {
    matches!(http2_reason(error), Some(h2::Reason::REFUSED_STREAM | h2::Reason::NO_ERROR))
}

fn refusal(error: &hyper::Error, body: &RequestBody, (transport, is_reused): (Transport, bool)) -> Refusal {
    if body.has_failed() || error.is_user() {
        return Refusal::RequestBodyFailed;
    }
    if transport == Transport::Http2 {
        // an HTTP/1.1 server closes at once, or its words read as a frame of absurd size
        let is_not_http2 =
            matches!(http2_reason(error), Some(h2::Reason::FRAME_SIZE_ERROR | h2::Reason::PROTOCOL_ERROR));
        return if is_not_http2 || !is_reused { Refusal::UpstreamNotHttp2 } else { Refusal::UpstreamClosed };
    }
    if error.is_parse() { Refusal::UpstreamInvalid } else { Refusal::UpstreamClosed }
}
