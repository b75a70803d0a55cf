//! The byte stream under a client's connection: gives back what was read to tell HTTP versions apart, and ends a client that
//! takes nothing.
//!
//! **Invariant:** bytes that were sniffed are read again, in order, before any other.

use std::{
    future::Future,
    io,
    os::fd::AsRawFd,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::FutureExt;
use nix::{
    errno::Errno,
    sys::socket::{MsgFlags, Shutdown, recv, shutdown},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

/// First bytes of every HTTP/2 connection (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// HTTP versions that differ on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// HTTP/1.0 and HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
}

/// A socket that can be asked whether its client left, also while nobody reads from it.
#[derive(Clone, Debug)]
pub(crate) struct Socket {
    stream: Arc<TcpStream>,
    /// How much the next read takes at most.
    room_bytes: usize,
}

/// What a read takes at first: a request's head. More is made ready only for who sends more.
const ROOM_MIN_BYTES: usize = 2 << 10;
/// What a read takes at most.
const ROOM_MAX_BYTES: usize = 64 << 10;

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self { stream: Arc::new(stream), room_bytes: ROOM_MIN_BYTES }
    }

    /// The client closed its side, even if bytes of it are still unread (the kernel's `RDHUP`).
    pub(crate) fn is_closed_by_client(&self) -> bool {
        let ready = self.stream.ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(cx))?;
            let room = buffer.initialize_unfilled_to(buffer.remaining().min(self.room_bytes));
            let room_bytes = room.len();
            let mut got = 0;
            // A read that did not fill the buffer took all there was: saying `WouldBlock` for it here makes the next call
            // wait for the kernel's notice instead of asking once more in vain.
            let read = self.stream.try_io(Interest::READABLE, || {
                got = recv(self.stream.as_raw_fd(), room, MsgFlags::empty())?;
                if got > 0 && got < room.len() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
            });
            match read {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                Err(_) if got == 0 => {}
                Ok(()) | Err(_) => {
                    buffer.advance(got);
                    self.room_bytes = match got {
                        _ if got == room_bytes => (self.room_bytes * 2).min(ROOM_MAX_BYTES),
                        _ if got < self.room_bytes / 4 => ROOM_MIN_BYTES,
                        _ => self.room_bytes,
                    };
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            match self.stream.try_write_vectored(slices) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = shutdown(self.stream.as_raw_fd(), Shutdown::Write);
        Poll::Ready(result.or_else(|errno| if errno == Errno::ENOTCONN { Ok(()) } else { Err(errno.into()) }))
    }
}

/// A client's stream, on which a write that makes no progress for too long is an error. A client for which nothing waits
/// may be silent for ever.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    sniffed: Vec<u8>,
    /// Sniffed bytes that were read again.
    sniffed_at: usize,
    stall_timeout: Duration,
    /// Since when the client takes nothing.
    stalled_since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    /// `stall_timeout` is the longest time that the client may take no byte of what is to be written.
    pub fn new(stream: S, stall_timeout: Duration) -> Self {
        Self { stream, sniffed: Vec::new(), sniffed_at: 0, stall_timeout, stalled_since: None, timer: None }
    }

    /// Ends a write that made no progress for too long.
    fn watch_stall(&mut self, cx: &mut Context<'_>, poll: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if poll.is_ready() {
            self.stalled_since = None;
            return poll;
        }
        let deadline = *self.stalled_since.get_or_insert_with(Instant::now) + self.stall_timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes no more bytes")));
            }
            timer.as_mut().reset(deadline);
        }
    }
}

/// Reads just enough to tell the version; `None` when the client left without a byte.
///
/// # Errors
/// Those of the stream.
pub(crate) async fn sniff<S: AsyncRead + Unpin>(guarded: &mut Guarded<S>) -> io::Result<Option<Protocol>> {
    let mut seen = Vec::with_capacity(PREFACE.len());
    let protocol = loop {
        // an HTTP/1 request is longer than the preface, so nothing waits here for bytes that need not come
        let mut buffer = [0; PREFACE.len()];
        let count = guarded.stream.read(&mut buffer[..PREFACE.len() - seen.len()]).await?;
        seen.extend_from_slice(&buffer[..count]);
        if !PREFACE.starts_with(&seen) {
            break Some(Protocol::Http1);
        }
        if seen.len() == PREFACE.len() {
            break Some(Protocol::Http2);
        }
        if count == 0 {
            break (!seen.is_empty()).then_some(Protocol::Http1);
        }
    };
    guarded.sniffed = seen;
    Ok(protocol)
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.sniffed_at < this.sniffed.len() {
            let left = &this.sniffed[this.sniffed_at..];
            let count = left.len().min(buffer.remaining());
            buffer.put_slice(&left[..count]);
            this.sniffed_at += count;
            if this.sniffed_at == this.sniffed.len() {
                this.sniffed = Vec::new();
                this.sniffed_at = 0;
            }
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.watch_stall(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.watch_stall(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
