//! Requests of HTTP/1 that cannot be read: the library answers them by itself, with a status and nothing else. On its way to
//! the client that answer becomes one of ours, with a reason, and is counted.
//!
//! **Invariant:** nothing that belongs to the answer to a request is changed.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{answer::Refusal, observe::Observer};

/// What stands behind the status of the library's own answers; a date and an empty line follow.
const FIELDS: &[u8] = b"\r\nconnection: close\r\ncontent-length: 0\r\ndate: ";
/// A date and the end of its field and of the head.
const DATE_LEN: usize = b"Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n".len();

/// Whether a request of the connection was answered and nothing of that was written yet; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answered(Arc<AtomicBool>);

impl Answered {
    /// The next bytes are those of an answer to a request.
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A client's stream below the library.
pub(crate) struct Stream<S> {
    stream: S,
    answered: Answered,
    observer: Arc<Observer>,
    /// Our answer, while it is written; it is the connection's last.
    last: Vec<u8>,
    last_at: usize,
}

impl<S> Stream<S> {
    pub(crate) fn new(stream: S, answered: Answered, observer: Arc<Observer>) -> Self {
        Self { stream, answered, observer, last: Vec::new(), last_at: 0 }
    }

    /// Takes the library's own answer; says whether it was one.
    fn take(&mut self, bytes: &[u8]) -> bool {
        if self.answered.0.load(Ordering::Relaxed) {
            self.answered.0.store(false, Ordering::Relaxed);
            return false;
        }
        let Some((refusal, status)) = refusal(bytes) else { return false };
        self.observer.refused(&refusal);
        self.last = written(&refusal, status);
        true
    }
}

/// What the library says with these bytes, if they are its own answer and nothing else.
fn refusal(bytes: &[u8]) -> Option<(Refusal, StatusCode)> {
    let rest = bytes.strip_prefix(b"HTTP/1.1 ")?;
    let status = StatusCode::from_bytes(rest.get(..3)?).ok()?;
    let refusal = match status {
        StatusCode::BAD_REQUEST => Refusal::RequestUnreadable,
        StatusCode::URI_TOO_LONG | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => Refusal::HeadTooLarge,
        _ => return None,
    };
    let name = status.canonical_reason()?;
    let fields = rest.get(3..)?.strip_prefix(b" ")?.strip_prefix(name.as_bytes())?.strip_prefix(FIELDS)?;
    (fields.len() == DATE_LEN && fields.ends_with(b"\r\n\r\n")).then_some((refusal, status))
}

/// Our answer as it stands on the wire.
fn written(refusal: &Refusal, status: StatusCode) -> Vec<u8> {
    // nothing is known of the request, neither its method nor what it accepts
    let (head, body) = refusal.response(&Method::GET, &HeaderMap::new()).into_parts();
    let mut bytes =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default()).into_bytes();
    for (name, value) in &head.headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"connection: close\r\n\r\n");
    let body = futures_util::FutureExt::now_or_never(body.collect());
    if let Some(Ok(body)) = body {
        bytes.extend_from_slice(&body.to_bytes());
    }
    bytes
}

impl<S: AsyncWrite + Unpin> Stream<S> {
    fn poll_last(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.last_at < self.last.len() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.last[self.last_at..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.last_at += count;
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.take(bytes) {
            return Poll::Ready(Ok(bytes.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let [only] = slices
            && self.take(only)
        {
            return Poll::Ready(Ok(only.len()));
        }
        self.answered.0.store(false, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_last(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_last(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_librarys_own_answers_are_replaced() {
        let answer = |status: &str, fields: &str, rest: &str| {
            format!("HTTP/1.1 {status}\r\n{fields}date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n{rest}").into_bytes()
        };
        let own = "connection: close\r\ncontent-length: 0\r\n";
        for (bytes, expected) in [
            (answer("400 Bad Request", own, ""), true),
            (answer("414 URI Too Long", own, ""), true),
            (answer("431 Request Header Fields Too Large", own, ""), true),
            (answer("400 Bad Request", own, "x"), false),
            (answer("400 Bad Request", "content-length: 0\r\nconnection: close\r\n", ""), false),
            (answer("400 Bad Request", &format!("x: y\r\n{own}"), ""), false),
            (answer("400 Bad Reques", own, ""), false),
            (answer("404 Not Found", own, ""), false),
            (b"HTTP/1.1 400".to_vec(), false),
        ] {
            assert_eq!(refusal(&bytes).is_some(), expected, "{}", String::from_utf8_lossy(&bytes));
        }
        let text = String::from_utf8(written(&Refusal::HeadTooLarge, StatusCode::URI_TOO_LONG)).unwrap();
        assert!(
            text.starts_with("HTTP/1.1 414 URI Too Long\r\n") && text.contains("\r\nx-cove-reason: head-too-large\r\n")
        );
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}\r\n", body.len())) && head.ends_with("connection: close"));
    }
}
