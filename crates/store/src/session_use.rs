//! What sessions of pools took: metered from the very rows that say what a session is, and kept after it is gone.
//!
//! When a session was made, given to an identifier and ended is written in the transaction that makes it so: there is no
//! moment at which a crash loses or doubles a second. When it was ready and how much processor time it used comes from the
//! driver, which keeps both whatever happens to the server.
//!
//! **Invariant:** no identifier is in here; a digest of it finds the sessions of one who knows it.
//! **Invariant:** at most [`SESSION_USES_MAX`] sessions that have ended are kept one by one; the others are in the sums.

use cove_model::{Bytes, MilliCpu, ReplicaName, ResourceId, RevisionName, Session, SessionIdentifier, SessionPool};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::{Store, StoreError, resources::to_i64};

/// Sessions that have ended and are kept one by one, over all pools.
pub const SESSION_USES_MAX: u32 = 100_000;

/// What one session took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionUse {
    /// Its replica.
    pub replica: ReplicaName,
    /// What clients see of it (`x-ms-session-guid`).
    pub guid: String,
    /// What it was made of.
    pub generation: RevisionName,
    /// Processors that it asked for.
    pub cpu: MilliCpu,
    /// Memory that it asked for.
    pub memory: Bytes,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it could first serve.
    pub ready_at: Option<Timestamp>,
    /// When it got its identifier.
    pub allocated_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Why.
    pub reason: Option<String>,
    /// Processor time that it used, in microseconds; of one that runs, as of a moment ago.
    pub cpu_us: u64,
}

impl SessionUse {
    /// Milliseconds that it waited ready and belonged to nobody, until `now` at most.
    #[must_use]
    pub fn ready_ms(&self, now: Timestamp) -> u64 {
        let until = self.allocated_at.or(self.ended_at).unwrap_or(now);
        self.ready_at.map_or(0, |from| between(from, until))
    }

    /// Milliseconds that it belonged to an identifier, until `now` at most.
    #[must_use]
    pub fn allocated_ms(&self, now: Timestamp) -> u64 {
        self.allocated_at.map_or(0, |from| between(from, self.ended_at.unwrap_or(now)))
    }

    /// Processors that it was given times the time that it belonged to an identifier, in microseconds of one processor.
    #[must_use]
    pub fn core_us(&self, now: Timestamp) -> u64 {
        // thousandths of processors times milliseconds
        u64::from(self.cpu.0).saturating_mul(self.allocated_ms(now))
    }

    /// Memory that it was given times the time that it was ready or belonged to an identifier, in KiB and milliseconds.
    #[must_use]
    pub fn memory_kib_ms(&self, now: Timestamp) -> u64 {
        (self.memory.0 >> 10).saturating_mul(self.ready_ms(now).saturating_add(self.allocated_ms(now)))
    }
}

/// What the sessions of a pool took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionUseSum {
    /// Sessions that were made.
    pub sessions: u64,
    /// Those among them that got an identifier.
    pub allocated: u64,
    /// As [`SessionUse::ready_ms`].
    pub ready_ms: u64,
    /// As [`SessionUse::allocated_ms`].
    pub allocated_ms: u64,
    /// As [`SessionUse::cpu_us`].
    pub cpu_us: u64,
    /// As [`SessionUse::core_us`].
    pub core_us: u64,
    /// As [`SessionUse::memory_kib_ms`].
    pub memory_kib_ms: u64,
}

impl SessionUseSum {
    fn add(&mut self, one: &SessionUse, now: Timestamp) {
        self.sessions += 1;
        self.allocated += u64::from(one.allocated_at.is_some());
        self.ready_ms = self.ready_ms.saturating_add(one.ready_ms(now));
        self.allocated_ms = self.allocated_ms.saturating_add(one.allocated_ms(now));
        self.cpu_us = self.cpu_us.saturating_add(one.cpu_us);
        self.core_us = self.core_us.saturating_add(one.core_us(now));
        self.memory_kib_ms = self.memory_kib_ms.saturating_add(one.memory_kib_ms(now));
    }
}

/// What the driver knows of a session's replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionNote {
    /// Which.
    pub replica: ReplicaName,
    /// When it could first serve.
    pub ready_at: Option<Timestamp>,
    /// Processor time since it was made, in microseconds.
    pub cpu_us: Option<u64>,
}

const COLUMNS: &str =
    "replica, guid, generation, cpu_milli, memory_bytes, created_at, ready_at, allocated_at, ended_at, reason, cpu_us";

impl Store {
    /// The sessions of a pool that are kept one by one, the newest first; of a pool that is gone too.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn session_uses(&self, pool: &ResourceId, limit: u32) -> Result<Vec<SessionUse>, StoreError> {
        self.read(|db| {
            let sql = format!(
                "SELECT {COLUMNS} FROM session_use WHERE pool_key = ?1 ORDER BY created_at DESC, replica DESC LIMIT ?2"
            );
            let mut query = db.prepare_cached(&sql)?;
            let rows = query.query_map(params![pool.key(), limit], read)?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })
    }

    /// What all sessions of a pool took together, those that are not kept one by one among them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn session_use_sum(&self, pool: &ResourceId, now: Timestamp) -> Result<SessionUseSum, StoreError> {
        self.read(|db| {
            let mut sum = kept_sum(db, pool.key())?;
            let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM session_use WHERE pool_key = ?1"))?;
            for one in query.query_map([pool.key()], read)? {
                sum.add(&one?, now);
            }
            Ok(sum)
        })
    }

    /// The newest session that an identifier got, whether it has ended or not.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn newest_session_of(
        &self,
        pool: &ResourceId,
        identifier: &SessionIdentifier,
    ) -> Result<Option<SessionUse>, StoreError> {
        self.read(|db| {
            let sql = format!(
                "SELECT {COLUMNS} FROM session_use WHERE pool_key = ?1 AND digest = ?2 ORDER BY allocated_at DESC LIMIT 1"
            );
            let mut query = db.prepare_cached(&sql)?;
            Ok(query.query_row(params![pool.key(), digest(pool, identifier)], read).optional()?)
        })
    }

    /// A session by its GUID.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn session_by_guid(&self, pool: &ResourceId, guid: &str) -> Result<Option<SessionUse>, StoreError> {
        self.read(|db| {
            let sql = format!("SELECT {COLUMNS} FROM session_use WHERE pool_key = ?1 AND guid = ?2");
            let mut query = db.prepare_cached(&sql)?;
            Ok(query.query_row(params![pool.key(), guid], read).optional()?)
        })
    }

    /// A session by its replica.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn session_of_replica(&self, replica: &str) -> Result<Option<SessionUse>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM session_use WHERE replica = ?1"))?;
            Ok(query.query_row([replica], read).optional()?)
        })
    }

    /// Replicas of sessions that are not known to have ended, with what is noted of them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn open_session_uses(&self) -> Result<Vec<SessionUse>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM session_use WHERE ended_at IS NULL"))?;
            let rows = query.query_map([], read)?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })
    }

    /// Writes down what the driver knows: the first moment at which each was ready, and the most processor time seen.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn note_session_uses(&self, notes: Vec<SessionNote>) -> Result<(), StoreError> {
        self.write(move |tx| notes.iter().try_for_each(|known| note(tx.db, known))).await
    }

    /// Adds sessions that ended before `before`, and the oldest of those above [`SESSION_USES_MAX`], to the sums of their
    /// pools; how many these were.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn sum_up_session_uses(&self, before: Timestamp) -> Result<usize, StoreError> {
        self.sum_up(before, SESSION_USES_MAX).await
    }

    pub(crate) async fn sum_up(&self, before: Timestamp, kept_max: u32) -> Result<usize, StoreError> {
        self.write(move |tx| {
            let sql = "SELECT max(ended_at) FROM (SELECT ended_at FROM session_use WHERE ended_at IS NOT NULL
                       ORDER BY ended_at DESC LIMIT -1 OFFSET ?1)";
            let above: Option<i64> = tx.db.query_row(sql, [kept_max], |row| row.get(0))?;
            let until = above.map_or(before.as_millisecond(), |above| before.as_millisecond().max(above + 1));
            let pools: Vec<String> = {
                let mut query = tx.db.prepare("SELECT DISTINCT pool_key FROM session_use WHERE ended_at < ?1")?;
                let rows = query.query_map([until], |row| row.get(0))?;
                rows.collect::<Result<_, _>>()?
            };
            let mut count = 0;
            for pool in pools {
                let mut sum = kept_sum(tx.db, &pool)?;
                let sql = format!("SELECT {COLUMNS} FROM session_use WHERE pool_key = ?1 AND ended_at < ?2");
                let mut query = tx.db.prepare(&sql)?;
                for one in query.query_map(params![pool, until], read)? {
                    sum.add(&one?, before);
                    count += 1;
                }
                keep_sum(tx.db, &pool, &sum)?;
            }
            tx.db.execute("DELETE FROM session_use WHERE ended_at < ?1", [until])?;
            Ok(count)
        })
        .await
    }
}

/// Writes what the driver knows of one; nothing of one that is not there.
pub(crate) fn note(db: &Connection, note: &SessionNote) -> Result<(), StoreError> {
    let mut query = db.prepare_cached(
        "UPDATE session_use SET ready_at = coalesce(ready_at, ?2), cpu_us = max(cpu_us, ?3) WHERE replica = ?1",
    )?;
    let cpu = to_i64(note.cpu_us.unwrap_or(0));
    query.execute(params![note.replica.as_str(), note.ready_at.map(Timestamp::as_millisecond), cpu])?;
    Ok(())
}

/// Writes what a session's new form means for what it took; within the transaction of that form.
pub(crate) fn follow(db: &Connection, session: &Session) -> Result<(), StoreError> {
    let replica = session.replica.as_str();
    let mut known = db.prepare_cached("SELECT allocated_at, ended_at FROM session_use WHERE replica = ?1")?;
    let times = |row: &Row<'_>| Ok((row.get::<_, Option<i64>>(0)?, row.get::<_, Option<i64>>(1)?));
    let allocated_at = session.allocated_at.map(Timestamp::as_millisecond);
    let ended_at = session.ended.as_ref().map(|ended| ended.at.as_millisecond());
    let digest = session.identifier.as_ref().map(|identifier| digest(&session.pool, identifier));
    let reason = session.ended.as_ref().map(|ended| ended.reason.as_str());
    match known.query_row([replica], times).optional()? {
        Some(now) if now == (allocated_at, ended_at) => {}
        Some(_) => {
            // an identifier stays, and an end is for good
            let mut change = db.prepare_cached(
                "UPDATE session_use SET allocated_at = coalesce(allocated_at, ?2), digest = coalesce(digest, ?3),
                     ended_at = coalesce(ended_at, ?4), reason = coalesce(reason, ?5) WHERE replica = ?1",
            )?;
            change.execute(params![replica, allocated_at, digest, ended_at, reason])?;
        }
        None => {
            let mut find = db.prepare_cached("SELECT spec FROM resources WHERE key = ?1")?;
            let spec: Option<Option<String>> = find.query_row([session.pool.key()], |row| row.get(0)).optional()?;
            // a pool that is gone has no sessions
            let Some(spec) = spec else { return Ok(()) };
            let pool: Option<SessionPool> = spec.and_then(|spec| serde_json::from_str(&spec).ok());
            let containers = pool.iter().flat_map(|pool| &pool.template.containers);
            let (cpu, memory) = containers.fold((0_u64, 0_u64), |(cpu, memory), container| {
                let asked = &container.resources;
                (cpu.saturating_add(u64::from(asked.cpu.0)), memory.saturating_add(asked.memory.0))
            });
            let mut insert = db.prepare_cached(
                "INSERT INTO session_use (replica, pool_key, guid, generation, digest, cpu_milli, memory_bytes, created_at,
                     allocated_at, ended_at, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            )?;
            insert.execute(params![
                replica,
                session.pool.key(),
                session.guid,
                session.generation.as_str(),
                digest,
                to_i64(cpu),
                to_i64(memory),
                session.created_at.as_millisecond(),
                allocated_at,
                ended_at,
                reason
            ])?;
        }
    }
    Ok(())
}

/// Finds the sessions of an identifier; of no use to who does not know it.
fn digest(pool: &ResourceId, identifier: &SessionIdentifier) -> Vec<u8> {
    let text = format!("{}\n{}", pool.key(), identifier.as_str());
    ring::digest::digest(&ring::digest::SHA256, text.as_bytes()).as_ref().to_vec()
}

fn between(from: Timestamp, until: Timestamp) -> u64 {
    u64::try_from(until.as_millisecond().saturating_sub(from.as_millisecond())).unwrap_or(0)
}

fn kept_sum(db: &Connection, pool: &str) -> Result<SessionUseSum, StoreError> {
    let sql = "SELECT sessions, allocated, ready_ms, allocated_ms, cpu_us, core_us, memory_kib_ms FROM session_use_sums
               WHERE pool_key = ?1";
    let sum = db.prepare_cached(sql)?.query_row([pool], |row| {
        Ok(SessionUseSum {
            sessions: count(row, 0)?,
            allocated: count(row, 1)?,
            ready_ms: count(row, 2)?,
            allocated_ms: count(row, 3)?,
            cpu_us: count(row, 4)?,
            core_us: count(row, 5)?,
            memory_kib_ms: count(row, 6)?,
        })
    });
    Ok(sum.optional()?.unwrap_or_default())
}

fn keep_sum(db: &Connection, pool: &str, sum: &SessionUseSum) -> Result<(), StoreError> {
    let numbers =
        [sum.sessions, sum.allocated, sum.ready_ms, sum.allocated_ms, sum.cpu_us, sum.core_us, sum.memory_kib_ms]
            .map(to_i64);
    let [sessions, allocated, ready, allocated_ms, cpu, core, memory] = numbers;
    db.execute(
        "INSERT OR REPLACE INTO session_use_sums VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        params![pool, sessions, allocated, ready, allocated_ms, cpu, core, memory],
    )?;
    Ok(())
}

fn count(row: &Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

fn read(row: &Row<'_>) -> rusqlite::Result<SessionUse> {
    let wrong = |column| {
        move |error| rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    };
    let time = |column| {
        let millis: Option<i64> = row.get(column)?;
        Ok::<_, rusqlite::Error>(millis.and_then(|millis| Timestamp::from_millisecond(millis).ok()))
    };
    Ok(SessionUse {
        replica: ReplicaName::new(row.get::<_, String>(0)?).map_err(wrong(0))?,
        guid: row.get(1)?,
        generation: RevisionName::new(row.get::<_, String>(2)?).map_err(wrong(2))?,
        cpu: MilliCpu(u32::try_from(row.get::<_, i64>(3)?).unwrap_or(u32::MAX)),
        memory: Bytes(count(row, 4)?),
        created_at: time(5)?.unwrap_or(Timestamp::UNIX_EPOCH),
        ready_at: time(6)?,
        allocated_at: time(7)?,
        ended_at: time(8)?,
        reason: row.get(9)?,
        cpu_us: count(row, 10)?,
    })
}

#[cfg(test)]
mod tests;
