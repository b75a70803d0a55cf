//! Questions over one connection that the peer answers in their order (Redis, beanstalkd).
//!
//! Questions of many rules are sent without waiting for each other's answers, so a thousand rules on one server cost one
//! round trip, not a thousand.
//!
//! **Invariant:** an answer goes to the question that it belongs to, also when somebody gave up in between: the place in
//! the queue stays, and the answer is thrown away.
//! **Invariant:** the connection closes when its last [`Pipe`] is gone, when the peer closes it, or when an answer makes
//! no sense; nobody waits on it after that.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use cove_base::{OnCancel, OnError, TaskKind, Tasks};
use tokio::io::{AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio_util::codec::Decoder;

use crate::net::Wire;
use crate::source::ReadError;

/// Questions that wait to be sent.
const WAITING_MAX: usize = 64;
/// Answers that are owed at once; above it nothing more is sent.
const OWED_MAX: usize = 1024;
/// Bytes of one answer; a longer one closes the connection.
const ANSWER_MAX: usize = 4 << 20;
/// Runs one connection.
const CONNECTION: TaskKind =
    TaskKind { name: "connection to an event source", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// A shared connection; the clones are the same one.
#[derive(Debug)]
pub(crate) struct Pipe<R> {
    questions: mpsc::Sender<Question<R>>,
    gave_up: Arc<AtomicBool>,
}

impl<R> Clone for Pipe<R> {
    fn clone(&self) -> Self {
        Self { questions: self.questions.clone(), gave_up: Arc::clone(&self.gave_up) }
    }
}

#[derive(Debug)]
struct Question<R> {
    bytes: Vec<u8>,
    count: usize,
    answer: oneshot::Sender<Vec<R>>,
}

/// Marks the connection when an answer is not waited for to its end.
struct Waiting<'a>(Option<&'a AtomicBool>);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(gave_up) = self.0 {
            gave_up.store(true, Ordering::Relaxed);
        }
    }
}

impl<R: Send + 'static> Pipe<R> {
    /// Runs `wire` in a task of its own; `decoder` finds the answers in what comes.
    pub(crate) fn open<D>(tasks: &Tasks, wire: Box<dyn Wire>, decoder: D) -> Self
    where
        D: Decoder<Item = R, Error = io::Error> + Send + 'static,
    {
        let (questions, asked) = mpsc::channel(WAITING_MAX);
        tasks.spawn(CONNECTION, async move {
            if let Err(error) = run(wire, decoder, asked).await {
                tracing::debug!(%error, "connection to an event source ended");
            }
        });
        Self { questions, gave_up: Arc::new(AtomicBool::new(false)) }
    }

    /// Whether another connection is better: this one is closed, or somebody waited in vain for an answer.
    pub(crate) fn is_stale(&self) -> bool {
        self.questions.is_closed() || self.gave_up.load(Ordering::Relaxed)
    }

    /// Whether both are the same connection.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.questions.same_channel(&other.questions)
    }

    /// Sends `bytes`, which the peer answers `count` times.
    ///
    /// # Errors
    /// The connection closed before all answers came.
    pub(crate) async fn ask(&self, bytes: Vec<u8>, count: usize) -> Result<Vec<R>, ReadError> {
        let closed = || ReadError::new("the server closed the connection");
        let (answer, answered) = oneshot::channel();
        let mut waiting = Waiting(Some(&self.gave_up));
        let sent = self.questions.send(Question { bytes, count, answer }).await;
        let answers = match sent {
            Ok(()) => answered.await.map_err(|_| closed()),
            Err(_) => Err(closed()),
        };
        waiting.0 = None;
        answers
    }
}

/// Sends and receives until nobody asks any more; dropping what is owed tells those who wait.
async fn run<R, D>(mut wire: Box<dyn Wire>, mut decoder: D, mut asked: mpsc::Receiver<Question<R>>) -> io::Result<()>
where
    D: Decoder<Item = R, Error = io::Error>,
{
    let mut owed: VecDeque<(usize, Vec<R>, oneshot::Sender<Vec<R>>)> = VecDeque::new();
    let mut out = BytesMut::new();
    let mut input = BytesMut::new();
    let mut is_flushed = true;
    let (mut reader, mut writer) = tokio::io::split(&mut wire);
    loop {
        tokio::select! {
            question = asked.recv(), if owed.len() < OWED_MAX && out.len() < ANSWER_MAX => {
                let Some(Question { bytes, count, answer }) = question else { return Ok(()) };
                out.extend_from_slice(&bytes);
                owed.push_back((count, Vec::with_capacity(count), answer));
            }
            sent = send(&mut writer, &mut out), if !out.is_empty() || !is_flushed => is_flushed = sent?,
            read = reader.read_buf(&mut input) => {
                if read? == 0 {
                    return Ok(());
                }
                while let Some(answer) = decoder.decode(&mut input)? {
                    let Some((count, answers, _)) = owed.front_mut() else {
                        return Err(io::Error::other("an answer that nobody asked for"));
                    };
                    answers.push(answer);
                    if answers.len() == *count
                        && let Some((_, answers, asker)) = owed.pop_front()
                    {
                        // Who gave up has no use for it.
                        let _ = asker.send(answers);
                    }
                }
                if input.len() > ANSWER_MAX {
                    return Err(io::Error::other("an answer of more than 4 MiB"));
                }
            }
        }
    }
}

/// One step of sending; whether nothing is left that the peer has not been given.
async fn send(writer: &mut (impl AsyncWrite + Unpin), out: &mut BytesMut) -> io::Result<bool> {
    if out.is_empty() {
        writer.flush().await?;
        return Ok(true);
    }
    if writer.write_buf(out).await? == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    Ok(false)
}
