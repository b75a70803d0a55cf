//! Sends a request to its session and the answer back.
//!
//! **Invariant:** the token of the platform never reaches a session. **Invariant:** hop-by-hop fields are not passed on, but
//! for an upgrade that both sides want.

use std::{sync::Arc, time::Instant};

use axum::{body::Body, response::Response};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version,
    header::{self, Entry},
    uri::PathAndQuery,
};
use http_body_util::Limited;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::{
    answer::Refused,
    body::{AnswerBody, Held},
    connections::SendError,
    ports::Lease,
    service::Service,
};

/// Fields that are about one connection.
const HOP_BY_HOP: [HeaderName; 6] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHENTICATE,
];

impl Service {
    /// Forwards to the session of a lease; `path` is what the session is asked for.
    pub(crate) async fn forward(
        self: &Arc<Self>,
        lease: Lease,
        path: PathAndQuery,
        mut request: Request<Body>,
        begun: Instant,
    ) -> Result<Response, Refused> {
        let session = lease.allocation.session.clone();
        let client = request.extensions_mut().remove::<OnUpgrade>();
        let upgrade = upgrade_of(request.headers()).filter(|_| client.is_some());
        let port = lease.allocation.target_port;
        let request = prepared(request, path, upgrade.as_ref(), self.limits.body_bytes_max)?;
        let sent = Instant::now();
        let answered = self.connections.send(&self.ports.dial, (&session.replica, port), request);
        let answered = tokio::time::timeout(self.limits.answer_timeout, answered).await;
        let (mut answer, sender) = match answered {
            Err(_) => {
                let secs = self.limits.answer_timeout.as_secs();
                return Err(Refused::new(
                    504,
                    "SessionTimeout",
                    format!("The session did not answer within {secs} s."),
                ));
            }
            Ok(Err(SendError::Http(error))) if is_too_long(&error) => return Err(self.too_long()),
            Ok(Err(SendError::Http(error))) => return Err(Refused::unreachable(with_causes(&error))),
            Ok(Err(SendError::Dial(error))) => return Err(Refused::unreachable(error)),
            Ok(Ok(answered)) => answered,
        };
        let took = sent.elapsed();
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(upgrade), Some(client)) = (upgrade, client) else {
                return Err(Refused::unreachable("it changed the protocol, which nobody asked for"));
            };
            let server = hyper::upgrade::on(&mut answer);
            let idle = self.limits.idle_timeout;
            tokio::spawn(async move {
                let (Ok(client), Ok(server)) = (client.await, server.await) else { return };
                copy(TokioIo::new(client), TokioIo::new(server), idle).await;
                drop((lease, sender));
            });
            let (mut head, _) = answer.into_parts();
            clean(&mut head.headers);
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(header::UPGRADE, upgrade);
            mark(&mut head.headers, &session.guid, took, begun);
            return Ok(Response::from_parts(head, Body::empty()));
        }
        let (mut head, body) = answer.into_parts();
        clean(&mut head.headers);
        mark(&mut head.headers, &session.guid, took, begun);
        head.version = Version::HTTP_11;
        let connections = Arc::clone(&self.connections);
        let held = Held { lease, replica: session.replica, sender, connections };
        Ok(Response::from_parts(head, Body::new(AnswerBody::new(body, held, self.limits.idle_timeout))))
    }

    fn too_long(&self) -> Refused {
        let mib = self.limits.body_bytes_max >> 20;
        Refused::new(413, "RequestEntityTooLarge", format!("The request's body is larger than {mib} MiB."))
    }

    /// Refuses a body that says itself that it is too long.
    pub(crate) fn check_length(&self, headers: &HeaderMap) -> Result<(), Refused> {
        let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|length| length > self.limits.body_bytes_max) { Err(self.too_long()) } else { Ok(()) }
    }
}

/// The client's request as the session gets it.
fn prepared(
    request: Request<Body>,
    path: PathAndQuery,
    upgrade: Option<&HeaderValue>,
    body_bytes_max: u64,
) -> Result<Request<Limited<Body>>, Refused> {
    let (mut head, body) = request.into_parts();
    if head.method == Method::CONNECT {
        return Err(Refused::new(405, "MethodNotAllowed", "CONNECT is not forwarded to sessions."));
    }
    let authority = head.uri.authority().map(|authority| authority.as_str().to_owned());
    clean(&mut head.headers);
    head.headers.remove(header::AUTHORIZATION);
    head.headers.remove(header::PROXY_AUTHORIZATION);
    // the client is told to go on when its body is first read
    head.headers.remove(header::EXPECT);
    if let Some(upgrade) = upgrade {
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        head.headers.insert(header::UPGRADE, upgrade.clone());
    }
    if let Entry::Vacant(free) = head.headers.entry(header::HOST) {
        let host = authority.as_deref().unwrap_or("localhost");
        free.insert(HeaderValue::from_str(host).unwrap_or_else(|_| HeaderValue::from_static("localhost")));
    }
    head.uri = Uri::from(path);
    head.version = Version::HTTP_11;
    head.extensions = http::Extensions::new();
    let max = usize::try_from(body_bytes_max).unwrap_or(usize::MAX);
    Ok(Request::from_parts(head, Limited::new(body, max)))
}

/// The protocol that a request wants to go over to.
fn upgrade_of(headers: &HeaderMap) -> Option<HeaderValue> {
    let asks = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asks = asks.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    headers.get(header::UPGRADE).filter(|_| asks).cloned()
}

/// Takes out what is about one connection, and what `Connection` names.
fn clean(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|word| HeaderName::try_from(word.trim()).ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove("keep-alive");
    headers.remove("proxy-connection");
}

/// Which session answered and how long that took; a session cannot say so itself.
pub(crate) fn mark(headers: &mut HeaderMap, guid: &str, took: std::time::Duration, begun: Instant) {
    let operation = uuid::Uuid::new_v4().to_string();
    let ms = |span: std::time::Duration| span.as_millis().to_string();
    let values = [
        ("x-ms-session-guid", guid.to_owned()),
        ("operation-id", operation),
        ("x-ms-container-execution-duration", ms(took)),
        ("x-ms-overall-execution-time", ms(begun.elapsed())),
        // to the microsecond, as Azure writes this one
        ("x-ms-execution-request-time", format!("{:.6}", begun.elapsed().as_secs_f64() * 1000.0)),
    ];
    for (name, value) in values {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    }
}

/// Passes bytes both ways until one side closes or both are silent for too long.
async fn copy<A, B>(a: A, b: B, idle: std::time::Duration)
where
    A: AsyncRead + AsyncWrite,
    B: AsyncRead + AsyncWrite,
{
    let (mut a_read, mut a_write) = tokio::io::split(a);
    let (mut b_read, mut b_write) = tokio::io::split(b);
    let (mut from_a, mut from_b) = (vec![0; 16 << 10], vec![0; 16 << 10]);
    let (mut a_open, mut b_open) = (true, true);
    while a_open || b_open {
        let moved = tokio::time::timeout(idle, async {
            tokio::select! {
                read = a_read.read(&mut from_a), if a_open => {
                    let count = read?;
                    a_open = count > 0;
                    if count > 0 { b_write.write_all(&from_a[..count]).await } else { b_write.shutdown().await }
                }
                read = b_read.read(&mut from_b), if b_open => {
                    let count = read?;
                    b_open = count > 0;
                    if count > 0 { a_write.write_all(&from_b[..count]).await } else { a_write.shutdown().await }
                }
            }
        });
        if !matches!(moved.await, Ok(Ok(()))) {
            return;
        }
    }
}

fn is_too_long(error: &hyper::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<http_body_util::LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn with_causes(error: &hyper::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
