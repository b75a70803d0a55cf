//! Uploads as forms: what stands around their files is bounded.
//!
//! A form's reader keeps what comes until it has found the head of the next part, and looks through all of it again whenever more
//! comes. A client that never ends a head would fill the memory with it and keep a processor busy.
//!
//! **Invariant:** between two parts at most [`HEAD_MAX`] bytes are given to the form's reader.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::Stream;
use multer::{Constraints, Field, Multipart, SizeLimit};

/// Bytes before the first part, or of what is around and in the head of a part; also of a part that nobody wants.
const HEAD_MAX: usize = 64 << 10;
/// Bytes that the reader is given at a time until it has found a head.
const PIECE: usize = 4 << 10;
/// No head is looked for.
const NOT_BOUNDED: usize = usize::MAX;

/// A form whose parts come one after the other.
pub(crate) struct Form {
    form: Multipart<'static>,
    left: Arc<AtomicUsize>,
}

impl Form {
    /// Of a body of at most `bytes_max` bytes.
    pub(crate) fn new(body: Body, boundary: String, bytes_max: u64) -> Self {
        let left = Arc::new(AtomicUsize::new(HEAD_MAX));
        let pieces =
            Pieces { inner: body.into_data_stream(), rest: Bytes::new(), left: Arc::clone(&left), is_looking: false };
        let limits = Constraints::new().size_limit(SizeLimit::new().whole_stream(bytes_max));
        Self { form: Multipart::with_constraints(pieces, boundary, limits), left }
    }

    /// The next part; what is left of the one before it is passed over.
    ///
    /// # Errors
    /// When the body is no such form, is cut off, or has too much between its parts.
    pub(crate) async fn next_field(&mut self) -> multer::Result<Option<Field<'static>>> {
        self.left.store(HEAD_MAX, Ordering::Relaxed);
        let found = self.form.next_field().await;
        self.left.store(NOT_BOUNDED, Ordering::Relaxed);
        found
    }

    /// Reads on for a client that is still sending, so that it comes to read the answer; `bytes_max` more at most.
    pub(crate) async fn pass_over(&mut self, bytes_max: usize) {
        self.left.store(bytes_max, Ordering::Relaxed);
        while let Ok(Some(_)) = self.form.next_field().await {}
    }
}

/// The body as the form's reader gets it.
struct Pieces {
    inner: BodyDataStream,
    /// Of the last piece of the body.
    rest: Bytes,
    left: Arc<AtomicUsize>,
    /// The reader has a piece that it has not looked at.
    is_looking: bool,
}

impl Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let left = this.left.load(Ordering::Relaxed);
        if std::mem::take(&mut this.is_looking) && left != NOT_BOUNDED {
            // it takes all that it can get before it looks: now it cannot get more
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if this.rest.is_empty() {
            this.rest = match ready!(Pin::new(&mut this.inner).poll_next(context)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(io::Error::other(error)))),
                Some(Ok(bytes)) => bytes,
            };
        }
        if left == NOT_BOUNDED {
            return Poll::Ready(Some(Ok(std::mem::take(&mut this.rest))));
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        let Some(left) = left.checked_sub(piece.len()) else {
            let words = format!("more than {} KiB stand before the next part", HEAD_MAX >> 10);
            return Poll::Ready(Some(Err(io::Error::other(words))));
        };
        this.left.store(left, Ordering::Relaxed);
        this.is_looking = true;
        Poll::Ready(Some(Ok(piece)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use futures_util::{StreamExt as _, stream};

    use super::*;

    /// A form of these pieces, and how many bytes of them were taken.
    fn form(pieces: impl Iterator<Item = Vec<u8>> + Send + 'static) -> (Form, Arc<AtomicU64>) {
        let taken = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&taken);
        let pieces = stream::iter(pieces.map(move |piece| {
            counter.fetch_add(piece.len() as u64, Ordering::SeqCst);
            Ok::<_, io::Error>(Bytes::from(piece))
        }));
        (Form::new(Body::from_stream(pieces), "x".to_owned(), 1 << 30), taken)
    }

    #[tokio::test]
    async fn files_come_whole_however_they_are_cut() {
        let file = |name: &str, length: usize| {
            let head = format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"{name}\"\r\n\r\n");
            [head.as_bytes(), &vec![b'f'; length], b"\r\n"].concat()
        };
        let whole = [file("a", 300_000), file("b", 0), file("c", 5), b"--x--\r\n".to_vec()].concat();
        for size in [1, 7, 4096, whole.len()] {
            let pieces: Vec<Vec<u8>> = whole.chunks(size).map(<[u8]>::to_vec).collect();
            let (mut form, _) = form(pieces.into_iter());
            let mut seen = Vec::new();
            while let Some(mut field) = form.next_field().await.unwrap() {
                let mut length = 0;
                while let Some(piece) = field.next().await {
                    length += piece.unwrap().len();
                }
                seen.push((field.name().unwrap().to_owned(), length));
            }
            assert_eq!(seen, [("a".to_owned(), 300_000), ("b".to_owned(), 0), ("c".to_owned(), 5)], "pieces of {size}");
        }
    }

    #[tokio::test]
    async fn a_head_without_end_is_refused_soon() {
        for begin in ["", "--x\r\nA: "] {
            let pieces =
                std::iter::once(begin.as_bytes().to_vec()).chain(std::iter::repeat_n(vec![b'a'; 1000], 100_000));
            let (mut form, taken) = form(pieces.filter(|piece| !piece.is_empty()));
            form.next_field().await.unwrap_err();
            assert!(
                taken.load(Ordering::SeqCst) < 100_000,
                "{begin:?}: {} bytes were taken",
                taken.load(Ordering::SeqCst)
            );
        }
    }
}
