//! The access log: rows of finished requests, from the ingress into files of their own.
//!
//! Rows come in bursts and are worth less than console lines, so they do not share the day files: they have a bound on disk,
//! and the oldest go first. What is here becomes Azure's table `ContainerAppHTTPLogs` ([`columns`]).
//!
//! **Invariant:** a reader that follows sees every row that is written from then on, in the order of writing.

mod columns;
mod segments;

use std::{path::PathBuf, time::Duration};

use cove_base::Board;
use cove_traffic::AccessRecord;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

pub use self::columns::columns;
use self::segments::{COLUMNS, Segments, Writer, row};
use crate::{
    MonitorError,
    query::{self, Selection},
};

/// Rows written in one transaction at most.
const BATCH_MAX: usize = 500;
/// Requests that end within this time share a transaction.
const GATHER: Duration = Duration::from_millis(50);
/// The key under which every row arrives; apps have theirs.
const ALL: &str = "";

/// Where rows are kept and how many.
#[derive(Clone, Debug)]
pub struct HttpLogConfig {
    /// Directory of the files; made if it is not there.
    pub dir: PathBuf,
    /// Bytes of all files together; the oldest go first. At least 8 MiB are used.
    pub disk_max_bytes: u64,
    /// Days that rows are kept.
    pub retention_days: u16,
}

/// Which rows.
#[derive(Clone, Debug, Default)]
pub struct HttpQuery {
    /// App's resource id; `None` for all, also requests that found no app.
    pub app: Option<String>,
    /// Only this revision.
    pub revision: Option<String>,
    /// Only errors: [`AccessRecord::is_error`].
    pub only_errors: bool,
    /// So many of the newest first.
    pub tail: u32,
    /// Then what arrives, until the reader goes.
    pub follow: bool,
}

/// Gives rows; cheap to clone.
#[derive(Clone, Debug)]
pub struct HttpLog {
    segments: Segments,
    arrivals: Board<String, u64>,
}

/// The part that runs: takes rows and writes them.
#[derive(Debug)]
pub struct HttpLogService {
    writer: Writer,
    arrivals: Board<String, u64>,
    batches: u64,
    is_failing: bool,
}

impl HttpLog {
    /// Opens the directory; run the service to fill it.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn open(config: HttpLogConfig) -> Result<(Self, HttpLogService), MonitorError> {
        std::fs::create_dir_all(&config.dir)
            .map_err(|source| MonitorError::Io { what: format!("create `{}`", config.dir.display()), source })?;
        let (segments, arrivals) = (Segments::new(&config.dir), Board::default());
        let writer = Writer::new(segments.clone(), &config);
        let service = HttpLogService { writer, arrivals: arrivals.clone(), batches: 0, is_failing: false };
        Ok((Self { segments, arrivals }, service))
    }

    /// Rows in the order in which they were written: the last `tail`, then, if asked, what arrives.
    pub fn rows(&self, query: &HttpQuery) -> BoxStream<'static, Result<AccessRecord, MonitorError>> {
        let key = query.app.as_deref().unwrap_or(ALL).to_ascii_lowercase();
        let mut condition = if query.only_errors { "is_error" } else { "1" }.to_owned();
        let mut values = Vec::new();
        for (column, value) in [("app_key", query.app.as_ref().map(|_| &key)), ("revision", query.revision.as_ref())] {
            if let Some(value) = value {
                condition.push_str(&format!(" AND {column} = ?"));
                values.push(value.clone());
            }
        }
        let selection = Selection { table: "http", condition, values, key, columns: COLUMNS, parse: row };
        query::rows(&self.segments, &self.arrivals, selection, query.tail, query.follow)
    }
}

impl HttpLogService {
    /// Writes rows until `shutdown` or the end of them; what has come by then is written too.
    ///
    /// # Errors
    /// When the writing thread is gone. A batch that cannot be written is lost, and the server's log says so.
    pub async fn run(
        mut self,
        mut rows: mpsc::Receiver<AccessRecord>,
        shutdown: CancellationToken,
    ) -> Result<(), MonitorError> {
        let mut is_open = true;
        while is_open || !rows.is_empty() {
            let mut batch = Vec::new();
            tokio::select! {
                () = shutdown.cancelled() => is_open = false,
                received = rows.recv_many(&mut batch, BATCH_MAX) => is_open = received > 0,
            }
            if is_open && batch.len() < BATCH_MAX {
                tokio::select! {
                    () = shutdown.cancelled() => is_open = false,
                    () = tokio::time::sleep(GATHER) => {}
                }
            }
            while batch.len() < BATCH_MAX
                && let Ok(row) = rows.try_recv()
            {
                batch.push(row);
            }
            if !batch.is_empty() {
                self = self.write(batch).await?;
            }
        }
        Ok(())
    }

    async fn write(mut self, batch: Vec<AccessRecord>) -> Result<Self, MonitorError> {
        let (service, keys) = tokio::task::spawn_blocking(move || {
            let written = self.writer.write(&batch);
            (self, written)
        })
        .await
        .map_err(|_| MonitorError::Closed)?;
        self = service;
        let was_failing = std::mem::replace(&mut self.is_failing, keys.is_err());
        match keys {
            Ok(keys) => {
                self.batches += 1;
                for key in keys.into_iter().chain([ALL.to_owned()]) {
                    self.arrivals.set(key, self.batches);
                }
            }
            // once, not for every batch of a full disk
            Err(error) if !was_failing => {
                tracing::error!(error = &error as &dyn std::error::Error, "rows of the access log were not kept");
            }
            Err(_) => {}
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests;
