//! Console and system logs, the record of every wake, and the access log: ingest, keep, read, follow.
//!
//! Drivers leave console output in files ([`cove_runtime::logs`]); the ingester follows them by inotify and copies each
//! line into one SQLite file per day. A line's place in its file is its key, so reading a stretch twice after a crash
//! changes nothing. Followers are told *that* rows of an app arrived and read from where they were.
//!
//! **Invariant:** a line that a container wrote before its console is asked for is in the answer, as long as lines can be
//! written here, and within seconds.
//! **Invariant:** a source file is deleted only after its rows are on disk.
//! **Invariant:** retention is deleting a day's file; no row is ever updated.

mod days;
mod http;
mod ingest;
mod query;
mod rows;
mod session_rows;

use std::{
    future::poll_fn,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cove_base::{Board, Clock};
use cove_model::{SystemEvent, WakeRecord};
use jiff::Timestamp;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

pub use http::{HttpLog, HttpLogConfig, HttpLogService, HttpQuery, columns as http_columns};
pub use query::{ConsoleQuery, SystemQuery};
pub use rows::{ConsoleRow, SystemRow, WakeRow};
pub use session_rows::{SESSION_TABLE, session_columns};

use days::{Days, Write};
use ingest::{Asked, CatchUp};

/// Where logs are kept and for how long.
#[derive(Clone, Debug)]
pub struct MonitorConfig {
    /// Directory of the day files.
    pub dir: PathBuf,
    /// Directory into which drivers write.
    pub source_dir: PathBuf,
    /// Days a day's file is kept, 1..=730, default 30 (Azure's Log Analytics: 30).
    pub retention_days: u16,
}

/// What can go wrong with logs.
#[derive(Debug, thiserror::Error)]
pub enum MonitorError {
    /// A day file cannot be read or written.
    #[error("failed to read or write the log database")]
    Sqlite(#[from] rusqlite::Error),
    /// A file or directory.
    #[error("failed to {what}")]
    Io {
        /// To do what.
        what: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The writer has ended.
    #[error("the log store is closed")]
    Closed,
}

/// Keeps and gives logs; cheap to clone.
#[derive(Clone, Debug)]
pub struct Monitor {
    days: Days,
    events: mpsc::Sender<SystemEvent>,
    arrivals: Board<String, u64>,
    told: Told,
    catch_up: CatchUp,
}

/// Events that were written down, for those in this process who listen.
#[derive(Clone, Debug)]
struct Told {
    sender: broadcast::Sender<SystemEvent>,
    is_writing: Arc<AtomicBool>,
}

/// The part that runs: ingester, writer of events, retention.
#[derive(Debug)]
pub struct MonitorService {
    config: MonitorConfig,
    days: Days,
    events: mpsc::Receiver<SystemEvent>,
    told: Told,
    clock: Clock,
    asked: Asked,
}

/// Events that may wait for the writer; beyond that senders wait.
const EVENTS_QUEUED_MAX: usize = 1024;
/// Events written in one go.
const EVENTS_BATCH_MAX: usize = 256;
/// Events that a listener may be behind; beyond that it loses the oldest and is told how many.
const LISTENER_BEHIND_MAX: usize = 4096;

impl Monitor {
    /// Opens the directory of day files; run the service to fill it.
    ///
    /// # Errors
    /// When a directory cannot be made or the writer cannot start.
    pub fn open(config: MonitorConfig) -> Result<(Self, MonitorService), MonitorError> {
        for dir in [&config.dir, &config.source_dir] {
            std::fs::create_dir_all(dir)
                .map_err(|source| MonitorError::Io { what: format!("create `{}`", dir.display()), source })?;
        }
        let arrivals = Board::default();
        let days = Days::open(&config.dir, arrivals.clone())?;
        let (events, received) = mpsc::channel(EVENTS_QUEUED_MAX);
        let told = Told { sender: broadcast::Sender::new(LISTENER_BEHIND_MAX), is_writing: Arc::default() };
        let (catch_up, asked) = CatchUp::new();
        let (ours, its) = (days.clone(), told.clone());
        let service = MonitorService { config, days: ours, events: received, told: its, clock: Clock::real(), asked };
        Ok((Self { days, events, arrivals, told, catch_up }, service))
    }

    /// Where parts of the server send system events.
    #[must_use]
    pub fn events(&self) -> mpsc::Sender<SystemEvent> {
        self.events.clone()
    }

    /// System events of all apps from now on, each once it is written down.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<SystemEvent> {
        self.told.sender.subscribe()
    }

    /// Whether every system event that was sent is written down.
    #[must_use]
    pub fn is_caught_up(&self) -> bool {
        self.events.capacity() == self.events.max_capacity() && !self.told.is_writing.load(Ordering::Acquire)
    }

    /// Keeps the record of a wake.
    ///
    /// # Errors
    /// When it cannot be written.
    pub async fn record_wake(&self, app: &str, wake: WakeRecord) -> Result<(), MonitorError> {
        self.days.write(Write::Wake(app.to_ascii_lowercase(), Box::new(wake))).await
    }

    /// The newest wakes, newest first, of one app or of all.
    ///
    /// # Errors
    /// When a day file cannot be read.
    pub async fn wakes(&self, app: Option<String>, limit: u32) -> Result<Vec<WakeRow>, MonitorError> {
        self.days.wakes(app.map(|app| app.to_ascii_lowercase()), limit).await
    }
}

impl MonitorService {
    /// Keeps system events by a virtual clock too: where it is behind the machine's, their days are kept from its time on.
    #[must_use]
    pub fn with_clock(self, clock: Clock) -> Self {
        Self { clock, ..self }
    }

    /// Runs until `shutdown`; then ingests what is there once more and returns.
    ///
    /// # Errors
    /// When the log files cannot be watched.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), MonitorError> {
        let Self { config, days, mut events, told, clock, asked } = self;
        let ingester = ingest::Ingester::open(&config.source_dir, days.clone(), asked)?;
        let ingested = tokio::spawn(ingester.run(shutdown.clone()));
        let mut sweep = tokio::time::interval(Duration::from_secs(3600));
        loop {
            let mut batch = Vec::new();
            tokio::select! {
                () = shutdown.cancelled() => break,
                _ = sweep.tick() => {
                    let now = clock.now().min(Timestamp::now());
                    days.forget_older_than(config.retention_days, now).await?;
                }
                received = poll_fn(|context| {
                    // said before any is taken: whoever finds none that wait finds this
                    told.is_writing.store(true, Ordering::Release);
                    let received = events.poll_recv_many(context, &mut batch, EVENTS_BATCH_MAX);
                    if received.is_pending() {
                        told.is_writing.store(false, Ordering::Release);
                    }
                    received
                }) => {
                    if received == 0 {
                        break;
                    }
                    write_events(&days, &told, batch).await;
                    told.is_writing.store(false, Ordering::Release);
                }
            }
        }
        events.close();
        let mut rest = Vec::new();
        while events.recv_many(&mut rest, EVENTS_BATCH_MAX).await > 0 {
            write_events(&days, &told, std::mem::take(&mut rest)).await;
        }
        ingested.await.unwrap_or(Err(MonitorError::Closed))
    }
}

async fn write_events(days: &Days, told: &Told, batch: Vec<SystemEvent>) {
    let heard = if told.sender.receiver_count() > 0 { batch.clone() } else { Vec::new() };
    if let Err(error) = days.write(Write::Events(batch)).await {
        tracing::error!(error = &error as &dyn std::error::Error, "system events were not kept");
    }
    for event in heard {
        // nobody listens any more
        let _gone = told.sender.send(event);
    }
}

/// One answer of the writer thread.
type Ack = oneshot::Sender<Result<(), MonitorError>>;

/// What is shared by all readers of one directory.
type SharedPath = Arc<PathBuf>;

#[cfg(test)]
mod tests;
