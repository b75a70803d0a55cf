//! Every decision of every revision, kept for days: what `scale explain` and `scale simulate` read.
//!
//! Decisions come over a bounded channel and are written about once a second by a blocking thread, off the path that
//! decides. They stand in segments, files that are only appended to; a start begins a new one, so nothing is repaired.
//! Decisions that repeat the one before them wait up to a minute and are written as one entry; a reader's question
//! writes those of the revisions asked for first.
//!
//! **Invariant:** what was written before a `kill -9` is read after it; a torn end of a segment is left out.
//! **Invariant:** the directory holds at most `disk_max_bytes` and one segment, and nothing older than `keep` but by one
//! segment; the oldest segments go first.
//! **Invariant:** a decision that could not be kept (full channel, full disk) is counted and said, and harms no other.

mod read;
mod segment;
mod write;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cove_base::Clock;
use cove_model::{ResourceId, RevisionKey, RevisionName};
use cove_scaling::DecisionRecord;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::ports::RevisionDecision;
use write::Tapes;

/// Decisions that may wait for the writer; 2,000 apps in fast mode for eight seconds.
const QUEUED_MAX: usize = 16_384;
/// Decisions that are written at once, without waiting for the next write.
const BATCH_MAX: usize = 4096;
/// Questions that may wait.
const ASKED_MAX: usize = 64;
/// Pause between two writes.
const WRITE_EVERY: Duration = Duration::from_secs(1);
/// Longest that a run of equal decisions waits.
const RUN_OPEN_MAX: SignedDuration = SignedDuration::from_secs(60);

/// `[autoscaler.recording]` of the server's configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RecordingConfig {
    /// How long decisions are kept. Default 168 h, 7 days; 0 keeps none.
    pub keep: SignedDuration,
    /// Most bytes on disk. Default 512 MiB; the oldest decisions go first.
    pub disk_max_bytes: u64,
}

impl Default for RecordingConfig {
    fn default() -> Self {
        Self { keep: SignedDuration::from_hours(7 * 24), disk_max_bytes: 512 << 20 }
    }
}

/// Why decisions cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// A file or the directory.
    #[error("failed to {what} `{}`", path.display())]
    Io {
        /// To do what.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// The server stops, or so many ask that the queue is full.
    #[error("the recording of decisions does not answer")]
    Closed,
}

/// Which decisions are asked for.
#[derive(Clone, Debug)]
pub struct RecordingQuery {
    /// The app.
    pub app: ResourceId,
    /// One of its revisions; `None` = all.
    pub revision: Option<RevisionName>,
    /// The first instant.
    pub from: Timestamp,
    /// The last instant, inclusive.
    pub to: Timestamp,
    /// Most decisions per revision.
    pub decisions_max: usize,
    /// Which are left out when there are more: the older ones, or the newer ones.
    pub newest: bool,
}

/// Decisions of one revision, in the order in which they were taken.
#[derive(Clone, Debug)]
pub struct RecordedRevision {
    /// The revision.
    pub revision: RevisionKey,
    /// Its decisions.
    pub decisions: Vec<DecisionRecord>,
    /// Whether some were left out because there are more than were asked for.
    pub is_cut: bool,
}

/// Asks for recorded decisions; cheap to clone.
#[derive(Clone, Debug)]
pub struct Recording {
    dir: Arc<PathBuf>,
    asked: mpsc::Sender<Flush>,
}

/// The part that writes.
#[derive(Debug)]
pub struct Recorder {
    dir: Arc<PathBuf>,
    config: RecordingConfig,
    clock: Clock,
    decisions: mpsc::Receiver<RevisionDecision>,
    asked: mpsc::Receiver<Flush>,
}

/// Asks that what waits of an app is written.
#[derive(Debug)]
struct Flush {
    app: ResourceId,
    done: oneshot::Sender<()>,
}

/// A recording in `dir`: what writes, what reads, and where decisions are sent.
pub fn recording(
    dir: PathBuf,
    config: RecordingConfig,
    clock: Clock,
) -> (Recorder, Recording, mpsc::Sender<RevisionDecision>) {
    let (sender, decisions) = mpsc::channel(QUEUED_MAX);
    let (ask, asked) = mpsc::channel(ASKED_MAX);
    let dir = Arc::new(dir);
    let recorder = Recorder { dir: Arc::clone(&dir), config, clock, decisions, asked };
    (recorder, Recording { dir, asked: ask }, sender)
}

impl Recording {
    /// Reads recorded decisions; revisions without any are not in the answer.
    ///
    /// # Errors
    /// When the files cannot be read or the recorder does not answer.
    pub async fn read(&self, query: RecordingQuery) -> Result<Vec<RecordedRevision>, RecordingError> {
        let (done, written) = oneshot::channel();
        let flush = Flush { app: query.app.clone(), done };
        // a recorder that has ended wrote everything
        if self.asked.send(flush).await.is_ok() {
            let _ended = written.await;
        }
        let dir = Arc::clone(&self.dir);
        let read = tokio::task::spawn_blocking(move || read::read(&dir, &query));
        read.await.map_err(|_| RecordingError::Closed)?
    }
}

impl Recorder {
    /// Writes until `shutdown`, then what is left.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { dir, config, clock, mut decisions, mut asked } = self;
        let mut tapes = Tapes::new(dir.as_path().to_owned(), config);
        let mut batch = Vec::new();
        let mut every = tokio::time::interval(WRITE_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut flush = None;
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(question) = asked.recv() => flush = Some(question),
                _ = every.tick() => {}
                // a virtual clock makes a day's decisions in a moment
                received = decisions.recv_many(&mut batch, BATCH_MAX), if batch.len() < BATCH_MAX => {
                    if received > 0 && batch.len() < BATCH_MAX {
                        continue;
                    }
                    if received == 0 {
                        break;
                    }
                }
            }
            while let Ok(decision) = decisions.try_recv() {
                batch.push(decision);
            }
            let now = clock.now();
            let app = flush.as_ref().map(|flush| flush.app.clone());
            if batch.is_empty() && app.is_none() && !tapes.has_runs() {
                continue;
            }
            tapes = in_thread(tapes, &mut batch, move |tapes| {
                tapes.end_runs(|app_id, since| {
                    app.as_ref().is_some_and(|app| app == app_id) || now.duration_since(since) >= RUN_OPEN_MAX
                });
                tapes.write(now);
            })
            .await;
            if let Some(flush) = flush {
                let _asker_left = flush.done.send(());
            }
        }
        decisions.close();
        while let Some(decision) = decisions.recv().await {
            batch.push(decision);
        }
        let now = clock.now();
        in_thread(tapes, &mut batch, move |tapes| {
            tapes.end_runs(|_, _| true);
            tapes.write(now);
        })
        .await;
    }
}

/// Adds the batch and does the rest where it may block.
async fn in_thread(
    tapes: Tapes,
    batch: &mut Vec<RevisionDecision>,
    then: impl FnOnce(&mut Tapes) + Send + 'static,
) -> Tapes {
    let taken = std::mem::take(batch);
    let (dir, config) = (tapes.dir().to_owned(), tapes.config().clone());
    let mut tapes = tapes;
    let work = tokio::task::spawn_blocking(move || {
        for decision in &taken {
            tapes.push(decision);
        }
        then(&mut tapes);
        tapes
    });
    match work.await {
        Ok(tapes) => tapes,
        Err(error) => {
            tracing::error!(%error, "writing decisions panicked; a new segment is begun");
            Tapes::new(dir, config)
        }
    }
}

#[cfg(test)]
mod tests;
