//! One SQLite file per UTC day; one writer thread, readers open what they need.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use cove_base::Board;
use cove_model::{SystemEvent, WakeRecord};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use rusqlite::{Connection, OpenFlags, params};
use tokio::sync::oneshot;

use crate::{
    Ack, MonitorError, SharedPath,
    rows::{ConsoleRow, WakeRow},
};

/// Batches that may wait for the writer.
const QUEUE_MAX: usize = 64;
/// Days whose files the writer keeps open.
const OPEN_MAX: usize = 3;

/// `user_version` of a file whose tables are there.
const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
BEGIN;
CREATE TABLE IF NOT EXISTS console (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, environment TEXT NOT NULL, app TEXT NOT NULL, revision TEXT NOT NULL,
    replica TEXT NOT NULL, container TEXT NOT NULL, stream TEXT NOT NULL, log TEXT NOT NULL,
    file INTEGER NOT NULL, offset INTEGER NOT NULL, UNIQUE (replica, container, file, offset));
CREATE INDEX IF NOT EXISTS console_by_app ON console (app, seq);
CREATE TABLE IF NOT EXISTS system (
    seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, app TEXT NOT NULL, environment TEXT NOT NULL, event TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS system_by_app ON system (app, seq);
CREATE TABLE IF NOT EXISTS wakes (seq INTEGER PRIMARY KEY, at INTEGER NOT NULL, app TEXT NOT NULL, wake TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS wakes_by_app ON wakes (app, seq);
PRAGMA user_version = 1;
COMMIT;
";

/// The day files. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Days {
    dir: SharedPath,
    writer: mpsc::SyncSender<(Write, Ack)>,
}

/// What can be written.
#[derive(Debug)]
pub(crate) enum Write {
    Console(Vec<ConsoleRow>),
    Events(Vec<SystemEvent>),
    Wake(String, Box<WakeRecord>),
    /// Everything written so far must reach the disk before the answer.
    Flush,
}

impl Days {
    pub(crate) fn open(dir: &Path, arrivals: Board<String, u64>) -> Result<Self, MonitorError> {
        let (writer, queue) = mpsc::sync_channel(QUEUE_MAX);
        let dir: SharedPath = Arc::new(dir.to_owned());
        thread::Builder::new()
            .name("log-writer".into())
            .spawn({
                let dir = Arc::clone(&dir);
                move || write_loop(&dir, &queue, &arrivals)
            })
            .map_err(|source| MonitorError::Io { what: "start the log writer".into(), source })?;
        Ok(Self { dir, writer })
    }

    /// Writes a batch; the answer comes after the commit.
    pub(crate) async fn write(&self, write: Write) -> Result<(), MonitorError> {
        let (ack, acked) = oneshot::channel();
        match self.writer.try_send((write, ack)) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Full(job)) => {
                let writer = self.writer.clone();
                let sent = tokio::task::spawn_blocking(move || writer.send(job).is_ok()).await;
                if !sent.unwrap_or(false) {
                    return Err(MonitorError::Closed);
                }
            }
            Err(mpsc::TrySendError::Disconnected(_)) => return Err(MonitorError::Closed),
        }
        acked.await.map_err(|_| MonitorError::Closed)?
    }

    /// The days that have a file, oldest first.
    pub(crate) fn list(&self) -> Vec<Date> {
        let Ok(entries) = std::fs::read_dir(&*self.dir) else { return Vec::new() };
        let mut days: Vec<Date> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".db")?.parse().ok()).collect();
        days.sort_unstable();
        days
    }

    /// A read connection to a day's file; `None` when there is none.
    pub(crate) fn reader(&self, day: Date) -> Result<Option<Connection>, MonitorError> {
        let path = day_path(&self.dir, day);
        if !path.exists() {
            return Ok(None);
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        db.busy_timeout(Duration::from_secs(5))?;
        // the writer may be just making it: then it has no rows yet
        let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        Ok((version == SCHEMA_VERSION).then_some(db))
    }

    /// Runs a read off the async threads.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Self) -> Result<T, MonitorError> + Send + 'static,
    ) -> Result<T, MonitorError> {
        let days = self.clone();
        tokio::task::spawn_blocking(move || f(&days)).await.unwrap_or(Err(MonitorError::Closed))
    }

    pub(crate) async fn wakes(&self, app: Option<String>, limit: u32) -> Result<Vec<WakeRow>, MonitorError> {
        self.blocking(move |days| {
            let mut found = Vec::new();
            for day in days.list().into_iter().rev() {
                let Some(db) = days.reader(day)? else { continue };
                let mut query =
                    db.prepare("SELECT app, wake FROM wakes WHERE ?1 IS NULL OR app = ?1 ORDER BY seq DESC LIMIT ?2")?;
                let left = i64::from(limit) - i64::try_from(found.len()).unwrap_or(i64::MAX);
                let rows = query.query_map(params![app, left], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
                for row in rows {
                    let (app, wake) = row?;
                    if let Ok(wake) = serde_json::from_str(&wake) {
                        found.push(WakeRow { app, wake });
                    }
                }
                if found.len() >= limit as usize {
                    break;
                }
            }
            Ok(found)
        })
        .await
    }

    /// Deletes the files of days that ended more than `days_kept` days before `now`.
    pub(crate) async fn forget_older_than(&self, days_kept: u16, now: Timestamp) -> Result<(), MonitorError> {
        self.blocking(move |days| {
            let today = day_of(now);
            for day in days.list() {
                let age = today.since(day).map_or(0, |span| span.get_days());
                if age > i32::from(days_kept) {
                    for suffix in ["", "-wal", "-shm"] {
                        let mut path = day_path(&days.dir, day).into_os_string();
                        path.push(suffix);
                        let _may_be_missing = std::fs::remove_file(path);
                    }
                    tracing::info!(%day, "logs of a day were forgotten");
                }
            }
            Ok(())
        })
        .await
    }
}

pub(crate) fn day_of(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

fn day_path(dir: &Path, day: Date) -> PathBuf {
    dir.join(format!("{day}.db"))
}

/// Nanoseconds since 1970; fits until 2262.
pub(crate) fn nanos(at: Timestamp) -> i64 {
    i64::try_from(at.as_nanosecond()).unwrap_or(i64::MAX)
}

pub(crate) fn from_nanos(nanos: i64) -> Timestamp {
    Timestamp::from_nanosecond(i128::from(nanos)).unwrap_or(Timestamp::UNIX_EPOCH)
}

struct Writer<'a> {
    dir: &'a Path,
    open: BTreeMap<Date, Connection>,
}

fn write_loop(dir: &Path, queue: &mpsc::Receiver<(Write, Ack)>, arrivals: &Board<String, u64>) {
    let mut writer = Writer { dir, open: BTreeMap::new() };
    let mut sequence = 0_u64;
    while let Ok((write, ack)) = queue.recv() {
        let mut touched = Vec::new();
        let result = writer.write(write, &mut touched);
        if result.is_ok() {
            touched.sort_unstable();
            touched.dedup();
            for key in touched {
                sequence += 1;
                arrivals.set(key, sequence);
            }
        }
        let _caller_left = ack.send(result);
    }
}

impl Writer<'_> {
    fn day(&mut self, day: Date) -> Result<&mut Connection, MonitorError> {
        if !self.open.contains_key(&day) {
            let db = Connection::open(day_path(self.dir, day))?;
            db.pragma_update(None, "journal_mode", "WAL")?;
            db.pragma_update(None, "synchronous", "NORMAL")?;
            db.busy_timeout(Duration::from_secs(5))?;
            db.execute_batch(SCHEMA)?;
            while self.open.len() >= OPEN_MAX {
                self.open.pop_first();
            }
            self.open.insert(day, db);
        }
        self.open.get_mut(&day).ok_or(MonitorError::Closed)
    }

    fn write(&mut self, write: Write, touched: &mut Vec<String>) -> Result<(), MonitorError> {
        match write {
            Write::Console(rows) => {
                let mut by_day: BTreeMap<Date, Vec<ConsoleRow>> = BTreeMap::new();
                for row in rows {
                    by_day.entry(day_of(row.at)).or_default().push(row);
                }
                for (day, rows) in by_day {
                    self.console(day, rows, touched)?;
                }
                Ok(())
            }
            Write::Events(events) => {
                let mut by_day: BTreeMap<Date, Vec<SystemEvent>> = BTreeMap::new();
                for event in events {
                    by_day.entry(day_of(event.at)).or_default().push(event);
                }
                for (day, events) in by_day {
                    self.events(day, &events, touched)?;
                }
                Ok(())
            }
            Write::Wake(app, wake) => {
                let text = serde_json::to_string(&wake).unwrap_or_default();
                let db = self.day(day_of(wake.accepted_at))?;
                db.execute(
                    "INSERT INTO wakes (at, app, wake) VALUES (?1, ?2, ?3)",
                    params![nanos(wake.accepted_at), app, text],
                )?;
                Ok(())
            }
            Write::Flush => {
                for db in self.open.values() {
                    db.pragma_query(None, "wal_checkpoint", |_| Ok(()))?;
                }
                Ok(())
            }
        }
    }

    fn console(&mut self, day: Date, rows: Vec<ConsoleRow>, touched: &mut Vec<String>) -> Result<(), MonitorError> {
        let tx = self.day(day)?.transaction()?;
        {
            let mut insert = tx.prepare_cached(
                "INSERT OR IGNORE INTO console (at, environment, app, revision, replica, container, stream, log, file, offset)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?;
            for row in rows {
                let app = row.app.to_ascii_lowercase();
                insert.execute(params![
                    nanos(row.at),
                    row.environment.to_ascii_lowercase(),
                    app,
                    row.revision,
                    row.replica,
                    row.container,
                    row.stream,
                    row.log,
                    i64::try_from(row.place.file).unwrap_or(i64::MAX),
                    i64::try_from(row.place.offset).unwrap_or(i64::MAX)
                ])?;
                if touched.last() != Some(&app) {
                    touched.push(app);
                }
            }
        }
        Ok(tx.commit()?)
    }

    fn events(&mut self, day: Date, events: &[SystemEvent], touched: &mut Vec<String>) -> Result<(), MonitorError> {
        let tx = self.day(day)?.transaction()?;
        for event in events {
            let app = event.app.clone().unwrap_or_default().to_ascii_lowercase();
            let environment = event.environment.clone().unwrap_or_default().to_ascii_lowercase();
            let text = serde_json::to_string(event).unwrap_or_default();
            tx.prepare_cached("INSERT INTO system (at, app, environment, event) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![nanos(event.at), app, environment, text])?;
            touched.extend([app, environment]);
        }
        Ok(tx.commit()?)
    }
}
