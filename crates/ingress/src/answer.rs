//! Answers that the ingress gives itself, each with a status, a short code in `x-cove-reason`, and words that help.
//!
//! **Invariant:** no answer names other hosts, apps or addresses than those in the request.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::Full;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::auth::AuthRefusal;

/// Header with the code of an answer that does not come from the app.
pub(crate) const REASON_HEADER: &str = "x-cove-reason";

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// What a `grpc-message` cannot hold as it is ("gRPC over HTTP2", Responses).
const NOT_IN_MESSAGES: &AsciiSet = &CONTROLS.add(b'%');

/// Why the ingress did not pass a request on, or could not pass its answer back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// HTTP/1.1 without a `Host`.
    #[error("the request has no Host header; send one with the app's host name")]
    HostMissing,
    /// Several `Host` headers, or one that differs from the request's target.
    #[error("the request names more than one host; send exactly one")]
    HostConflict,
    /// It is not HTTP/1.1.
    #[error("the request cannot be read; it is not as RFC 9112 writes HTTP/1.1")]
    RequestUnreadable,
    /// Its head is larger than is read at all, or has more fields.
    #[error("the request's head is larger than the server reads, or has more fields")]
    HeadTooLarge,
    /// What several readers could read differently.
    #[error("the request is not passed on: {0}")]
    RequestInvalid(&'static str),
    /// `CONNECT`, which only proxies for everybody serve.
    #[error("the method CONNECT is not supported; send the request to the app's own host")]
    ConnectMethod,
    /// Too many header fields (HTTP/2; HTTP/1 is refused by the parser).
    #[error("the request has more than {max} header fields")]
    TooManyHeaders {
        /// Allowed.
        max: usize,
    },
    /// No app has this host.
    #[error("no app answers at this host; check the app's host name and that its ingress is enabled")]
    UnknownHost,
    /// The app is only for its own environment.
    #[error(
        "this app is internal: it answers only inside its environment; set its ingress to external to reach it here"
    )]
    AppInternal,
    /// The client's address is not let in.
    #[error("RBAC: access denied; this app's IP restrictions do not let your address in")]
    IpNotAllowed,
    /// The app wants a client certificate.
    #[error("this app requires a client certificate; call it over HTTPS and present one")]
    ClientCertificateRequired,
    /// A connection that was opened for another host, where no certificate is asked for.
    #[error("this app asks for client certificates; open a connection of its own for its host name")]
    Misdirected,
    /// The host has routes by path, none for this one.
    #[error("no route of this host matches the path")]
    NoPathRoute,
    /// A route leads to an app or revision that is not there.
    #[error("the app `{name}` that this path leads to is not there or has no ingress")]
    RouteTargetMissing {
        /// As the route names it.
        name: String,
    },
    /// The app has TCP ingress.
    #[error("this app takes TCP connections at its exposed port, not HTTP requests")]
    TcpOnly,
    /// The app was stopped.
    #[error("this app is stopped; start it with `az containerapp start`")]
    AppStopped,
    /// The revision is not active.
    #[error("this revision is not active; activate it with `az containerapp revision activate`")]
    RevisionInactive,
    /// The app has no revision to route to.
    #[error("this app has no revision that takes traffic; check its traffic weights")]
    NoRevision,
    /// The revision cannot run.
    #[error("this app cannot run: {reason}")]
    RevisionFailed {
        /// In words.
        reason: String,
    },
    /// Too many requests wait already.
    #[error("too many requests wait for this app to start; try again shortly")]
    HoldQueueFull,
    /// No replica came in time.
    #[error("no replica of this app became ready in time")]
    ActivationTimeout,
    /// The replica did not answer in time.
    #[error("the app did not answer in time")]
    UpstreamTimeout,
    /// No connection to a replica.
    #[error("the app's port refused the connection; check that the app listens on its target port")]
    UpstreamConnectFailed,
    /// The replica closed the connection instead of answering.
    #[error("the app closed the connection without an answer")]
    UpstreamClosed,
    /// What the replica sent is no HTTP answer.
    #[error("the app's answer is not valid HTTP/1.1")]
    UpstreamInvalid,
    /// What the replica sent is not HTTP/2.
    #[error(
        "the app did not answer in HTTP/2 without TLS; let it listen for h2c or set its ingress transport to `auto`"
    )]
    UpstreamNotHttp2,
    /// Every ready replica is left out by the circuit breaker.
    #[error(
        "every replica of this app failed again and again and gets no requests; its circuit breaker lets them in again in {seconds} s"
    )]
    ReplicasEjected {
        /// Until the first is let in again.
        seconds: u32,
    },
    /// The app's connection pool is full.
    #[error(
        "{max} requests or connections of this app are open already, as many as its resiliency policy lets in; try again shortly"
    )]
    PoolOverflow {
        /// Allowed.
        max: u64,
    },
    /// The body has more bytes than the app lets in.
    #[error("the request's body is larger than this app takes")]
    RequestBodyTooLarge,
    /// Authentication in front of the app.
    #[error(transparent)]
    Auth(#[from] AuthRefusal),
    /// The client's body ended early.
    #[error("the request's body could not be read to its end")]
    RequestBodyFailed,
    /// The client left while its request was held; nobody reads this.
    #[error("the client closed the connection")]
    ClientGone,
    /// A bug of ours.
    #[error("the ingress failed on this request; see the server's log")]
    Internal,
}

impl Refusal {
    /// Status and code; one line per case, so that a new case must choose.
    pub(crate) fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::HostMissing => (StatusCode::BAD_REQUEST, "host-missing"),
            Self::HostConflict => (StatusCode::BAD_REQUEST, "host-conflict"),
            Self::RequestUnreadable => (StatusCode::BAD_REQUEST, "request-unreadable"),
            Self::HeadTooLarge => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head-too-large"),
            Self::RequestInvalid(_) => (StatusCode::BAD_REQUEST, "request-invalid"),
            Self::ConnectMethod => (StatusCode::METHOD_NOT_ALLOWED, "connect-not-supported"),
            Self::TooManyHeaders { .. } => (StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "too-many-headers"),
            Self::UnknownHost => (StatusCode::NOT_FOUND, "unknown-host"),
            Self::AppInternal => (StatusCode::NOT_FOUND, "app-internal"),
            Self::IpNotAllowed => (StatusCode::FORBIDDEN, "ip-not-allowed"),
            Self::ClientCertificateRequired => (StatusCode::FORBIDDEN, "client-certificate-required"),
            Self::Misdirected => (StatusCode::MISDIRECTED_REQUEST, "misdirected"),
            Self::NoPathRoute => (StatusCode::NOT_FOUND, "no-path-route"),
            Self::RouteTargetMissing { .. } => (StatusCode::NOT_FOUND, "route-target-missing"),
            Self::TcpOnly => (StatusCode::NOT_FOUND, "tcp-only"),
            Self::AppStopped => (StatusCode::NOT_FOUND, "app-stopped"),
            Self::RevisionInactive => (StatusCode::NOT_FOUND, "revision-inactive"),
            Self::NoRevision => (StatusCode::NOT_FOUND, "no-revision"),
            Self::RevisionFailed { .. } => (StatusCode::SERVICE_UNAVAILABLE, "revision-failed"),
            Self::HoldQueueFull => (StatusCode::SERVICE_UNAVAILABLE, "hold-queue-full"),
            Self::ActivationTimeout => (StatusCode::GATEWAY_TIMEOUT, "activation-timeout"),
            Self::UpstreamTimeout => (StatusCode::GATEWAY_TIMEOUT, "upstream-timeout"),
            Self::UpstreamConnectFailed => (StatusCode::BAD_GATEWAY, "upstream-connect-failed"),
            Self::UpstreamClosed => (StatusCode::BAD_GATEWAY, "upstream-closed"),
            Self::UpstreamInvalid => (StatusCode::BAD_GATEWAY, "upstream-invalid"),
            Self::UpstreamNotHttp2 => (StatusCode::BAD_GATEWAY, "upstream-not-http2"),
            Self::ReplicasEjected { .. } => (StatusCode::SERVICE_UNAVAILABLE, "replicas-ejected"),
            Self::PoolOverflow { .. } => (StatusCode::SERVICE_UNAVAILABLE, "pool-overflow"),
            Self::RequestBodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "request-body-too-large"),
            Self::Auth(refusal) => refusal.status(),
            Self::RequestBodyFailed => (StatusCode::BAD_REQUEST, "request-body-failed"),
            Self::ClientGone => (StatusCode::BAD_REQUEST, "client-gone"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        }
    }

    /// Seconds in `Retry-After`, where trying again makes sense.
    fn retry_after_secs(&self) -> Option<u32> {
        match self {
            Self::HoldQueueFull | Self::PoolOverflow { .. } => Some(1),
            Self::ReplicasEjected { seconds } => Some(*seconds),
            Self::RevisionFailed { .. } => Some(10),
            _ => None,
        }
    }

    /// The answer, as a page for browsers and as JSON for everybody else.
    pub(crate) fn response(&self, method: &Method, headers: &HeaderMap) -> Response<Full<Bytes>> {
        let (status, code) = self.status();
        if is_grpc(headers) {
            return self.grpc_response(status, code);
        }
        let wants_page = headers
            .get(header::ACCEPT)
            .and_then(|accept| accept.to_str().ok())
            .is_some_and(|accept| accept.contains("text/html"));
        let (kind, body) = if wants_page {
            ("text/html; charset=utf-8", page(status, code, &self.to_string()))
        } else {
            ("application/json", json(code, &self.to_string()))
        };
        let length = HeaderValue::from(body.len());
        let body = if method == Method::HEAD { Bytes::new() } else { Bytes::from(body) };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CONTENT_LENGTH, length);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(REASON_HEADER, HeaderValue::from_static(code));
        if let Self::Auth(refusal) = self
            && let Some(challenge) = refusal.challenge()
        {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if let Some(seconds) = self.retry_after_secs() {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }

    /// The answer to a gRPC call: its client reads a status of its own kind, and would take any body for a broken message.
    fn grpc_response(&self, status: StatusCode, code: &'static str) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::default());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        headers.insert(GRPC_STATUS, HeaderValue::from(grpc_status(status)));
        let message = utf8_percent_encode(&self.to_string(), NOT_IN_MESSAGES).to_string();
        headers.extend(HeaderValue::try_from(message).ok().map(|message| (GRPC_MESSAGE, message)));
        headers.insert(REASON_HEADER, HeaderValue::from_static(code));
        response
    }
}

/// A gRPC call, by what it sends.
pub(crate) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

/// gRPC's status for one of HTTP ("HTTP to gRPC Status Code Mapping" of its documents).
fn grpc_status(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 | 431 => 13,             // INTERNAL
        401 => 16,                   // UNAUTHENTICATED
        403 => 7,                    // PERMISSION_DENIED
        404 => 12,                   // UNIMPLEMENTED
        429 | 502 | 503 | 504 => 14, // UNAVAILABLE
        _ => 2,                      // UNKNOWN
    }
}

/// A redirect to HTTPS; 301 for reads as Azure answers, 308 for the rest so that the method stays.
pub(crate) fn redirect(method: &Method, location: HeaderValue) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = if method == Method::GET || method == Method::HEAD {
        StatusCode::MOVED_PERMANENTLY
    } else {
        StatusCode::PERMANENT_REDIRECT
    };
    response.headers_mut().insert(header::LOCATION, location);
    response.headers_mut().insert(REASON_HEADER, HeaderValue::from_static("insecure-not-allowed"));
    response
}

fn json(code: &str, message: &str) -> String {
    let mut text = serde_json::json!({ "error": { "code": code, "message": message } }).to_string();
    text.push('\n');
    text
}

fn page(status: StatusCode, code: &str, message: &str) -> String {
    let mut text = String::with_capacity(message.len() + 64);
    for c in message.chars() {
        match c {
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '&' => text.push_str("&amp;"),
            c => text.push(c),
        }
    }
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8><title>{status}</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:40rem;margin:15vh auto;padding:0 1rem}}</style>\
         <h1>{status}</h1><p>{text}<p><small>{code}</small></html>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grpc_call_gets_a_status_of_its_own_kind() {
        let calls = HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc+proto"))]);
        let refusal = Refusal::RevisionFailed { reason: "ä 100%".into() };
        let answer = refusal.response(&Method::POST, &calls);
        let field = |name| answer.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        assert_eq!((answer.status(), field("grpc-status")), (StatusCode::OK, Some("14")));
        assert_eq!(field("grpc-message"), Some("this app cannot run: %C3%A4 100%25"));
        assert_eq!((field("content-type"), field(REASON_HEADER)), (Some("application/grpc"), Some("revision-failed")));
        assert!(!answer.headers().contains_key(header::CONTENT_LENGTH), "head and trailers are one");
        assert_eq!(Refusal::UnknownHost.response(&Method::POST, &calls).headers()["grpc-status"], "12");
    }

    #[test]
    fn reasons_cannot_break_out_of_the_answer() {
        let evil = Refusal::RevisionFailed { reason: "a\"b\\c\n<script>\u{7}".into() };
        assert_eq!(
            json(evil.status().1, &evil.to_string()),
            concat!(
                r#"{"error":{"code":"revision-failed","#,
                r#""message":"this app cannot run: a\"b\\c\n<script>\u0007"}}"#,
                "\n"
            )
        );
        assert!(page(evil.status().0, "x", &evil.to_string()).contains("&lt;script&gt;"));
    }
}
