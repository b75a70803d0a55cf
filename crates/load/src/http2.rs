//! Requests over HTTP/2, several at a time per connection.
//!
//! **Invariant:** a stream counts as not processed only when the peer said so: `REFUSED_STREAM`, or a `GOAWAY` whose last
//! stream is lower. The library reports streams that were cut after a `GOAWAY` in the same words, so the frames are watched
//! here.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, Version, header};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Mutex,
};

use crate::{
    loss::{Answer, Failure, LossKind, Repeat},
    plan::{Plan, Protocol},
    run::Run,
    wire::Wire,
};

/// Window of a stream in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
/// Window of a connection in bytes.
const CONNECTION_WINDOW: u32 = 16 << 20;
const GOAWAY: u8 = 7;

/// A connection that several requests share; opened when it is first wanted, and again when it is at its end.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    open: Mutex<Option<Open>>,
}

#[derive(Clone, Debug)]
struct Open {
    sender: SendRequest<Bytes>,
    /// The last stream that the peer acts on; all bits set while it has not said goodbye.
    last_stream: Arc<AtomicU32>,
    /// It takes no more streams.
    is_over: Arc<AtomicBool>,
}

impl Open {
    fn takes_more(&self) -> bool {
        !self.is_over.load(Ordering::Acquire) && self.last_stream.load(Ordering::Acquire) == u32::MAX
    }
}

/// One of those who send on it.
#[derive(Debug)]
pub(crate) struct Http2 {
    shared: Arc<Shared>,
}

/// What a stream's answer was, besides its body.
#[derive(Debug)]
pub(crate) struct Heads {
    pub(crate) answer: Answer,
    pub(crate) head: HeaderMap,
    pub(crate) trailers: HeaderMap,
}

/// The request of every stream, without its body.
pub(crate) fn request(plan: &Plan) -> Result<Request<()>, http::Error> {
    let target = &plan.target;
    let scheme = if target.is_tls { "https" } else { "http" };
    let authority = plan.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or(&target.authority);
    let method = if plan.protocol == Protocol::Grpc { Method::POST } else { plan.method.clone() };
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{scheme}://{authority}{}", target.path))
        .version(Version::HTTP_2)
        .body(())?;
    let fields = request.headers_mut();
    for (name, value) in plan.headers.iter().filter(|(name, _)| *name != header::HOST) {
        fields.append(name.clone(), value.clone());
    }
    if plan.protocol == Protocol::Grpc {
        fields.insert(header::TE, http::HeaderValue::from_static("trailers"));
        fields.entry(header::CONTENT_TYPE).or_insert(http::HeaderValue::from_static("application/grpc"));
    }
    Ok(request)
}

impl Http2 {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Sends the run's request with `body`; `see` gets the bytes of the answer's body as they come.
    pub(crate) async fn exchange(
        &self,
        run: &Run,
        body: Bytes,
        see: &mut (dyn FnMut(&[u8]) -> Result<(), Failure> + Send),
    ) -> Result<Heads, Failure> {
        let (mut sender, last_stream) = self.ready(run).await?;
        let request = run.http2_request.clone();
        let has_body = !body.is_empty();
        let (response, mut stream) = sender
            .send_request(request, !has_body)
            .map_err(|error| Failure::new(LossKind::Closed, error.to_string()))?;
        let id = response.stream_id().as_u32();
        drop(sender);
        let failed = |error: &h2::Error, begun: bool| failure(error, begun, id, &last_stream);
        if has_body {
            stream.send_data(body, true).map_err(|error| failed(&error, false))?;
        }
        let response = response.await.map_err(|error| failed(&error, false))?;
        let (head, mut incoming) = response.into_parts();
        let mut bytes = 0;
        while let Some(piece) = incoming.data().await {
            let piece = piece.map_err(|error| failed(&error, true))?;
            bytes += piece.len() as u64;
            see(&piece)?;
            // only a stream that has failed has no window: its error comes next
            let _failed = incoming.flow_control().release_capacity(piece.len());
        }
        let trailers = incoming.trailers().await.map_err(|error| failed(&error, true))?.unwrap_or_default();
        let answer = Answer { status: head.status.as_u16(), bytes, ..Answer::default() };
        Ok(Heads { answer, head: head.headers, trailers })
    }

    /// A connection that takes another stream.
    async fn ready(&self, run: &Run) -> Result<(SendRequest<Bytes>, Arc<AtomicU32>), Failure> {
        loop {
            let (open, is_new) = {
                let mut slot = self.shared.open.lock().await;
                match &*slot {
                    Some(open) if open.takes_more() => (open.clone(), false),
                    _ => (slot.insert(open(run).await?).clone(), true),
                }
            };
            match open.sender.ready().await {
                Ok(sender) => return Ok((sender, open.last_stream)),
                Err(error) if is_new => return Err(Failure::new(LossKind::Closed, error.to_string())),
                // it ended while it was idle: nothing was sent on it
                Err(_ended) => open.is_over.store(true, Ordering::Release),
            }
        }
    }

    /// Gives the connection up; others' streams on it go on.
    pub(crate) async fn close(&self) {
        *self.shared.open.lock().await = None;
    }
}

async fn open(run: &Run) -> Result<Open, Failure> {
    let wire = run.connect().await?;
    let last_stream = Arc::new(AtomicU32::new(u32::MAX));
    let watched = Watched { wire, frames: Frames::default(), last_stream: Arc::clone(&last_stream) };
    let made = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .enable_push(false)
        .handshake(watched)
        .await;
    let (sender, connection) = made.map_err(|error| Failure::new(LossKind::Closed, error.to_string()))?;
    // ends when the last stream and the last sender are gone, or with the runtime
    tokio::spawn(async move {
        // how it ended is told to every stream that was on it
        let _told = connection.await;
    });
    Ok(Open { sender, last_stream, is_over: Arc::default() })
}

fn failure(error: &h2::Error, has_begun: bool, id: u32, last_stream: &AtomicU32) -> Failure {
    let is_refused = error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let kind = match (has_begun, error.is_library()) {
        (_, true) => LossKind::Malformed,
        (true, false) => LossKind::Truncated,
        (false, false) => LossKind::Closed,
    };
    let failure = Failure::new(kind, error.to_string());
    if !has_begun && (is_refused || last_stream.load(Ordering::Acquire) < id) {
        return failure.repeat(Repeat::NotProcessed);
    }
    failure
}

/// A connection whose incoming frames are watched for `GOAWAY`.
#[derive(Debug)]
struct Watched {
    wire: Wire,
    frames: Frames,
    last_stream: Arc<AtomicU32>,
}

/// Where in the frames the reader is.
#[derive(Debug, Default)]
struct Frames {
    /// Head of the frame, and of a `GOAWAY` the stream behind it.
    seen: Vec<u8>,
    payload_left: usize,
}

impl Frames {
    /// Takes the next bytes; the last stream of a `GOAWAY` that became known in them.
    fn advance(&mut self, mut bytes: &[u8]) -> Option<u32> {
        let mut last_stream = None;
        while !bytes.is_empty() {
            if self.payload_left > 0 && !self.is_go_away() {
                let step = self.payload_left.min(bytes.len());
                self.payload_left -= step;
                bytes = &bytes[step..];
                if self.payload_left == 0 {
                    self.seen.clear();
                }
                continue;
            }
            self.seen.push(bytes[0]);
            bytes = &bytes[1..];
            match self.seen.len() {
                9 => {
                    self.payload_left =
                        usize::from(self.seen[0]) << 16 | usize::from(self.seen[1]) << 8 | usize::from(self.seen[2]);
                    if self.payload_left == 0 {
                        self.seen.clear();
                    }
                }
                13 => {
                    let id = u32::from_be_bytes([self.seen[9] & 0x7f, self.seen[10], self.seen[11], self.seen[12]]);
                    last_stream = Some(last_stream.map_or(id, |known: u32| known.min(id)));
                    self.payload_left = self.payload_left.saturating_sub(4);
                    self.seen[3] = 0;
                    if self.payload_left == 0 {
                        self.seen.clear();
                    }
                }
                _ => {}
            }
        }
        last_stream
    }

    fn is_go_away(&self) -> bool {
        self.seen.len() >= 9 && self.seen[3] == GOAWAY
    }
}

impl AsyncRead for Watched {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let watched = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut watched.wire).poll_read(context, buffer);
        if let Some(last) = watched.frames.advance(&buffer.filled()[before..]) {
            watched.last_stream.fetch_min(last, Ordering::AcqRel);
        }
        polled
    }
}

impl AsyncWrite for Watched {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().wire).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().wire).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goodbye_is_found_however_bytes_arrive() {
        let frame = |kind: u8, payload: &[u8]| {
            let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
            bytes.extend([kind, 0, 0, 0, 0, 0]);
            bytes.extend(payload);
            bytes
        };
        let mut stream = frame(4, &[]);
        stream.extend(frame(0, &[GOAWAY; 300]));
        stream.extend(frame(GOAWAY, &[0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]));
        stream.extend(frame(0, &[GOAWAY; 20]));
        stream.extend(frame(GOAWAY, &[0, 0, 0, 9, 0, 0, 0, 0, b'w', b'h', b'y']));
        stream.extend(frame(6, &[0; 8]));
        for chunk in [1, 2, 7, 100, stream.len()] {
            let mut frames = Frames::default();
            let found: Vec<u32> = stream.chunks(chunk).filter_map(|piece| frames.advance(piece)).collect();
            assert_eq!(found.iter().min(), Some(&9), "chunks of {chunk}");
            assert!(frames.seen.is_empty() && frames.payload_left == 0);
        }
    }
}
