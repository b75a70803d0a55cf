//! Reading: the last rows, then what arrives; from the day files and from every other sequence of files.

use std::collections::VecDeque;

use cove_base::{Board, Changes};
use futures_util::{FutureExt, StreamExt, stream, stream::BoxStream};
use jiff::civil::Date;
use rusqlite::{Connection, params_from_iter, types::Value};

use crate::{
    Monitor, MonitorError,
    days::{Days, from_nanos},
    rows::{ConsoleRow, Place, SystemRow},
};

/// Which console lines.
#[derive(Clone, Debug, Default)]
pub struct ConsoleQuery {
    /// App's resource id.
    pub app: String,
    /// Only this revision.
    pub revision: Option<String>,
    /// Only this replica.
    pub replica: Option<String>,
    /// Only this container.
    pub container: Option<String>,
    /// So many of the newest first, 0..=300 in Azure; any number here.
    pub tail: u32,
    /// Then what arrives, until the reader goes.
    pub follow: bool,
    /// What was copied already is enough: who asks cannot wait for the last lines.
    pub as_copied: bool,
}

/// Which system events.
#[derive(Clone, Debug, Default)]
pub struct SystemQuery {
    /// App's resource id, or `None` for a whole environment.
    pub app: Option<String>,
    /// Environment's resource id.
    pub environment: Option<String>,
    /// So many of the newest first.
    pub tail: u32,
    /// Then what arrives.
    pub follow: bool,
}

/// Rows read in one go.
const PAGE_ROWS: i64 = 500;

/// Files that hold rows of one table, one file after the other.
pub(crate) trait Files: Clone + Send + 'static {
    /// What a file is called; later ones are greater.
    type Key: Copy + Ord + Send + 'static;
    /// Before every file.
    const FIRST: Self::Key;

    /// The files that are there, oldest first.
    fn list(&self) -> Vec<Self::Key>;

    /// A read connection to a file; `None` when it is not there or not made yet.
    fn reader(&self, key: Self::Key) -> Result<Option<Connection>, MonitorError>;
}

impl Files for Days {
    type Key = Date;
    const FIRST: Date = Date::MIN;

    fn list(&self) -> Vec<Date> {
        Self::list(self)
    }

    fn reader(&self, key: Date) -> Result<Option<Connection>, MonitorError> {
        Self::reader(self, key)
    }
}

/// A selection in the shape of SQL.
#[derive(Clone, Debug)]
pub(crate) struct Selection<T> {
    pub(crate) table: &'static str,
    pub(crate) condition: String,
    pub(crate) values: Vec<String>,
    /// What is told when there are new rows.
    pub(crate) key: String,
    /// The first one is `seq`.
    pub(crate) columns: &'static str,
    pub(crate) parse: fn(&rusqlite::Row<'_>) -> rusqlite::Result<Option<T>>,
}

/// Where a reader is: a file and the last row of it that was read.
#[derive(Clone, Copy, Debug)]
struct Cursor<K> {
    file: K,
    seq: i64,
}

impl Monitor {
    /// Console lines, oldest first: the last `tail` of what was written before the call, then, if asked, what arrives.
    pub fn console(&self, query: &ConsoleQuery) -> BoxStream<'static, Result<ConsoleRow, MonitorError>> {
        let app = query.app.to_ascii_lowercase();
        let mut condition = "app = ?".to_owned();
        let mut values = vec![app.clone()];
        let filters = [("revision", &query.revision), ("replica", &query.replica), ("container", &query.container)];
        for (column, value) in filters {
            if let Some(value) = value {
                condition.push_str(&format!(" AND {column} = ?"));
                values.push(value.clone());
            }
        }
        let columns = "seq, at, environment, app, revision, replica, container, stream, log, file, offset";
        let selection = Selection { table: "console", condition, values, key: app, columns, parse: console_row };
        let rows = rows(&self.days, &self.arrivals, selection, query.tail, query.follow);
        if query.as_copied {
            return rows;
        }
        let (catch_up, app, replica) = (self.catch_up.clone(), query.app.clone(), query.replica.clone());
        async move {
            catch_up.wait(&app, replica.as_deref()).await;
            rows
        }
        .flatten_stream()
        .boxed()
    }

    /// System events, oldest first: the last `tail`, then, if asked, what arrives.
    pub fn system(&self, query: &SystemQuery) -> BoxStream<'static, Result<SystemRow, MonitorError>> {
        let (column, key) = match (&query.app, &query.environment) {
            (Some(app), _) => ("app", app),
            (None, Some(environment)) => ("environment", environment),
            (None, None) => return stream::empty().boxed(),
        };
        let key = key.to_ascii_lowercase();
        let selection = Selection {
            table: "system",
            condition: format!("{column} = ?"),
            values: vec![key.clone()],
            key,
            columns: "seq, event",
            parse: system_row,
        };
        rows(&self.days, &self.arrivals, selection, query.tail, query.follow)
    }
}

/// Rows, oldest first: the last `tail`, then, if asked, what `arrivals` tells of.
pub(crate) fn rows<F: Files, T: Send + 'static>(
    files: &F,
    arrivals: &Board<String, u64>,
    selection: Selection<T>,
    tail: u32,
    follow: bool,
) -> BoxStream<'static, Result<T, MonitorError>> {
    let reader = Reader {
        changes: follow.then(|| arrivals.subscribe()),
        files: files.clone(),
        selection,
        cursor: None,
        tail,
        ready: VecDeque::new(),
    };
    stream::unfold(reader, |mut reader| async move {
        let next = reader.next().await?;
        Some((next, reader))
    })
    .boxed()
}

struct Reader<F: Files, T> {
    files: F,
    selection: Selection<T>,
    changes: Option<Changes<String>>,
    cursor: Option<Cursor<F::Key>>,
    tail: u32,
    ready: VecDeque<T>,
}

impl<F: Files, T: Send + 'static> Reader<F, T> {
    async fn next(&mut self) -> Option<Result<T, MonitorError>> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                return Some(Ok(row));
            }
            let (files, selection, cursor, tail) =
                (self.files.clone(), self.selection.shallow(), self.cursor, self.tail);
            let read = tokio::task::spawn_blocking(move || match cursor {
                None => selection.tail(&files, tail),
                Some(cursor) => selection.after(&files, cursor),
            });
            match read.await.unwrap_or(Err(MonitorError::Closed)) {
                Err(error) => return Some(Err(error)),
                Ok((rows, cursor)) => {
                    let first = self.cursor.replace(cursor).is_none();
                    self.ready.extend(rows);
                    if !self.ready.is_empty() || first {
                        continue;
                    }
                }
            }
            let changes = self.changes.as_mut()?;
            while !changes.next().await.contains(&self.selection.key) {}
        }
    }
}

impl<T> Selection<T> {
    fn shallow(&self) -> Self {
        Self {
            table: self.table,
            condition: self.condition.clone(),
            values: self.values.clone(),
            key: self.key.clone(),
            columns: self.columns,
            parse: self.parse,
        }
    }

    /// The newest `tail` rows, oldest first, and the cursor behind them.
    fn tail<F: Files>(&self, files: &F, tail: u32) -> Result<(Vec<T>, Cursor<F::Key>), MonitorError> {
        let mut found: VecDeque<T> = VecDeque::new();
        let mut cursor = None;
        for file in files.list().into_iter().rev() {
            let Some(db) = files.reader(file)? else { continue };
            if cursor.is_none() {
                let seq =
                    db.query_row(&format!("SELECT coalesce(max(seq), 0) FROM {}", self.table), [], |row| row.get(0));
                cursor = Some(Cursor { file, seq: seq? });
            }
            let left = i64::from(tail) - i64::try_from(found.len()).unwrap_or(i64::MAX);
            if left <= 0 {
                break;
            }
            let upto = cursor.filter(|cursor| cursor.file == file).map_or(i64::MAX, |cursor| cursor.seq);
            let newest_first = self.select(&db, &format!("seq <= {upto}"), "DESC", left)?;
            for row in newest_first.into_iter().filter_map(|(_, row)| row) {
                found.push_front(row);
            }
        }
        let cursor = cursor.unwrap_or(Cursor { file: F::FIRST, seq: 0 });
        Ok((found.into(), cursor))
    }

    /// The next rows behind a cursor, oldest first.
    fn after<F: Files>(&self, files: &F, cursor: Cursor<F::Key>) -> Result<(Vec<T>, Cursor<F::Key>), MonitorError> {
        let start = cursor.file;
        let mut cursor = cursor;
        for file in files.list().into_iter().filter(|file| *file >= start) {
            let Some(db) = files.reader(file)? else { continue };
            let from = if file == start { cursor.seq } else { 0 };
            let rows = self.select(&db, &format!("seq > {from}"), "ASC", PAGE_ROWS)?;
            if let Some((seq, _)) = rows.last() {
                let next = Cursor { file, seq: *seq };
                return Ok((rows.into_iter().filter_map(|(_, row)| row).collect(), next));
            }
            cursor = Cursor { file, seq: from };
        }
        Ok((Vec::new(), cursor))
    }

    fn select(
        &self,
        db: &Connection,
        place: &str,
        order: &str,
        limit: i64,
    ) -> Result<Vec<(i64, Option<T>)>, MonitorError> {
        let Self { columns, table, condition, .. } = self;
        let sql =
            format!("SELECT {columns} FROM {table} WHERE {condition} AND {place} ORDER BY seq {order} LIMIT {limit}");
        let mut query = db.prepare(&sql)?;
        let values = self.values.iter().map(|value| Value::from(value.clone()));
        let rows = query.query_map(params_from_iter(values), |row| Ok((row.get(0)?, (self.parse)(row)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

fn console_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<ConsoleRow>> {
    let place = |column| Ok::<_, rusqlite::Error>(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0));
    Ok(Some(ConsoleRow {
        at: from_nanos(row.get(1)?),
        environment: row.get(2)?,
        app: row.get(3)?,
        revision: row.get(4)?,
        replica: row.get(5)?,
        container: row.get(6)?,
        stream: row.get(7)?,
        log: row.get(8)?,
        place: Place { file: place(9)?, offset: place(10)? },
    }))
}

fn system_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<SystemRow>> {
    Ok(serde_json::from_str(&row.get::<_, String>(1)?).ok())
}
