//! Reads what is left of a request's body after its answer.
//!
//! Whoever refuses a request does not wait for its body, and an app may answer before it has read all. Left unread, that body
//! would close the connection behind the answer, unsaid: a client that still writes might never see the answer, and one that
//! has begun its next request there would lose it. Other proxies call it a lingering close.
//!
//! **Invariant:** what is read in vain is bounded in bytes and in time, and nobody waits for it.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Version, header};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Most that is read in vain: the largest file that a session takes, and some more.
const BYTES_MAX: u64 = 192 << 20;
/// Longest time for it.
const TIME_MAX: Duration = Duration::from_secs(30);
/// Longest wait for the next of it.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// A request's body that is read to its end, by whoever answers it or behind the answer: at most 192 MiB for at most 30 s,
/// and until nothing came for 5 s.
#[derive(Debug)]
pub struct ReadOut<B: Body<Data = Bytes> + Send + Unpin + 'static> {
    /// `None`: nothing of it is to come any more, or nobody may ask for it.
    rest: Option<B>,
    /// Until when it may be read behind the answer; `None`: it is not.
    behind: Option<CancellationToken>,
    /// The client sends it only when it is told to, which reading does; a refused one it does not send.
    waits: bool,
}

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> ReadOut<B> {
    /// A request whose body is read to its end, though not after `until`. A stream of HTTP/2 ends by itself, and what a
    /// client with `Expect: 100-continue` was not asked for it does not send: neither is read.
    pub fn of(request: Request<B>, until: &CancellationToken) -> Request<Self> {
        let waits = request.headers().contains_key(header::EXPECT);
        let ends_alone = request.version() >= Version::HTTP_2;
        request.map(|body| {
            let behind = (!ends_alone && !body.is_end_stream()).then(|| until.clone());
            Self { rest: Some(body), behind, waits }
        })
    }

    /// What is not read yet is left: the connection ends behind the answer.
    pub(crate) fn leave(&mut self) {
        self.behind = None;
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

/// What a client sends.
pub(crate) type ClientBody = ReadOut<Incoming>;

impl<B: Body<Data = Bytes> + Send + Unpin + 'static> Drop for ReadOut<B> {
    fn drop(&mut self) {
        let Some(until) = self.behind.take().filter(|_| !self.waits) else { return };
        let Some(body) = self.rest.take().filter(|body| !body.is_end_stream()) else { return };
        // a body outlives its server's tasks only when the server ends
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { until.run_until_cancelled(timeout(TIME_MAX, read_out(body, PAUSE_MAX))).await });
        }
    }
}

async fn read_out<B: Body<Data = Bytes> + Unpin>(mut body: B, pause_max: Duration) {
    let mut left = BYTES_MAX;
    while let Ok(Some(Ok(frame))) = timeout(pause_max, body.frame()).await {
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

    /// The body of a request of which what is sent comes; one part waits.
    fn body(
        fields: &[(&'static str, &'static str)],
        version: Version,
        until: &CancellationToken,
    ) -> (mpsc::Sender<Bytes>, ReadOut<impl Body<Data = Bytes, Error = Infallible> + Send + Unpin + use<>>) {
        let (sender, parts) = mpsc::channel(1);
        let frames = unfold(parts, async |mut parts: mpsc::Receiver<Bytes>| {
            let part = parts.recv().await?;
            Some((Ok(Frame::data(part)), parts))
        });
        let mut request = Request::builder().version(version);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(StreamBody::new(Box::pin(frames))).unwrap();
        (sender, ReadOut::of(request, until).into_body())
    }

    const WAITS: (&str, &str) = ("expect", "100-continue");

    async fn send(sender: &mpsc::Sender<Bytes>, bytes: usize) -> bool {
        let sent = sender.send(Bytes::from(vec![0; bytes]));
        timeout(Duration::from_secs(20), sent).await.expect("somebody reads, or nobody will").is_ok()
    }

    #[tokio::test]
    async fn what_a_handler_leaves_is_read() {
        let (sender, mut body) = body(&[WAITS], Version::HTTP_11, &CancellationToken::new());
        assert!(send(&sender, 1).await);
        assert!(body.frame().await.is_some(), "told to send it, the client sends all of it");
        drop(body);
        for _ in 0..100 {
            assert!(send(&sender, 1000).await);
        }
    }

    #[tokio::test]
    async fn not_without_end() {
        let (sender, body) = body(&[], Version::HTTP_11, &CancellationToken::new());
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
    async fn nor_what_need_not_be() {
        let never = CancellationToken::new();
        let (waits, asked) = body(&[WAITS], Version::HTTP_11, &never);
        let (streams, stream) = body(&[], Version::HTTP_2, &never);
        let (ends, mut left) = body(&[], Version::HTTP_11, &never);
        left.leave();
        drop((asked, stream, left));
        for sender in [waits, streams, ends] {
            assert!(!send(&sender, 1).await);
        }
    }

    #[tokio::test]
    async fn nor_when_the_server_ends() {
        let until = CancellationToken::new();
        let (sender, body) = body(&[], Version::HTTP_11, &until);
        drop(body);
        assert!(send(&sender, 1).await && send(&sender, 1).await, "it is read");
        until.cancel();
        sender.closed().await;
    }

    #[tokio::test]
    async fn nor_for_one_that_sends_nothing() {
        let (sender, body) = body(&[], Version::HTTP_2, &CancellationToken::new());
        assert!(send(&sender, 1).await);
        let reading = read_out(body, Duration::from_millis(20));
        timeout(Duration::from_secs(20), reading).await.expect("it ends though the sender is there");
    }
}
