//! The files of the access log: one is written, those before it are full or of another day, the oldest are deleted.
//!
//! **Invariant:** the files together take no more than the bound and one batch of rows; rows are never changed.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use cove_traffic::{AccessRecord, Ending};
use jiff::Timestamp;
use rusqlite::{Connection, OpenFlags, Row, types::Value};

use super::HttpLogConfig;
use crate::{
    MonitorError,
    days::{day_of, from_nanos, nanos},
    query::Files,
};

/// The bound is divided into so many files.
const SEGMENTS: u64 = 8;
/// A file is not put aside before it has this size.
const SEGMENT_MIN_BYTES: u64 = 1 << 20;
const SCHEMA_VERSION: i64 = 1;
const SCHEMA: &str = "
BEGIN;
CREATE TABLE IF NOT EXISTS http (
    seq INTEGER PRIMARY KEY, app_key TEXT NOT NULL, is_error INTEGER NOT NULL,
    at INTEGER NOT NULL, environment TEXT NOT NULL, app TEXT NOT NULL, revision TEXT NOT NULL, replica TEXT NOT NULL,
    upstream TEXT, attempts INTEGER NOT NULL, method TEXT NOT NULL, authority TEXT NOT NULL, path TEXT NOT NULL,
    protocol TEXT NOT NULL, user_agent TEXT NOT NULL, forwarded_for TEXT NOT NULL, client TEXT NOT NULL,
    connection INTEGER NOT NULL, status INTEGER NOT NULL, reason TEXT NOT NULL, ending TEXT NOT NULL,
    is_upgraded INTEGER NOT NULL, received_bytes INTEGER NOT NULL, sent_bytes INTEGER NOT NULL,
    duration_us INTEGER NOT NULL, wait_us INTEGER, head_us INTEGER, request_id TEXT NOT NULL, trace_id TEXT NOT NULL,
    left_out INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS http_by_app ON http (app_key, seq);
PRAGMA user_version = 1;
COMMIT;
";
/// What is read, in the order of [`row`].
pub(super) const COLUMNS: &str = "seq, at, environment, app, revision, replica, upstream, attempts, method, authority, path, \
     protocol, user_agent, forwarded_for, client, connection, status, reason, ending, is_upgraded, received_bytes, \
     sent_bytes, duration_us, wait_us, head_us, request_id, trace_id, left_out";
const INSERT: &str = "INSERT INTO http (app_key, is_error, at, environment, app, revision, replica, upstream, attempts, method, \
     authority, path, protocol, user_agent, forwarded_for, client, connection, status, reason, ending, is_upgraded, \
     received_bytes, sent_bytes, duration_us, wait_us, head_us, request_id, trace_id, left_out) \
     VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)";

/// The files; their names are the milliseconds since 1970 at which they were begun.
#[derive(Clone, Debug)]
pub(crate) struct Segments {
    dir: Arc<Path>,
}

impl Segments {
    pub(crate) fn new(dir: &Path) -> Self {
        Self { dir: dir.into() }
    }

    fn path(&self, key: u64) -> PathBuf {
        self.dir.join(format!("{key:020}.db"))
    }

    fn bytes(&self, key: u64) -> u64 {
        let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
        size(self.path(key)) + size(self.path(key).with_extension("db-wal"))
    }

    fn delete(&self, key: u64) {
        for extension in ["db", "db-wal", "db-shm"] {
            let _may_be_missing = std::fs::remove_file(self.path(key).with_extension(extension));
        }
    }
}

impl Files for Segments {
    type Key = u64;
    const FIRST: u64 = 0;

    fn list(&self) -> Vec<u64> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let mut keys: Vec<u64> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".db")?.parse().ok()).collect();
        keys.sort_unstable();
        keys
    }

    fn reader(&self, key: u64) -> Result<Option<Connection>, MonitorError> {
        let path = self.path(key);
        if !path.exists() {
            return Ok(None);
        }
        let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
        db.busy_timeout(Duration::from_secs(5))?;
        // the writer may be just making it: then it has no rows yet
        let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
        Ok((version == SCHEMA_VERSION).then_some(db))
    }
}

/// Writes rows; there is one.
#[derive(Debug)]
pub(crate) struct Writer {
    segments: Segments,
    disk_max_bytes: u64,
    segment_bytes: u64,
    kept_ms: u64,
    open: Option<(u64, Connection)>,
}

impl Writer {
    pub(crate) fn new(segments: Segments, config: &HttpLogConfig) -> Self {
        let segment_bytes = (config.disk_max_bytes / SEGMENTS).max(SEGMENT_MIN_BYTES);
        Self {
            segments,
            disk_max_bytes: config.disk_max_bytes.max(SEGMENTS * SEGMENT_MIN_BYTES),
            segment_bytes,
            kept_ms: u64::from(config.retention_days) * 24 * 3600 * 1000,
            open: None,
        }
    }

    /// Writes rows; gives the keys of the apps that have new ones.
    pub(crate) fn write(&mut self, rows: &[AccessRecord]) -> Result<BTreeSet<String>, MonitorError> {
        let written = self.try_write(rows);
        if written.is_err() {
            // a file that cannot be written may be one that can be opened anew
            self.open = None;
        }
        written
    }

    fn try_write(&mut self, rows: &[AccessRecord]) -> Result<BTreeSet<String>, MonitorError> {
        let mut keys = BTreeSet::new();
        let tx = self.db(Timestamp::now())?.transaction()?;
        {
            let mut insert = tx.prepare_cached(INSERT)?;
            for row in rows {
                let key = row.app.to_ascii_lowercase();
                insert.execute(rusqlite::params_from_iter(values(row, &key)))?;
                if !key.is_empty() {
                    keys.insert(key);
                }
            }
        }
        tx.commit()?;
        Ok(keys)
    }

    /// The file to write: the last one while it has room and is of today, else a new one.
    fn db(&mut self, now: Timestamp) -> Result<&mut Connection, MonitorError> {
        let now_ms = u64::try_from(now.as_millisecond()).unwrap_or(0);
        let newest = match &self.open {
            Some((key, _)) => Some(*key),
            None => self.segments.list().last().copied(),
        };
        let is_today = |key: u64| millis(key).is_some_and(|begun| day_of(begun) == day_of(now));
        let current = newest.filter(|key| is_today(*key) && self.segments.bytes(*key) < self.segment_bytes);
        if current.is_none() || self.open.is_none() {
            // a clock that went back must not begin a file before the last one
            let key = current.unwrap_or_else(|| newest.map_or(now_ms, |last| now_ms.max(last + 1)));
            self.open = None;
            let db = self.begin(key)?;
            self.open = Some((key, db));
            self.forget(key, now_ms);
        }
        self.open.as_mut().map(|(_, db)| db).ok_or(MonitorError::Closed)
    }

    fn begin(&self, key: u64) -> Result<Connection, MonitorError> {
        let db = Connection::open(self.segments.path(key))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "NORMAL")?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.execute_batch(SCHEMA)?;
        Ok(db)
    }

    /// Deletes the oldest files until the rest, and one that is as full as it gets, is within the bound, and those that are
    /// too old.
    fn forget(&self, current: u64, now_ms: u64) {
        let old: Vec<u64> = self.segments.list().into_iter().filter(|key| *key < current).collect();
        let mut bytes: u64 = old.iter().map(|key| self.segments.bytes(*key)).sum();
        for (at, key) in old.iter().enumerate() {
            // it has rows up to the next one's begin
            let ended = old.get(at + 1).copied().unwrap_or(current);
            if bytes + self.segment_bytes <= self.disk_max_bytes && ended + self.kept_ms >= now_ms {
                return;
            }
            bytes -= self.segments.bytes(*key);
            self.segments.delete(*key);
        }
    }
}

fn millis(key: u64) -> Option<Timestamp> {
    Timestamp::from_millisecond(i64::try_from(key).ok()?).ok()
}

fn values(row: &AccessRecord, key: &str) -> [Value; 29] {
    let text = |text: &str| Value::from(text.to_owned());
    let number = |number: u64| Value::from(i64::try_from(number).unwrap_or(i64::MAX));
    [
        text(key),
        Value::from(row.is_error()),
        Value::from(nanos(row.started_at)),
        text(&row.environment),
        text(&row.app),
        text(&row.revision),
        text(&row.replica),
        Value::from(row.upstream.map(|address| address.to_string())),
        number(row.attempts.into()),
        text(&row.method),
        text(&row.authority),
        text(&row.path),
        text(&row.protocol),
        text(&row.user_agent),
        text(&row.forwarded_for),
        text(&row.client.to_string()),
        number(row.connection),
        number(row.status.into()),
        text(&row.reason),
        text(row.ending.word()),
        Value::from(row.is_upgraded),
        number(row.received_bytes),
        number(row.sent_bytes),
        number(row.duration_us),
        row.wait_us.map_or(Value::Null, number),
        row.head_us.map_or(Value::Null, number),
        text(&row.request_id),
        text(&row.trace_id),
        number(row.left_out),
    ]
}

/// A row as [`COLUMNS`] reads it; `None` for one that nobody of ours wrote.
pub(super) fn row(row: &Row<'_>) -> rusqlite::Result<Option<AccessRecord>> {
    let number = |column| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0));
    let optional = |column| {
        Ok::<_, rusqlite::Error>(row.get::<_, Option<i64>>(column)?.and_then(|number| u64::try_from(number).ok()))
    };
    let (client, ending): (String, String) = (row.get(14)?, row.get(18)?);
    let (Ok(client), Some(ending)) = (client.parse(), Ending::parse(&ending)) else { return Ok(None) };
    Ok(Some(AccessRecord {
        started_at: from_nanos(row.get(1)?),
        environment: row.get(2)?,
        app: row.get(3)?,
        revision: row.get(4)?,
        replica: row.get(5)?,
        upstream: row.get::<_, Option<String>>(6)?.and_then(|address| address.parse().ok()),
        attempts: row.get(7)?,
        method: row.get(8)?,
        authority: row.get(9)?,
        path: row.get(10)?,
        protocol: row.get(11)?,
        user_agent: row.get(12)?,
        forwarded_for: row.get(13)?,
        client,
        connection: number(15)?,
        status: row.get(16)?,
        reason: row.get(17)?,
        ending,
        is_upgraded: row.get(19)?,
        received_bytes: number(20)?,
        sent_bytes: number(21)?,
        duration_us: number(22)?,
        wait_us: optional(23)?,
        head_us: optional(24)?,
        request_id: row.get(25)?,
        trace_id: row.get(26)?,
        left_out: number(27)?,
    }))
}
