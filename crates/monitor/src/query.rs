//! Reading: the last lines, then what arrives.

use std::collections::VecDeque;

use cove_base::Changes;
use futures_util::{StreamExt, stream, stream::BoxStream};
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

/// A selection in the shape of SQL.
#[derive(Clone, Debug)]
struct Selection<T> {
    table: &'static str,
    condition: String,
    values: Vec<String>,
    key: String,
    columns: &'static str,
    parse: fn(&rusqlite::Row<'_>) -> rusqlite::Result<Option<T>>,
}

/// Where a reader is: a day and the last row of it that was read.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    day: Date,
    seq: i64,
}

impl Monitor {
    /// Console lines, oldest first: the last `tail`, then, if asked, what arrives.
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
        self.rows(selection, query.tail, query.follow)
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
        self.rows(selection, query.tail, query.follow)
    }

    fn rows<T: Send + 'static>(
        &self,
        selection: Selection<T>,
        tail: u32,
        follow: bool,
    ) -> BoxStream<'static, Result<T, MonitorError>> {
        let reader = Reader {
            changes: follow.then(|| self.arrivals.subscribe()),
            days: self.days.clone(),
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
}

struct Reader<T> {
    days: Days,
    selection: Selection<T>,
    changes: Option<Changes<String>>,
    cursor: Option<Cursor>,
    tail: u32,
    ready: VecDeque<T>,
}

impl<T: Send + 'static> Reader<T> {
    async fn next(&mut self) -> Option<Result<T, MonitorError>> {
        loop {
            if let Some(row) = self.ready.pop_front() {
                return Some(Ok(row));
            }
            let (days, selection, cursor, tail) = (&self.days, self.selection.shallow(), self.cursor, self.tail);
            let read = days
                .blocking(move |days| match cursor {
                    None => selection.tail(days, tail),
                    Some(cursor) => selection.after(days, cursor),
                })
                .await;
            match read {
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
    fn tail(&self, days: &Days, tail: u32) -> Result<(Vec<T>, Cursor), MonitorError> {
        let mut found: VecDeque<T> = VecDeque::new();
        let mut cursor = None;
        for day in days.list().into_iter().rev() {
            let Some(db) = days.reader(day)? else { continue };
            if cursor.is_none() {
                let seq =
                    db.query_row(&format!("SELECT coalesce(max(seq), 0) FROM {}", self.table), [], |row| row.get(0));
                cursor = Some(Cursor { day, seq: seq? });
            }
            let left = i64::from(tail) - i64::try_from(found.len()).unwrap_or(i64::MAX);
            if left <= 0 {
                break;
            }
            let upto = cursor.filter(|cursor| cursor.day == day).map_or(i64::MAX, |cursor| cursor.seq);
            let newest_first = self.select(&db, &format!("seq <= {upto}"), "DESC", left)?;
            for row in newest_first.into_iter().filter_map(|(_, row)| row) {
                found.push_front(row);
            }
        }
        let cursor = cursor.unwrap_or(Cursor { day: Date::MIN, seq: 0 });
        Ok((found.into(), cursor))
    }

    /// The next rows behind a cursor, oldest first.
    fn after(&self, days: &Days, cursor: Cursor) -> Result<(Vec<T>, Cursor), MonitorError> {
        let start = cursor.day;
        let mut cursor = cursor;
        for day in days.list().into_iter().filter(|day| *day >= start) {
            let Some(db) = days.reader(day)? else { continue };
            let from = if day == start { cursor.seq } else { 0 };
            let rows = self.select(&db, &format!("seq > {from}"), "ASC", PAGE_ROWS)?;
            if let Some((seq, _)) = rows.last() {
                let next = Cursor { day, seq: *seq };
                return Ok((rows.into_iter().filter_map(|(_, row)| row).collect(), next));
            }
            cursor = Cursor { day, seq: from };
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
