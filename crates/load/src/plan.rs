//! What is to be sent, where, how fast and for how long: all of it checked before anything is sent.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri, header};

/// Longest schedule step: a request per hour.
const RATE_MIN: f64 = 1.0 / 3600.0;
/// Most requests per second that a schedule may ask for.
const RATE_MAX: f64 = 1_000_000.0;
/// Most connections at once.
const CONNECTIONS_MAX: usize = 20_000;
/// Longest request body in bytes.
const BODY_MAX: usize = 16 << 20;

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1, keep-alive; a request at a time per connection.
    Http1,
    /// HTTP/2, with prior knowledge where there is no TLS; many requests at a time per connection.
    Http2,
    /// WebSocket over HTTP/1.1: a request is a message that must come back as it was.
    WebSocket,
    /// Server-sent events over HTTP/1.1: a request is a stream; numbered ids must follow each other.
    Events,
    /// gRPC over HTTP/2: a request is a call with one message; the answers may be many.
    Grpc,
}

impl Protocol {
    /// Its name in flags and reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Http1 => "h1",
            Self::Http2 => "h2",
            Self::WebSocket => "ws",
            Self::Events => "sse",
            Self::Grpc => "grpc",
        }
    }

    pub(crate) fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::Grpc)
    }
}

/// How fast.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// Open loop.
    Rate {
        /// Requests per second.
        per_second: f64,
        /// Connections at most; requests that find none wait, and their latency counts on.
        connections_max: usize,
    },
    /// Closed loop: so many connections, each sends when it was answered.
    Connections(usize),
}

/// What the content of an answer must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// Anything. WebSocket messages and ids of events are always checked.
    #[default]
    Any,
    /// What was sent.
    Echo,
    /// gRPC: messages whose first field is 1, 2, 3, and so on.
    Numbered,
}

/// Whose certificates are right.
#[derive(Clone, Debug, Default)]
pub enum Trust {
    /// The system's authorities.
    #[default]
    System,
    /// The system's and these, PEM.
    And(Vec<u8>),
    /// Anyone's (`--insecure`).
    Anyone,
}

/// What makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Not a URL of a server.
    #[error("`{0}` is no URL of a server; write http://, https://, ws:// or wss://, a host and a path")]
    Url(String),
    /// Too slow or too fast.
    #[error("the rate must be from one request per hour to {RATE_MAX} per second")]
    Rate,
    /// None or too many.
    #[error("connections must be from 1 to {CONNECTIONS_MAX}")]
    Connections,
    /// None or too many.
    #[error("requests at once per HTTP/2 connection must be from 1 to 1000")]
    Streams,
    /// Too long.
    #[error("the body is longer than {BODY_MAX} bytes")]
    Body,
    /// Zero.
    #[error("the timeout must be longer than nothing")]
    Timeout,
    /// A header that the tool itself writes.
    #[error("the header `{0}` is written by the load test itself")]
    Header(String),
    /// A method that changes what a connection is.
    #[error("CONNECT is no request")]
    Method,
}

/// A server's URL, in its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// As it was written.
    pub url: String,
    /// Whether TLS is spoken.
    pub is_tls: bool,
    /// Host without port.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Host with port as the `Host` header has it; the default port is left out.
    pub authority: String,
    /// Path and query.
    pub path: String,
}

impl Target {
    /// Reads a URL.
    ///
    /// # Errors
    /// [`PlanError::Url`] when it is none, or names no host, or has another scheme.
    pub fn parse(url: &str) -> Result<Self, PlanError> {
        let wrong = || PlanError::Url(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let is_tls = match uri.scheme_str() {
            Some("http" | "ws") => false,
            Some("https" | "wss") => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(wrong)?;
        let host = authority.host().to_owned();
        let default = if is_tls { 443 } else { 80 };
        let port = authority.port_u16().unwrap_or(default);
        let authority = if port == default { host.clone() } else { format!("{host}:{port}") };
        let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        Ok(Self { url: url.to_owned(), is_tls, host, port, authority, path })
    }
}

/// All of a load.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where to.
    pub target: Target,
    /// Where to connect instead of where the host's name leads.
    pub address: Option<SocketAddr>,
    /// What is spoken.
    pub protocol: Protocol,
    /// How fast.
    pub pace: Pace,
    /// HTTP/2: requests at once per connection.
    pub streams: usize,
    /// Until when; until stopped without this and `requests`.
    pub duration: Option<Duration>,
    /// How many.
    pub requests: Option<u64>,
    /// Method of HTTP requests.
    pub method: Method,
    /// Further headers.
    pub headers: HeaderMap,
    /// Body of HTTP requests, message of a gRPC call, end of a WebSocket message.
    pub body: Bytes,
    /// Longest a request may take; of events, the longest silence.
    pub timeout: Duration,
    /// The only right status; any below 500 without it.
    pub status: Option<u16>,
    /// What the content must be.
    pub content: Content,
    /// WebSocket: messages until a connection is closed and opened anew. Events, gRPC: messages that each stream must have.
    pub messages: Option<u64>,
    /// Whose certificates are right.
    pub trust: Trust,
    /// No second try, whatever the protocol allows.
    pub is_strict: bool,
}

impl Plan {
    /// `GET`, ten connections, no end.
    #[must_use]
    pub fn new(target: Target, protocol: Protocol) -> Self {
        Self {
            target,
            address: None,
            protocol,
            pace: Pace::Connections(10),
            streams: 10,
            duration: None,
            requests: None,
            method: Method::GET,
            headers: HeaderMap::new(),
            body: Bytes::new(),
            timeout: Duration::from_secs(30),
            status: None,
            content: Content::Any,
            messages: None,
            trust: Trust::System,
            is_strict: false,
        }
    }

    /// Most connections at once.
    pub(crate) fn connections_max(&self) -> usize {
        match self.pace {
            Pace::Rate { connections_max, .. } => connections_max,
            Pace::Connections(count) => count,
        }
    }

    /// Requests open at once at most.
    pub(crate) fn open_max(&self) -> usize {
        if self.protocol.is_http2() { self.connections_max() * self.streams } else { self.connections_max() }
    }

    pub(crate) fn check(&self) -> Result<(), PlanError> {
        if let Pace::Rate { per_second, .. } = self.pace
            && !(RATE_MIN..=RATE_MAX).contains(&per_second)
        {
            return Err(PlanError::Rate);
        }
        if !(1..=CONNECTIONS_MAX).contains(&self.connections_max()) {
            return Err(PlanError::Connections);
        }
        if !(1..=1000).contains(&self.streams) {
            return Err(PlanError::Streams);
        }
        if self.body.len() > BODY_MAX {
            return Err(PlanError::Body);
        }
        if self.timeout.is_zero() {
            return Err(PlanError::Timeout);
        }
        if self.method == Method::CONNECT {
            return Err(PlanError::Method);
        }
        let own = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION, header::UPGRADE, header::TE];
        match own.iter().find(|name| self.headers.contains_key(*name)) {
            Some(name) => Err(PlanError::Header(name.to_string())),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let shown = |url: &str| match Target::parse(url) {
            Ok(Target { is_tls, host, port, authority, path, .. }) => {
                format!("{is_tls} {host} {port} {authority} {path}")
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(shown("http://a.localhost:8080"), "false a.localhost 8080 a.localhost:8080 /");
        assert_eq!(shown("https://a/b?c=d"), "true a 443 a /b?c=d");
        assert_eq!(shown("wss://a:444/b"), "true a 444 a:444 /b");
        assert_eq!(shown("ws://[::1]:80/"), "false [::1] 80 [::1] /");
        for wrong in ["a", "ftp://a/", "http:///b", "/b", "http://me@a/"] {
            assert!(Target::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn plans_that_make_no_sense_are_refused() {
        let plan = || Plan::new(Target::parse("http://a/").unwrap(), Protocol::Http1);
        assert_eq!(plan().check(), Ok(()));
        let rate = |per_second| Pace::Rate { per_second, connections_max: 1 };
        for wrong in [0.0, -1.0, f64::NAN, 1e7] {
            assert_eq!(Plan { pace: rate(wrong), ..plan() }.check(), Err(PlanError::Rate), "{wrong}");
        }
        assert_eq!(Plan { pace: Pace::Connections(0), ..plan() }.check(), Err(PlanError::Connections));
        assert_eq!(Plan { timeout: Duration::ZERO, ..plan() }.check(), Err(PlanError::Timeout));
        let mut framed = plan();
        framed.headers.insert(header::CONTENT_LENGTH, 3.into());
        assert_eq!(framed.check(), Err(PlanError::Header("content-length".to_owned())));
    }
}
