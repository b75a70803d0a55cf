//! Executions of jobs: put in once per cause, changed by the controller, kept for a while after their end.
//!
//! **Invariant:** a job has one execution per cause and one per name. **Invariant:** an execution that has ended is never
//! changed again. **Invariant:** of each job at most [`EXECUTION_HISTORY_MAX`] succeeded ones and as many others are kept.

use cove_model::{EXECUTION_HISTORY_MAX, Execution, ExecutionStatus, ResourceId, RevisionKey, RevisionName};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::Value;

use crate::{
    Provisioning, Store, StoreError,
    db::Tx,
    resources::{load as load_resource, time},
};

/// Executions of one job that have not ended: a line without an end would take the server's memory.
pub const OPEN_EXECUTIONS_MAX: usize = 10_000;

/// What became of [`Store::insert_execution`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inserted {
    /// It was put in.
    New,
    /// The job has one of the same cause already, of this name.
    Known(RevisionName),
}

/// Executions of a job that have not ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenExecutions {
    /// All of them.
    pub running: u32,
    /// Those among them of which no replica has run yet.
    pub pending: u32,
}

const COLUMNS: &str = "doc, stop_requested_at";

impl Store {
    /// Puts in a new execution unless its job has one of the same cause; tells the change feed of the job.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when the job is not there or being deleted, [`StoreError::ExecutionExists`] for a name that
    /// is taken: draw another one, [`StoreError::TooManyExecutions`] when [`OPEN_EXECUTIONS_MAX`] have not ended.
    pub async fn insert_execution(&self, execution: Execution) -> Result<Inserted, StoreError> {
        self.write(move |tx| {
            let job = load_resource(tx.db, execution.job.key())?
                .filter(|job| job.provisioning != Provisioning::Deleting)
                .ok_or_else(|| StoreError::NotFound { id: execution.job.to_string() })?;
            let cause = execution.cause.key();
            let sql = "SELECT name FROM executions WHERE job_key = ?1 AND cause = ?2";
            let mut query = tx.db.prepare_cached(sql)?;
            let known: Option<String> =
                query.query_row(params![execution.job.key(), cause], |row| row.get(0)).optional()?;
            drop(query);
            if let Some(known) = known.and_then(|name| RevisionName::new(name).ok()) {
                return Ok(Inserted::Known(known));
            }
            if find(tx.db, execution.job.key(), execution.name.as_str())?.is_some() {
                return Err(StoreError::ExecutionExists { name: execution.name.to_string() });
            }
            if has_too_many(tx.db, execution.job.key())? {
                return Err(StoreError::TooManyExecutions { job: execution.job.to_string(), max: OPEN_EXECUTIONS_MAX });
            }
            let mut insert = tx.db.prepare_cached(
                "INSERT INTO executions (job_key, name, cause, status, outcome, stop_requested_at, doc)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
            )?;
            insert.execute(params![
                execution.job.key(),
                execution.name.as_str(),
                cause,
                execution.status.as_arm(),
                outcome(execution.status),
                execution.stop_requested_at.map(|at| at.to_string()),
                serde_json::to_string(&execution)?,
            ])?;
            drop(insert);
            tx.changed(&job.id);
            Ok(Inserted::New)
        })
        .await
    }

    /// One execution.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn execution(&self, key: &RevisionKey) -> Result<Option<Execution>, StoreError> {
        self.read(|db| find(db, key.app.key(), key.name.as_str()))
    }

    /// All executions of a job that are kept, the newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn executions(&self, job: &ResourceId) -> Result<Vec<Execution>, StoreError> {
        self.read(|db| {
            let sql = format!("SELECT {COLUMNS} FROM executions WHERE job_key = ?1 ORDER BY seq DESC");
            let mut query = db.prepare_cached(&sql)?;
            let rows = query.query_map([job.key()], |row| Ok(from_row(row)))?;
            rows.map(|row| row?).collect()
        })
    }

    /// The executions of a job that have not ended, the oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn open_executions(&self, job: &ResourceId) -> Result<Vec<Execution>, StoreError> {
        self.read(|db| {
            let sql = format!("SELECT {COLUMNS} FROM executions WHERE job_key = ?1 AND outcome IS NULL ORDER BY seq");
            let mut query = db.prepare_cached(&sql)?;
            let rows = query.query_map([job.key()], |row| Ok(from_row(row)))?;
            rows.map(|row| row?).collect()
        })
    }

    /// Those of [`Store::open_executions`] that were put in after `seen`, and the number to ask with the next time; 0 asks
    /// for all.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn open_executions_since(&self, job: &ResourceId, seen: i64) -> Result<(Vec<Execution>, i64), StoreError> {
        self.read(|db| {
            let sql = format!(
                "SELECT {COLUMNS}, seq FROM executions WHERE job_key = ?1 AND outcome IS NULL AND seq > ?2 ORDER BY seq"
            );
            let mut query = db.prepare_cached(&sql)?;
            let mut rows = query.query(params![job.key(), seen])?;
            let (mut executions, mut last) = (Vec::new(), seen);
            while let Some(row) = rows.next()? {
                executions.push(from_row(row)?);
                last = row.get(2)?;
            }
            Ok((executions, last))
        })
    }

    /// Which executions of a job that have not ended were asked to stop, and when.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn stop_requests(&self, job: &ResourceId) -> Result<Vec<(RevisionName, Timestamp)>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT name, stop_requested_at FROM executions
                 WHERE job_key = ?1 AND outcome IS NULL AND stop_requested_at IS NOT NULL ORDER BY seq",
            )?;
            let rows = query.query_map([job.key()], |row| Ok((row.get::<_, String>(0)?, time(row, 1)?)))?;
            let mut requests = Vec::new();
            for row in rows {
                let (name, at) = row?;
                requests.extend(RevisionName::new(name).ok().map(|name| (name, at)));
            }
            Ok(requests)
        })
    }

    /// How many executions of a job have not ended.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn count_open_executions(&self, job: &ResourceId) -> Result<OpenExecutions, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT count(*), count(*) FILTER (WHERE status = 'Processing') FROM executions
                 WHERE job_key = ?1 AND outcome IS NULL",
            )?;
            let count = |value: i64| u32::try_from(value).unwrap_or(u32::MAX);
            Ok(query.query_row([job.key()], |row| {
                Ok(OpenExecutions { running: count(row.get(0)?), pending: count(row.get(1)?) })
            })?)
        })
    }

    /// Writes executions as they are now, all or nothing, and drops what the history has no room for. Those that are not
    /// there any more or have ended are left alone. The change feed is not told: whoever writes this knows it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn save_executions(&self, executions: Vec<Execution>) -> Result<(), StoreError> {
        self.write(move |tx| {
            let mut update = tx.db.prepare_cached(
                "UPDATE executions SET status = ?3, outcome = ?4, doc = ?5
                 WHERE job_key = ?1 AND name = ?2 AND outcome IS NULL",
            )?;
            let mut ended = Vec::new();
            for execution in &executions {
                let outcome = outcome(execution.status);
                let changed = update.execute(params![
                    execution.job.key(),
                    execution.name.as_str(),
                    execution.status.as_arm(),
                    outcome,
                    serde_json::to_string(execution)?,
                ])?;
                if let Some(outcome) = outcome.filter(|_| changed > 0) {
                    ended.push((&execution.job, outcome));
                }
            }
            drop(update);
            for (job, outcome) in ended {
                prune(tx, job, outcome)?;
            }
            Ok(())
        })
        .await
    }

    /// Asks for the end of one execution of a job, or of all that run; gives the names of those that have not ended.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] when there is no such execution; when the database cannot be written.
    pub async fn stop_executions(
        &self,
        job: ResourceId,
        only: Option<RevisionName>,
        now: Timestamp,
    ) -> Result<Vec<RevisionName>, StoreError> {
        self.write(move |tx| {
            if let Some(only) = &only
                && find(tx.db, job.key(), only.as_str())?.is_none()
            {
                return Err(StoreError::NotFound { id: format!("{job}/executions/{only}") });
            }
            let only = only.as_ref().map(RevisionName::as_str);
            tx.db.execute(
                "UPDATE executions SET stop_requested_at = ?3
                 WHERE job_key = ?1 AND outcome IS NULL AND stop_requested_at IS NULL AND (?2 IS NULL OR name = ?2)",
                params![job.key(), only, now.to_string()],
            )?;
            let mut query = tx.db.prepare_cached(
                "SELECT name FROM executions
                 WHERE job_key = ?1 AND outcome IS NULL AND (?2 IS NULL OR name = ?2) ORDER BY seq",
            )?;
            let names: Vec<String> =
                query.query_map(params![job.key(), only], |row| row.get(0))?.collect::<Result<_, _>>()?;
            drop(query);
            if let (false, Some(row)) = (names.is_empty(), load_resource(tx.db, job.key())?) {
                tx.changed(&row.id);
            }
            Ok(names.into_iter().filter_map(|name| RevisionName::new(name).ok()).collect())
        })
        .await
    }

    /// What [`Store::set_job_state`] kept.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn job_state(&self, job: &ResourceId) -> Result<Option<Value>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT state FROM job_states WHERE job_key = ?1")?;
            let text: Option<String> = query.query_row([job.key()], |row| row.get(0)).optional()?;
            Ok(text.map(|text| serde_json::from_str(&text)).transpose()?)
        })
    }

    /// Keeps what starts a job's executions must know after a restart; opaque to the store.
    ///
    /// # Errors
    /// When the database cannot be written. A job that is gone is left alone.
    pub async fn set_job_state(&self, job: ResourceId, state: Value) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.db.execute(
                "INSERT OR REPLACE INTO job_states (job_key, state) SELECT key, ?2 FROM resources WHERE key = ?1",
                params![job.key(), state.to_string()],
            )?;
            Ok(())
        })
        .await
    }
}

fn outcome(status: ExecutionStatus) -> Option<i64> {
    status.is_final().then(|| i64::from(status == ExecutionStatus::Succeeded))
}

fn find(db: &Connection, job_key: &str, name: &str) -> Result<Option<Execution>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM executions WHERE job_key = ?1 AND name = ?2");
    let mut query = db.prepare_cached(&sql)?;
    query.query_row(params![job_key, name], |row| Ok(from_row(row))).optional()?.transpose()
}

fn has_too_many(db: &Connection, job_key: &str) -> Result<bool, StoreError> {
    let mut query =
        db.prepare_cached("SELECT 1 FROM executions WHERE job_key = ?1 AND outcome IS NULL LIMIT 1 OFFSET ?2")?;
    let last = i64::try_from(OPEN_EXECUTIONS_MAX - 1).unwrap_or(i64::MAX);
    Ok(query.exists(params![job_key, last])?)
}

fn from_row(row: &Row<'_>) -> Result<Execution, StoreError> {
    let doc: String = row.get(0)?;
    let mut execution: Execution = serde_json::from_str(&doc)?;
    execution.stop_requested_at = row.get::<_, Option<String>>(1)?.map(|_| time(row, 1)).transpose()?;
    Ok(execution)
}

/// Drops the oldest of an outcome.
fn prune(tx: &mut Tx<'_>, job: &ResourceId, outcome: i64) -> Result<(), StoreError> {
    let kept = i64::try_from(EXECUTION_HISTORY_MAX).unwrap_or(i64::MAX);
    tx.db.execute(
        "DELETE FROM executions WHERE job_key = ?1 AND outcome = ?2 AND seq <=
             (SELECT seq FROM executions WHERE job_key = ?1 AND outcome = ?2 ORDER BY seq DESC LIMIT 1 OFFSET ?3)",
        params![job.key(), outcome, kept],
    )?;
    Ok(())
}

#[cfg(test)]
mod tests;
