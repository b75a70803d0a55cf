//! Reads what handlers leave of a request's body.
//!
//! A handler that refuses a request does not wait for its body. Left unread, that body would close the connection behind
//! the answer: a client that still writes might never see the answer, and one that has begun its next request there would
//! lose it.
//!
//! **Invariant:** what is read in vain is bounded in bytes and in time, and nobody waits for it.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::time::timeout;

/// Most that is read in vain: the largest file that a session takes, and some more.
const BYTES_MAX: u64 = 192 << 20;
/// Longest time for it.
const TIME_MAX: Duration = Duration::from_secs(30);

/// A request's body that is read to its end, by its handler or behind it.
#[derive(Debug)]
pub(crate) struct ReadOut<B: Body<Data = Bytes> + Send + Unpin + 'static> {
    /// `None`: nothing of it is to come any more, or nobody may ask for it.
    rest: Option<B>,
    /// The client sends it only when it is told to, which reading does; a refused one it does not send.
    waits: bool,
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> ReadOut<B> {
    pub(crate) fn new(body: B, waits: bool) -> Self {
        Self { rest: Some(body), waits }
    }
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Body for ReadOut<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        self.waits = false;
        let Some(body) = &mut self.rest else { return Poll::Ready(None) };
        let frame = Pin::new(body).poll_frame(cx);
        if matches!(frame, Poll::Ready(None | Some(Err(_)))) {
            self.rest = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.rest.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.rest.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Drop for ReadOut<B> {
    fn drop(&mut self) {
        let Some(body) = self.rest.take().filter(|body| !self.waits && !body.is_end_stream()) else { return };
        // a body outlives its server's tasks only when the server ends
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(timeout(TIME_MAX, read_out(body)));
        }
    }
}

async fn read_out<B: Body<Data = Bytes> + Unpin>(mut body: B) {
    let mut left = BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        let Some(rest) = left.checked_sub(bytes) else { return };
        left = rest;
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::stream::unfold;
    use http_body_util::StreamBody;
    use tokio::sync::mpsc;

    use super::*;

    /// A body of what is sent; one part waits.
    fn body(waits: bool) -> (mpsc::Sender<Bytes>, ReadOut<impl Body<Data = Bytes, Error = Infallible> + Send + Unpin>) {
        let (sender, parts) = mpsc::channel(1);
        let frames = unfold(parts, async |mut parts: mpsc::Receiver<Bytes>| {
            let part = parts.recv().await?;
            Some((Ok(Frame::data(part)), parts))
        });
        (sender, ReadOut::new(StreamBody::new(Box::pin(frames)), waits))
    }

    async fn send(sender: &mpsc::Sender<Bytes>, bytes: usize) -> bool {
        let sent = sender.send(Bytes::from(vec![0; bytes]));
        timeout(Duration::from_secs(20), sent).await.expect("somebody reads, or nobody will").is_ok()
    }

    #[tokio::test]
    async fn what_a_handler_leaves_is_read() {
        let (sender, mut body) = body(true);
        assert!(send(&sender, 1).await);
        assert!(body.frame().await.is_some(), "told to send it, the client sends all of it");
        drop(body);
        for _ in 0..100 {
            assert!(send(&sender, 1000).await);
        }
    }

    #[tokio::test]
    async fn not_without_end() {
        let (sender, body) = body(false);
        drop(body);
        let most = BYTES_MAX >> 20;
        let mut sent = 0;
        while send(&sender, 1 << 20).await {
            sent += 1;
            assert!(sent <= most + 2);
        }
        assert!(sent >= most);
    }

    #[tokio::test]
    async fn nor_what_waits_to_be_asked_for() {
        let (sender, body) = body(true);
        drop(body);
        assert!(!send(&sender, 1).await);
    }
}
