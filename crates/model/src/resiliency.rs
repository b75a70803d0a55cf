//! How calls to an app are kept from failing, and how long and how large they may be.
//!
//! [`Resiliency`] is a policy as its user gave it (`containerApps/resiliencyPolicies`), with Azure's recommended values where
//! a part is given without them. [`RequestLimits`] are the limits of an app or an environment; what neither says is the
//! server's to say.
//!
//! **Invariant:** a part that is absent asks for nothing.

use serde::{Deserialize, Serialize};

/// A resiliency policy; the default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resiliency {
    /// `timeoutPolicy`.
    pub timeouts: Option<TryTimeouts>,
    /// `httpRetryPolicy`.
    pub retry: Option<RetryPolicy>,
    /// `tcpRetryPolicy.maxConnectAttempts`: connections tried for one client of a TCP app.
    pub connect_attempts: Option<u32>,
    /// `circuitBreakerPolicy`.
    pub breaker: Option<BreakerPolicy>,
    /// `httpConnectionPool.http1MaxPendingRequests`: requests over HTTP/1.1 that are open at once.
    pub http1_requests_max: Option<u32>,
    /// `httpConnectionPool.http2MaxRequests`: requests over HTTP/2 that are open at once.
    pub http2_requests_max: Option<u32>,
    /// `tcpConnectionPool.maxConnections`: connections of a TCP app that are open at once.
    pub connections_max: Option<u32>,
}

/// How long one try may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TryTimeouts {
    /// From the request's last byte to the head of its answer, in seconds. Azure recommends 60.
    pub response_secs: u32,
    /// To open a connection, in seconds. Azure recommends 5.
    pub connect_secs: u32,
}

impl Default for TryTimeouts {
    fn default() -> Self {
        Self { response_secs: 60, connect_secs: 5 }
    }
}

/// When an HTTP request is tried again, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPolicy {
    /// Tries after the first. Azure recommends 3.
    pub retries_max: u32,
    /// Longest wait before the first of them, in milliseconds; it doubles each time. Azure recommends 1000.
    pub initial_delay_ms: u32,
    /// Longest wait before any of them, in milliseconds. Azure recommends 10000.
    pub delay_max_ms: u32,
    /// What is worth another try. Azure recommends `5xx`.
    pub on: Vec<RetryOn>,
    /// Statuses that [`RetryOn::Statuses`] means.
    pub statuses: Vec<u16>,
    /// Headers of an answer that [`RetryOn::Headers`] means; one that fits is enough.
    pub headers: Vec<HeaderMatch>,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            retries_max: 3,
            initial_delay_ms: 1000,
            delay_max_ms: 10_000,
            on: vec![RetryOn::ServerError],
            statuses: Vec::new(),
            headers: Vec::new(),
        }
    }
}

/// What is worth another try, in Envoy's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RetryOn {
    /// `5xx`: such an answer, or none at all.
    ServerError,
    /// `gateway-error`: 502, 503 or 504, or no answer at all.
    GatewayError,
    /// `connect-failure`: no connection came about.
    ConnectFailure,
    /// `reset`: no answer at all: not connected, disconnected, or too late.
    Reset,
    /// `refused-stream`: the app said with HTTP/2's `REFUSED_STREAM` that it did not act.
    RefusedStream,
    /// `retriable-4xx`: 409.
    Conflict,
    /// `retriable-status-codes`: those of [`RetryPolicy::statuses`].
    Statuses,
    /// `retriable-headers`: those of [`RetryPolicy::headers`].
    Headers,
}

impl RetryOn {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::ServerError,
        Self::GatewayError,
        Self::ConnectFailure,
        Self::Reset,
        Self::RefusedStream,
        Self::Conflict,
        Self::Statuses,
        Self::Headers,
    ];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServerError => "5xx",
            Self::GatewayError => "gateway-error",
            Self::ConnectFailure => "connect-failure",
            Self::Reset => "reset",
            Self::RefusedStream => "refused-stream",
            Self::Conflict => "retriable-4xx",
            Self::Statuses => "retriable-status-codes",
            Self::Headers => "retriable-headers",
        }
    }
}

/// A header of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderMatch {
    /// Its name, lower case.
    pub name: String,
    /// What its value must be.
    pub value: TextMatch,
}

/// A test of a text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TextMatch {
    /// Anything.
    Any,
    /// This text.
    Exact(String),
    /// A text that begins so.
    Prefix(String),
    /// A text that ends so.
    Suffix(String),
    /// A text that this regular expression describes as a whole.
    Regex(String),
}

/// When a failing replica gets no requests for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BreakerPolicy {
    /// Errors in a row: 5xx answers, failed connections, no answers. Azure recommends 5.
    pub consecutive_errors: u32,
    /// For how long, in seconds; each ejection in a row lasts one more of it. Azure recommends 10.
    pub interval_secs: u32,
    /// Most replicas that are out at once, in percent; one may always go. Azure recommends 100.
    pub ejection_percent_max: u32,
}

impl Default for BreakerPolicy {
    fn default() -> Self {
        Self { consecutive_errors: 5, interval_secs: 10, ejection_percent_max: 100 }
    }
}

/// Limits of requests; what is `None` is left to the next in line: app, environment, server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RequestLimits {
    /// From the request's head to the answer's, waking included, in seconds.
    pub request_timeout_secs: Option<u32>,
    /// Longest silence inside an answer, in seconds.
    pub idle_timeout_secs: Option<u32>,
    /// Size of a request's body.
    pub body_bytes_max: Option<u64>,
    /// Header fields of a request.
    pub header_fields_max: Option<u32>,
    /// How long open requests may go on when the server stops, in seconds.
    pub drain_grace_secs: Option<u32>,
}

impl RequestLimits {
    /// These, and `next` where they say nothing.
    #[must_use]
    pub fn or(self, next: Self) -> Self {
        Self {
            request_timeout_secs: self.request_timeout_secs.or(next.request_timeout_secs),
            idle_timeout_secs: self.idle_timeout_secs.or(next.idle_timeout_secs),
            body_bytes_max: self.body_bytes_max.or(next.body_bytes_max),
            header_fields_max: self.header_fields_max.or(next.header_fields_max),
            drain_grace_secs: self.drain_grace_secs.or(next.drain_grace_secs),
        }
    }
}
