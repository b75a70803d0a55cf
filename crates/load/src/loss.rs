//! Why a request was lost, and when one may be sent again.
//!
//! **Invariant:** a request is sent again only when its protocol says that the first try was not acted on, or may be
//! repeated; everything else is lost, whatever a second try would have given.

use std::fmt;

use serde::Serialize;

/// How a request was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossKind {
    /// Connections were refused for as long as the request had time.
    Refused,
    /// No connection, for another reason than a refusal.
    Connect,
    /// The TLS handshake failed.
    Tls,
    /// The time was over before the answer was full.
    Timeout,
    /// The connection or stream ended before the answer began.
    Closed,
    /// The answer began and ended early.
    Truncated,
    /// What came is no answer of this protocol.
    Malformed,
    /// A full answer with a status that is not right.
    Status,
    /// A full answer with the wrong content: not what was echoed, a gap in numbered messages, too few of them.
    Content,
}

impl LossKind {
    /// In words, for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Refused => "connections refused until the time was over",
            Self::Connect => "no connection",
            Self::Tls => "TLS handshake failed",
            Self::Timeout => "no full answer in time",
            Self::Closed => "closed before an answer",
            Self::Truncated => "answer cut",
            Self::Malformed => "not an answer of this protocol",
            Self::Status => "wrong status",
            Self::Content => "wrong content",
        }
    }
}

/// Why a request was sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Repeat {
    /// HTTP/1.1: an idle connection was closed as an idempotent request was sent; no byte of an answer came
    /// (RFC 9112, 9.3.1).
    IdleClosed,
    /// HTTP/2: the peer said that it did not act on the stream: `GOAWAY` with a lower stream, or `REFUSED_STREAM`
    /// (RFC 9113, 8.7).
    NotProcessed,
    /// WebSocket: the message crossed with a close frame 1000, 1001 or 1012; the protocol cannot say whether it was acted on.
    CrossedClose,
}

impl Repeat {
    /// In words, for people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::IdleClosed => "idle connections closed under a request",
            Self::NotProcessed => "streams the server did not act on",
            Self::CrossedClose => "messages that crossed with a close frame",
        }
    }
}

/// What may be done about a failed try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Nothing: the request is lost.
    None,
    /// Nobody listened: another try after a pause.
    Refused,
    /// Another try at once.
    Repeat(Repeat),
}

/// A failed try.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: LossKind,
    pub(crate) text: String,
    pub(crate) remedy: Remedy,
    /// Status of the answer, where there was one.
    pub(crate) status: Option<u16>,
}

impl Failure {
    pub(crate) fn new(kind: LossKind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), remedy: Remedy::None, status: None }
    }

    /// A full answer with a status that is not right.
    pub(crate) fn status(status: u16, text: impl Into<String>) -> Self {
        Self { status: Some(status), ..Self::new(LossKind::Status, text) }
    }

    pub(crate) fn repeat(self, reason: Repeat) -> Self {
        Self { remedy: Remedy::Repeat(reason), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.words(), self.text)
    }
}

/// What a full answer was.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Answer {
    /// Status of HTTP; 101 for a message of a WebSocket.
    pub(crate) status: u16,
    /// Bytes of the body.
    pub(crate) bytes: u64,
    /// Messages or events inside it.
    pub(crate) messages: u64,
    /// When the answer counts as there, if before its end.
    pub(crate) at: Option<std::time::Instant>,
}
