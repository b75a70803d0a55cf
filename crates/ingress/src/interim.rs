//! Interim answers of apps (103 Early Hints and their kin) on their way to clients of HTTP/1.1.
//!
//! The library's servers send none but 100, so their bytes go around it, into the stream below: when the library flushes,
//! all that it wrote is out, and if a request is there without an answer, the next bytes would be those of that answer. There
//! an interim one fits. Over HTTP/2 and to HTTP/1.0, which knows none, they are dropped, as RFC 9110 (15.2) lets a client do.
//!
//! **Invariant:** nothing is written before the request that it is for, nor behind the first byte of its answer.
//! **Invariant:** what waits is bounded; what is more is dropped.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use http::{HeaderMap, Request, StatusCode, header, request::Parts};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{answer::REASON_HEADER, headers};

/// Most that waits to be written, in bytes.
const WAITING_MAX_BYTES: usize = 16 << 10;

/// What is between a connection's requests and its stream; cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interim(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// A request of HTTP/1.1 is there and has no answer.
    is_open: bool,
    /// All that was written before this request is out, and nothing of its answer: the next byte begins an answer.
    is_between: bool,
    waiting: Vec<u8>,
    /// Of the connection's task.
    waker: Option<Waker>,
}

impl Interim {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a request's answer; meanwhile interim ones are let through.
    pub(crate) async fn until<F: Future>(&self, answer: F) -> F::Output {
        {
            let mut state = self.state();
            *state = State { is_open: true, waker: state.waker.take(), ..State::default() };
        }
        let _open = Open(self);
        let mut answer = std::pin::pin!(answer);
        std::future::poll_fn(|cx| {
            {
                let mut state = self.state();
                if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    state.waker = Some(cx.waker().clone());
                }
            }
            answer.as_mut().poll(cx)
        })
        .await
    }

    /// Asks for the interim answers to a request that goes to an app.
    pub(crate) fn listen(&self, head: &mut Parts) {
        let mut carrier = Request::new(());
        let interim = self.clone();
        hyper::ext::on_informational(&mut carrier, move |answer| {
            interim.push(answer.status(), answer.headers().clone());
        });
        head.extensions.extend(std::mem::take(carrier.extensions_mut()));
    }

    fn push(&self, status: StatusCode, mut fields: HeaderMap) {
        // who expected to be told to go on is told so here
        if status == StatusCode::CONTINUE || status == StatusCode::SWITCHING_PROTOCOLS {
            return;
        }
        headers::remove_hop_by_hop(&mut fields);
        for name in [header::CONTENT_LENGTH.as_str(), header::TRAILER.as_str(), REASON_HEADER] {
            fields.remove(name);
        }
        let waker = {
            let mut state = self.state();
            let bytes = written(status, &fields);
            if !state.is_open || state.waiting.len() + bytes.len() > WAITING_MAX_BYTES {
                tracing::debug!(%status, "an interim answer was dropped");
                return;
            }
            state.waiting.extend_from_slice(&bytes);
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Ends the time for interim answers, also when the wait for the answer is given up; those that are there still go before it.
struct Open<'a>(&'a Interim);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.state().is_open = false;
    }
}

fn written(status: StatusCode, fields: &HeaderMap) -> Vec<u8> {
    let mut bytes =
        format!("HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or("")).into_bytes();
    for (name, value) in fields {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes
}

/// A client's stream with room for interim answers.
pub(crate) struct Stream<S> {
    stream: S,
    interim: Interim,
    /// Being written: all of it comes before anything else.
    begun: Vec<u8>,
    begun_at: usize,
}

impl<S> Stream<S> {
    pub(crate) fn new(stream: S, interim: Interim) -> Self {
        Self { stream, interim, begun: Vec::new(), begun_at: 0 }
    }
}

impl<S: AsyncWrite + Unpin> Stream<S> {
    /// Before the library's next bytes, which begin something if all before them is out.
    fn poll_before(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_begun(cx))?;
        {
            let mut state = self.interim.state();
            if !std::mem::take(&mut state.is_between) || state.waiting.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.begun = std::mem::take(&mut state.waiting);
        }
        self.poll_begun(cx)
    }

    fn poll_begun(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.begun_at < self.begun.len() {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.begun[self.begun_at..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.begun_at += count;
        }
        (self.begun, self.begun_at) = (Vec::new(), 0);
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
        ready!(self.poll_before(cx))?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_before(cx))?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_begun(cx))?;
        let waiting = {
            let mut state = self.interim.state();
            // the library calls this when it has nothing left to write
            state.is_between |= state.is_open;
            if state.is_between { std::mem::take(&mut state.waiting) } else { Vec::new() }
        };
        if !waiting.is_empty() {
            self.begun = waiting;
            ready!(self.poll_begun(cx))?;
        }
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_begun(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn hints(value: &str) -> (StatusCode, HeaderMap) {
        let fields = [("link", value), ("connection", "x-private"), ("x-private", "1"), ("content-length", "5")];
        (
            StatusCode::EARLY_HINTS,
            fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect(),
        )
    }

    #[tokio::test]
    async fn they_are_written_while_a_request_waits_and_only_then() {
        let (client, server) = tokio::io::duplex(1 << 10);
        let interim = Interim::default();
        let (mut client, mut server) = (client, Stream::new(server, interim.clone()));
        let (status, fields) = hints("</early>");
        interim.push(status, fields.clone());
        server.write_all(b"before ").await.unwrap();
        server.flush().await.unwrap();
        interim
            .until(async {
                interim.push(status, fields.clone());
                interim.push(StatusCode::CONTINUE, HeaderMap::new());
                server.flush().await.unwrap();
                // this one comes together with the answer
                interim.push(status, fields.clone());
            })
            .await;
        interim.push(status, fields.clone());
        for part in [b"ans", b"wer"] {
            server.write_all(part).await.unwrap();
            server.flush().await.unwrap();
        }
        drop(server);
        let mut told = String::new();
        client.read_to_string(&mut told).await.unwrap();
        let early = "HTTP/1.1 103 Early Hints\r\nlink: </early>\r\n\r\n";
        assert_eq!(told, format!("before {early}{early}answer"));
    }

    #[tokio::test]
    async fn they_never_come_into_the_answer_before() {
        let (mut client, server) = tokio::io::duplex(1 << 10);
        let interim = Interim::default();
        let mut server = Stream::new(server, interim.clone());
        let (status, fields) = hints("</early>");
        // the next request is there while the last answer is still being written
        interim.until(async { interim.push(status, fields.clone()) }).await;
        server.write_all(b"end of the last answer").await.unwrap();
        server.flush().await.unwrap();
        drop(server);
        let mut told = String::new();
        client.read_to_string(&mut told).await.unwrap();
        assert_eq!(told, "end of the last answer");
    }

    #[tokio::test]
    async fn a_slow_client_gets_them_whole_and_first() {
        let (mut client, server) = tokio::io::duplex(10);
        let interim = Interim::default();
        let mut server = Stream::new(server, interim.clone());
        let (status, fields) = hints(&"x".repeat(100));
        let begun = interim.until(async {
            interim.push(status, fields);
            let mut cx = Context::from_waker(Waker::noop());
            assert!(Pin::new(&mut server).poll_flush(&mut cx).is_pending());
        });
        begun.await;
        let writing = async {
            server.write_all(b"answer").await.unwrap();
            drop(server);
        };
        let mut told = String::new();
        let (_, read) = tokio::join!(writing, client.read_to_string(&mut told));
        read.unwrap();
        assert_eq!(told, format!("HTTP/1.1 103 Early Hints\r\nlink: {}\r\n\r\nanswer", "x".repeat(100)));
    }

    #[test]
    fn what_waits_is_bounded() {
        let interim = Interim::default();
        interim.state().is_open = true;
        for _ in 0..1_000 {
            let (status, fields) = hints(&"x".repeat(900));
            interim.push(status, fields);
        }
        let waiting = interim.state().waiting.len();
        assert!((WAITING_MAX_BYTES - 1_000..=WAITING_MAX_BYTES).contains(&waiting), "{waiting}");
    }
}
