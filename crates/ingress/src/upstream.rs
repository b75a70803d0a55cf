//! Sends a request to a replica, tries again what may be tried again, and says what came of it.
//!
//! Two kinds of tries are repeated. What the replica cannot have acted on is repeated at once, whatever the app's policy: the
//! connection was refused; or an idle connection was closed under the request before any byte of an answer, and the request
//! is idempotent or its body had not begun. What the app's retry policy names is repeated after a wait, on another replica if
//! there is one.
//!
//! **Invariant:** a body that began to be read is sent again only from its begin, and only when all of it is still there.
//! **Invariant:** an answer whose head was passed on is never replaced by another.

use cove_model::Transport;
use http::{HeaderValue, Method, Request, Response, Version, header, request::Parts};
use hyper::body::Incoming;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::{
    answer::Refusal,
    gate::{GateShared, Lease, Ticket},
    io::Socket,
    pool::{Connection, Sent},
    request_body::RequestBody,
    resilience::{Failure, Resilience, Tried, count},
};

/// A replica's answer with what it needs to stay alive.
pub(crate) struct Answered {
    pub(crate) response: Response<Incoming>,
    pub(crate) lease: Lease,
    pub(crate) connection: Connection,
    /// When the request was given a replica, if it was the first to be held in a wake from zero.
    pub(crate) woken_at: Option<Timestamp>,
}

/// What the tries of one request share.
pub(crate) struct Call<'a> {
    pub(crate) shared: &'a GateShared,
    pub(crate) ticket: &'a Ticket,
    pub(crate) resilience: &'a Resilience,
    pub(crate) transport: Transport,
    pub(crate) client: &'a Socket,
    pub(crate) random: &'a (dyn Fn() -> u32 + Send + Sync),
    pub(crate) deadline: Instant,
}

/// A try without an answer.
struct Failed {
    refusal: Refusal,
    /// In the words of the retry policy; `None`: no other try would help.
    failure: Option<Failure>,
    /// Where it was tried last.
    replica: Option<u64>,
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, failure: None, replica: None }
    }
}

/// Most tries on reused connections that turned out closed; then a fresh one is opened.
const STALE_TRIES_MAX: u32 = 1;

/// Gets an answer from the leased replica, or another one of the ticket's revision when that fails. Cancel-safe: everything is given back on drop.
///
/// # Errors
/// A [`Refusal`] that says which side failed.
pub(crate) async fn send(
    call: &Call<'_>,
    first: Lease,
    (mut head, mut body): (Parts, RequestBody),
) -> Result<Answered, Refusal> {
    let counters = call.ticket.gate().counters();
    let (mut first, mut avoid) = (Some(first), None);
    let (mut retries, mut woken_at) = (0, None);
    loop {
        let retry = call.resilience.retry.as_ref().filter(|retry| retry.has_more(retries));
        let spare = retry.map(|_| head.clone());
        let tried = attempt(call, (first.take(), avoid), head, body.clone()).await;
        woken_at = woken_at.or_else(|| tried.as_ref().ok()?.woken_at);
        let wait = retry
            .zip(how(&tried))
            .and_then(|(retry, how)| retry.next(retries, how, (Instant::now(), call.deadline), (call.random)()));
        let again = wait.zip(spare).and_then(|(wait, spare)| Some((wait, spare, body.renew()?)));
        let Some((wait, spare, renewed)) = again else {
            let policy = call.resilience.retry.as_ref().filter(|_| retries > 0 && tried.is_ok());
            if policy.zip(how(&tried)).is_some_and(|(policy, how)| !policy.is_worth(how)) {
                count(&counters.retry_successes);
            }
            return match tried {
                Ok(answered) => Ok(Answered { woken_at, ..answered }),
                Err(failed) => Err(failed.refusal),
            };
        };
        avoid = match &tried {
            Ok(answered) => Some(answered.lease.replica().affinity),
            Err(failed) => failed.replica,
        };
        tracing::debug!(revision = %call.ticket.gate().key(), retries, ?wait, "a request is tried again by its app's policy");
        // what the replica still says of it is not wanted; its place is free for others during the wait
        drop(tried);
        count(&counters.retries);
        retries += 1;
        tokio::time::sleep(wait).await;
        (head, body) = (spare, renewed);
    }
}

/// A try's end as the retry policy sees it; `None`: no other try would help.
fn how(tried: &Result<Answered, Failed>) -> Option<Tried<'_>> {
    match tried {
        Ok(answered) => Some(Tried::Answer(answered.response.status(), answered.response.headers())),
        Err(failed) => failed.failure.map(Tried::Failed),
    }
}

/// One try, with what may be repeated at once.
async fn attempt(
    call: &Call<'_>,
    (mut first, avoid): (Option<Lease>, Option<u64>),
    mut head: Parts,
    mut body: RequestBody,
) -> Result<Answered, Failed> {
    let mut connects_failed = 0;
    let mut stale = 0;
    let mut woken_at = None;
    loop {
        let lease = match first.take() {
            Some(lease) => lease,
            None => call.ticket.lease_beside(Some(call.client), avoid, call.deadline).await?,
        };
        woken_at = woken_at.or(lease.woken_at);
        let replica = Some(lease.replica().affinity);
        call.ticket.tried(lease.replica());
        let idle = if stale < STALE_TRIES_MAX { lease.replica().pool.take(call.transport) } else { None };
        let mut connection = match idle {
            Some(connection) => connection,
            // boxed: most requests find a connection
            None => match Box::pin(connect(call, &lease)).await {
                Some(connection) => connection,
                None => {
                    lease.refused();
                    connects_failed += 1;
                    if connects_failed >= call.shared.config.connect_attempts_max {
                        let failure = Some(Failure::Connect);
                        return Err(Failed { refusal: Refusal::UpstreamConnectFailed, failure, replica });
                    }
                    continue;
                }
            },
        };
        let is_reused = connection.is_reused;
        let spare = is_reused.then(|| head.clone());
        let request = request(head, body.clone());
        let mut error = match answer(call, &mut connection, request, &body).await {
            Some(Ok(response)) => {
                lease.answered();
                call.note(&lease, response.status().is_server_error());
                return Ok(Answered { response, lease, connection, woken_at });
            }
            None => {
                call.note(&lease, true);
                let failure = Some(Failure::Timeout);
                return Err(Failed { refusal: Refusal::UpstreamTimeout, failure, replica });
            }
            Some(Err(error)) => error,
        };
        let unsent = error.take_message();
        let error = error.into_error();
        (head, body) = match (unsent, spare) {
            // never written: any request may be repeated
            (Some(request), _) if stale < STALE_TRIES_MAX + 1 => request.into_parts(),
            (None, Some(spare)) if is_closed(&error) && may_repeat(&spare.method, &body) => {
                let Some(renewed) = body.renew() else { return Err(call.failed(&lease, &error, &body, is_reused)) };
                (spare, renewed)
            }
            _ => return Err(call.failed(&lease, &error, &body, is_reused)),
        };
        tracing::debug!(replica = %lease.replica().name, %error, "an idle connection was closed; the request is repeated");
        stale += 1;
    }
}

/// A new connection to the leased replica, if it lets us in.
async fn connect(call: &Call<'_>, lease: &Lease) -> Option<Connection> {
    let limit = call.resilience.connect_timeout.unwrap_or(call.shared.config.connect_timeout);
    let limit = limit.min(call.deadline.saturating_duration_since(Instant::now()));
    let replica = lease.replica();
    match replica.pool.connect(replica.address, call.transport, limit, &call.shared.tasks).await {
        Ok(connection) => Some(connection),
        Err(error) => {
            let revision = call.ticket.gate().key();
            tracing::debug!(replica = %replica.name, %revision, %error, "failed to connect to a replica");
            if error.kind() == std::io::ErrorKind::TimedOut {
                count(&call.ticket.gate().counters().connect_timeouts);
            }
            call.note(lease, true);
            None
        }
    }
}

/// What the replica says; `None` when it says nothing in time. The policy's time runs from the request's last byte, so that a
/// large body is not the app's fault.
async fn answer(
    call: &Call<'_>,
    connection: &mut Connection,
    request: Request<RequestBody>,
    body: &RequestBody,
) -> Option<Sent> {
    let mut sent = std::pin::pin!(connection.try_send(request));
    let Some(limit) = call.resilience.response_timeout else {
        return tokio::time::timeout_at(call.deadline, sent).await.ok();
    };
    let late = async {
        body.over().await;
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        biased;
        sent = &mut sent => return Some(sent),
        () = late => {}
        () = tokio::time::sleep_until(call.deadline) => return None,
    }
    count(&call.ticket.gate().counters().request_timeouts);
    None
}

impl Call<'_> {
    /// Tells the circuit breaker, if there is one.
    fn note(&self, lease: &Lease, is_error: bool) {
        if let Some(breaker) = &self.resilience.breaker {
            lease.note(breaker, is_error);
        }
    }

    fn failed(&self, lease: &Lease, error: &hyper::Error, body: &RequestBody, is_reused: bool) -> Failed {
        let refusal = refusal(error, body, (self.transport, is_reused));
        let failure = match refusal {
            Refusal::RequestBodyFailed | Refusal::RequestBodyTooLarge => None,
            _ if http2_reason(error) == Some(h2::Reason::REFUSED_STREAM) => Some(Failure::Refused),
            _ => Some(Failure::Reset),
        };
        if failure.is_some() {
            self.note(lease, true);
        }
        Failed { refusal, failure, replica: Some(lease.replica().affinity) }
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

/// Whether the replica can be asked anew although the request may have reached it.
fn may_repeat(method: &Method, body: &RequestBody) -> bool {
    if body.is_empty() { method.is_idempotent() } else { !body.is_started() }
}

/// The connection was at its end before the request came.
fn is_closed(error: &hyper::Error) -> bool {
    error.is_incomplete_message() || is_reset(error) || is_refused(error)
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
    if body.is_too_large() {
        return Refusal::RequestBodyTooLarge;
    }
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
