//! gRPC as far as a scaler needs it: one question with one answer, and one question with a stream of answers, on hyper.
//!
//! **Invariant:** a call that is dropped is reset, and its connection serves the others on.
//! **Invariant:** an answer of more than [`MESSAGE_BYTES_MAX`] is refused before it is held in memory.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, TE, USER_AGENT};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use rustls::ClientConfig;

use crate::net;
use crate::source::{HostResolver, ReadError};

/// Longest answer; a scaler's answer is some numbers.
const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Longest text of a server's error that is repeated.
const REASON_CHARS_MAX: usize = 300;
/// Compressed flag and length before each message.
const PREFIX_BYTES: usize = 5;

/// A connection to one server; cheap to clone.
#[derive(Clone)]
pub(super) struct Channel {
    requests: http2::SendRequest<Full<Bytes>>,
    /// `scheme://authority` of every call.
    base: Arc<str>,
    doubted: Arc<AtomicBool>,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Channel {
    /// Connects to `host:port`.
    ///
    /// # Errors
    /// The host cannot be reached, its certificate is refused, or it speaks no HTTP/2.
    pub(super) async fn connect(
        hosts: &HostResolver,
        host: &str,
        port: u16,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Self, ReadError> {
        let stream = net::dial(hosts, host, port).await?;
        match tls {
            None => Self::begin(stream, format!("http://{host}:{port}")).await,
            Some(config) => {
                let stream = net::secure(stream, config, host).await?;
                Self::begin(stream, format!("https://{host}:{port}")).await
            }
        }
    }

    async fn begin<S: net::Wire + 'static>(stream: S, base: String) -> Result<Self, ReadError> {
        let handshake = http2::Builder::new(TokioExecutor::new()).handshake(TokioIo::new(stream)).await;
        let (requests, connection) = handshake.map_err(|e| ReadError::new(format!("no gRPC at {base}: {e}")))?;
        // It ends by itself: when the server closes, or when the last clone of this channel is dropped.
        tokio::spawn(connection);
        Ok(Self { requests, base: base.into(), doubted: Arc::default() })
    }

    /// Whether the connection stands, as far as anybody knows.
    pub(super) fn is_usable(&self) -> bool {
        !self.requests.is_closed() && !self.doubted.load(Ordering::Relaxed)
    }

    /// Notes that a question went unanswered.
    pub(super) fn doubt(&self) {
        self.doubted.store(true, Ordering::Relaxed);
    }

    /// One question, one answer.
    ///
    /// # Errors
    /// The connection broke, or the server answered with an error.
    pub(super) async fn call<A: Message + Default>(
        &self,
        method: &str,
        question: &impl Message,
    ) -> Result<A, CallError> {
        let mut answers = self.stream::<A>(method, question).await?;
        match answers.next().await? {
            Some(answer) => {
                // The status follows the answer: an answer with an error behind it is an error.
                answers.end().await?;
                Ok(answer)
            }
            None => Err(CallError::nonsense(format!("{method} ended without an answer"))),
        }
    }

    /// One question, any number of answers.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub(super) async fn stream<A: Message + Default>(
        &self,
        method: &str,
        question: &impl Message,
    ) -> Result<Answers<A>, CallError> {
        let request = http::Request::post(format!("{}/externalscaler.ExternalScaler/{method}", self.base))
            .version(http::Version::HTTP_2)
            .header(CONTENT_TYPE, "application/grpc")
            .header(TE, "trailers")
            .header(USER_AGENT, concat!("cove/", env!("CARGO_PKG_VERSION")))
            .body(Full::new(framed(question)))
            .map_err(|e| CallError::nonsense(format!("{method} cannot be asked of {}: {e}", self.base)))?;
        let mut requests = self.requests.clone();
        let broken = |e: hyper::Error| CallError::broken(method, &e);
        requests.ready().await.map_err(broken)?;
        let response = requests.send_request(request).await.map_err(broken)?;
        if response.status() != http::StatusCode::OK {
            let status = response.status().as_u16();
            return Err(CallError::nonsense(format!("{method}: {} answers HTTP {status}; is it gRPC?", self.base)));
        }
        // An error without any answer comes in the headers.
        if let Some(error) = failure(method, response.headers()) {
            return Err(error);
        }
        let is_grpc = |value: &HeaderValue| value.as_bytes().starts_with(b"application/grpc");
        if !response.headers().get(CONTENT_TYPE).is_some_and(is_grpc) {
            return Err(CallError::nonsense(format!("{method}: the answer of {} is not gRPC", self.base)));
        }
        let method = method.to_owned();
        Ok(Answers { method, body: response.into_body(), held: BytesMut::new(), answer: std::marker::PhantomData })
    }
}

/// Why a call gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum CallError {
    /// The connection is of no more use.
    #[error("{0}")]
    Broken(ReadError),
    /// The server said no, or nothing that makes sense.
    #[error("{reason}")]
    Refused {
        /// gRPC's status; 0 where there is none.
        status: u32,
        /// In words.
        reason: ReadError,
    },
}

impl CallError {
    pub(super) fn nonsense(reason: String) -> Self {
        Self::Refused { status: 0, reason: ReadError::new(reason) }
    }

    fn broken(method: &str, error: &hyper::Error) -> Self {
        use std::error::Error as _;
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        Self::Broken(ReadError::new(format!("{method}: the connection broke: {error}{cause}")))
    }

    /// For the reading.
    pub(super) fn into_reason(self) -> ReadError {
        let (Self::Broken(reason) | Self::Refused { reason, .. }) = self;
        reason
    }
}

/// Answers as they come.
pub(super) struct Answers<A> {
    method: String,
    body: Incoming,
    held: BytesMut,
    answer: std::marker::PhantomData<fn() -> A>,
}

impl<A: Message + Default> Answers<A> {
    /// The next answer; `None` = the server ended the stream in good order.
    pub(super) async fn next(&mut self) -> Result<Option<A>, CallError> {
        loop {
            if let Some(message) = self.message()? {
                let answer = A::decode(message)
                    .map_err(|e| CallError::nonsense(format!("{}: an answer cannot be read: {e}", self.method)))?;
                return Ok(Some(answer));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|e| CallError::broken(&self.method, &e))?;
            match frame.into_data() {
                Ok(data) => self.held.extend_from_slice(&data),
                Err(frame) => match frame.trailers_ref().and_then(|trailers| failure(&self.method, trailers)) {
                    Some(error) => return Err(error),
                    None => return Ok(None),
                },
            }
        }
    }

    /// Reads on to the end: further answers are no concern, an error is.
    async fn end(&mut self) -> Result<(), CallError> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// A whole message, when there is one.
    fn message(&mut self) -> Result<Option<Bytes>, CallError> {
        let Some((flag, length)) = self.held.first_chunk::<PREFIX_BYTES>().map(|prefix| {
            let [flag, length @ ..] = *prefix;
            (flag, usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX))
        }) else {
            return Ok(None);
        };
        if flag != 0 {
            return Err(CallError::nonsense(format!("{}: the answer is compressed, unasked", self.method)));
        }
        if length > MESSAGE_BYTES_MAX {
            let text = format!("{}: an answer of {length} bytes; at most {MESSAGE_BYTES_MAX} are read", self.method);
            return Err(CallError::nonsense(text));
        }
        if self.held.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        self.held.advance(PREFIX_BYTES);
        Ok(Some(self.held.split_to(length).freeze()))
    }
}

fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(PREFIX_BYTES + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.put(message.encode_to_vec().as_slice());
    bytes.freeze()
}

/// The error that headers or trailers tell of.
fn failure(method: &str, headers: &HeaderMap) -> Option<CallError> {
    static STATUS: HeaderName = HeaderName::from_static("grpc-status");
    static MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
    let status = headers.get(&STATUS)?.to_str().ok().and_then(|text| text.parse::<u32>().ok()).unwrap_or(2);
    if status == 0 {
        return None;
    }
    let said = headers.get(&MESSAGE).map(|text| percent_encoding::percent_decode(text.as_bytes()).decode_utf8_lossy());
    let said: String = said.unwrap_or_default().chars().filter(|c| !c.is_control()).take(REASON_CHARS_MAX).collect();
    let name = status_name(status);
    let reason = if said.is_empty() { format!("{method}: {name}") } else { format!("{method}: {name}: {said}") };
    Some(CallError::Refused { status, reason: ReadError::new(reason) })
}

/// gRPC's word for a status.
fn status_name(status: u32) -> &'static str {
    const NAMES: [&str; 17] = [
        "OK",
        "CANCELLED",
        "UNKNOWN",
        "INVALID_ARGUMENT",
        "DEADLINE_EXCEEDED",
        "NOT_FOUND",
        "ALREADY_EXISTS",
        "PERMISSION_DENIED",
        "RESOURCE_EXHAUSTED",
        "FAILED_PRECONDITION",
        "ABORTED",
        "OUT_OF_RANGE",
        "UNIMPLEMENTED",
        "INTERNAL",
        "UNAVAILABLE",
        "DATA_LOSS",
        "UNAUTHENTICATED",
    ];
    usize::try_from(status).ok().and_then(|index| NAMES.get(index)).copied().unwrap_or("an unknown status")
}
