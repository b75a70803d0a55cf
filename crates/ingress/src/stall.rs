//! Clients of HTTP/2 that open no window: their connection carries bytes, pings among them, and their answers stand still.
//!
//! A stream alone cannot be told from outside that its time is over, so that it is the connection that ends, and only when
//! for as long as the limit no answer moved and hardly a byte was written.
//!
//! **Invariant:** an app that is silent is not taken for a client that is: only an answer with bytes at hand counts.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Looks during the limit.
const LOOKS: u32 = 4;
/// What answers to pings and the like may come to; who takes more of an answer within the limit is slow, not stalled.
const IDLE_BYTES: u64 = 1024;

/// What the answers of one connection wait for.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Times that more of an answer was asked for.
    moves: AtomicU64,
    /// Bytes that went to the client.
    written: AtomicU64,
    /// Answers whose next bytes the client has not asked for.
    waiting: AtomicUsize,
}

impl Progress {
    /// Waits until the client has taken nothing of what is there for as long as `limit`, or a quarter longer.
    pub(crate) async fn stalled(&self, limit: Duration) {
        let now = || (self.moves.load(Ordering::Relaxed), self.written.load(Ordering::Relaxed));
        let (mut since, mut last) = (Instant::now(), now());
        loop {
            tokio::time::sleep(limit / LOOKS).await;
            let (moves, written) = now();
            if self.waiting.load(Ordering::Relaxed) == 0 || moves != last.0 || written - last.1 > IDLE_BYTES {
                (since, last) = (Instant::now(), (moves, written));
            } else if since.elapsed() >= limit {
                return;
            }
        }
    }
}

/// An answer that notes whether its client takes it.
pub(crate) struct Watched<B> {
    body: B,
    /// `None`: the stream below notices by itself.
    progress: Option<Arc<Progress>>,
    is_waiting: bool,
}

impl<B: Body> Watched<B> {
    pub(crate) fn new(body: B, progress: Option<Arc<Progress>>) -> Self {
        let mut watched = Self { body, progress, is_waiting: false };
        if !watched.body.is_end_stream() {
            watched.note(true);
        }
        watched
    }
}

impl<B> Watched<B> {
    fn note(&mut self, is_waiting: bool) {
        let Some(progress) = &self.progress else { return };
        progress.moves.fetch_add(1, Ordering::Relaxed);
        if is_waiting != self.is_waiting {
            self.is_waiting = is_waiting;
            if is_waiting {
                progress.waiting.fetch_add(1, Ordering::Relaxed);
            } else {
                progress.waiting.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

impl<B> Drop for Watched<B> {
    fn drop(&mut self) {
        self.note(false);
    }
}

impl<B: Body + Unpin> Body for Watched<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if self.progress.is_some() {
            let has_more = matches!(polled, Poll::Ready(Some(Ok(_)))) && !self.body.is_end_stream();
            self.note(has_more);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A stream that counts what is written.
pub(crate) struct Counted<S> {
    stream: S,
    progress: Arc<Progress>,
}

impl<S> Counted<S> {
    pub(crate) fn new(stream: S, progress: Arc<Progress>) -> Self {
        Self { stream, progress }
    }

    fn count(&self, written: io::Result<usize>) -> Poll<io::Result<usize>> {
        if let Ok(count) = written {
            self.progress.written.fetch_add(count as u64, Ordering::Relaxed);
        }
        Poll::Ready(written)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Counted<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Counted<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, slices));
        self.count(written)
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::FutureExt;
    use http_body_util::{BodyExt, Full, StreamBody};
    use tokio::sync::mpsc;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);
    const LONG: Duration = Duration::from_secs(20);

    async fn is_stalled_after(progress: &Progress, time: Duration) -> bool {
        tokio::time::timeout(time, progress.stalled(LIMIT)).await.is_ok()
    }

    #[tokio::test]
    async fn only_bytes_that_nobody_takes_count() {
        let progress: Arc<Progress> = Arc::default();
        assert!(!is_stalled_after(&progress, 3 * LIMIT / 2).await, "there is no answer");
        let full = Watched::new(Full::new(Bytes::from_static(b"x")), Some(Arc::clone(&progress)));
        assert!(is_stalled_after(&progress, LONG).await, "not even its begin was taken");
        drop(full);
        assert!(!is_stalled_after(&progress, 3 * LIMIT / 2).await);
        let (sender, receiver) = mpsc::channel::<&'static str>(4);
        let frames = futures_util::stream::unfold(receiver, |mut receiver| async move {
            let text = receiver.recv().await?;
            Some((Ok::<_, std::io::Error>(Frame::data(Bytes::from(text))), receiver))
        });
        let mut open = Watched::new(StreamBody::new(frames).boxed_unsync(), Some(Arc::clone(&progress)));
        assert!(open.frame().now_or_never().is_none());
        assert!(!is_stalled_after(&progress, 3 * LIMIT / 2).await, "the app is silent");
        sender.send("x").await.unwrap();
        open.frame().await.unwrap().unwrap();
        let (watched, stalls) = (Arc::clone(&progress), std::pin::pin!(progress.stalled(LIMIT)));
        tokio::select! {
            () = stalls => panic!("something moved"),
            () = async {
                for turn in 0..20 {
                    tokio::time::sleep(LIMIT / 10).await;
                    match turn % 2 {
                        0 => drop(Watched::new(Full::new(Bytes::from_static(b"x")), Some(Arc::clone(&watched)))),
                        _ => _ = watched.written.fetch_add(IDLE_BYTES + 1, Ordering::Relaxed),
                    }
                }
            } => {}
        }
        assert!(is_stalled_after(&progress, LONG).await);
        drop(sender);
        assert!(open.frame().await.is_none());
        assert!(!is_stalled_after(&progress, 3 * LIMIT / 2).await);
    }
}
