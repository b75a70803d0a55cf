//! Long-running operations as clients poll them.

use cove_model::ResourceId;
use jiff::Timestamp;
use rusqlite::{OptionalExtension, params};

use crate::{
    Failure, Store, StoreError,
    db::Tx,
    resources::{time, to_i64},
};

/// An operation that a write begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOperation {
    /// GUID that clients poll.
    pub id: String,
    /// What it does: `create`, `update`, `delete`, …
    pub kind: String,
}

/// An operation as stored; kept for 7 days after its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperationRow {
    /// GUID.
    pub id: String,
    /// The resource.
    pub resource: ResourceId,
    /// What it does.
    pub kind: String,
    /// Where it stands.
    pub status: OperationStatus,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// Begin.
    pub started_at: Timestamp,
    /// End.
    pub ended_at: Option<Timestamp>,
}

/// Where an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationStatus {
    /// Under way.
    InProgress,
    /// Done.
    Succeeded,
    /// Given up.
    Failed,
    /// A newer write took its place.
    Canceled,
}

impl OperationStatus {
    /// ARM's spelling.
    #[must_use]
    pub fn as_arm(self) -> &'static str {
        match self {
            Self::InProgress => "InProgress",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            "Canceled" => Self::Canceled,
            _ => Self::InProgress,
        }
    }
}

impl Store {
    /// One operation.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn operation(&self, id: &str) -> Result<Option<OperationRow>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id, resource_id, kind, status, error, started_at, ended_at FROM operations WHERE id = ?1",
            )?;
            let row = query
                .query_row([id], |row| {
                    let ended: Option<String> = row.get(6)?;
                    let ended_at = if ended.is_some() { Some(time(row, 6)?) } else { None };
                    let columns: (String, String, String, String, Option<String>) =
                        (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
                    Ok((columns, time(row, 5)?, ended_at))
                })
                .optional()?;
            let Some(((id, resource, kind, status, error), started_at, ended_at)) = row else { return Ok(None) };
            Ok(Some(OperationRow {
                id,
                resource: ResourceId::parse(&resource).map_err(|_| StoreError::NotFound { id: resource })?,
                kind,
                status: OperationStatus::parse(&status),
                failure: error.map(|error| serde_json::from_str(&error)).transpose()?,
                started_at,
                ended_at,
            }))
        })
    }

    /// Ends the operations of a resource up to `generation` as canceled.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn cancel(&self, id: ResourceId, generation: u64, now: Timestamp) -> Result<(), StoreError> {
        self.write(move |tx| {
            let changed = tx.db.execute(
                "UPDATE operations SET status = 'Canceled', ended_at = ?3
                 WHERE resource_key = ?1 AND generation <= ?2 AND ended_at IS NULL",
                params![id.key(), to_i64(generation), now.to_string()],
            )?;
            if changed > 0 {
                tx.changed(&id);
            }
            Ok(())
        })
        .await
    }

    /// Forgets operations that ended before `before`.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn prune_operations(&self, before: Timestamp) -> Result<usize, StoreError> {
        self.write(move |tx| Ok(tx.db.execute("DELETE FROM operations WHERE ended_at < ?1", [before.to_string()])?))
            .await
    }
}

pub(crate) fn insert(
    tx: &Tx<'_>,
    operation: &NewOperation,
    id: &ResourceId,
    generation: u64,
    now: Timestamp,
) -> Result<(), StoreError> {
    tx.db.execute(
        "INSERT INTO operations (id, resource_key, resource_id, kind, generation, status, started_at)
         VALUES (?1, ?2, ?3, ?4, ?5, 'InProgress', ?6)",
        params![operation.id, id.key(), id.as_str(), operation.kind, to_i64(generation), now.to_string()],
    )?;
    Ok(())
}

pub(crate) fn end_all(
    tx: &Tx<'_>,
    id: &ResourceId,
    up_to_generation: u64,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Result<(), StoreError> {
    let status = if failure.is_some() { OperationStatus::Failed } else { OperationStatus::Succeeded };
    tx.db.execute(
        "UPDATE operations SET status = ?3, error = ?4, ended_at = ?5
         WHERE resource_key = ?1 AND generation <= ?2 AND ended_at IS NULL",
        params![
            id.key(),
            to_i64(up_to_generation),
            status.as_arm(),
            failure.map(serde_json::to_string).transpose()?,
            now.to_string()
        ],
    )?;
    Ok(())
}
