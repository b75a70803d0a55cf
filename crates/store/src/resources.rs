//! Resources: what users asked for, by id.

use std::collections::BTreeMap;

use cove_model::ResourceId;
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{NewOperation, NewRevision, Store, StoreError, db::Tx, operations, revisions, secrets::Keyring};

/// A stored resource.
#[derive(Clone, Debug, PartialEq)]
pub struct ResourceRow {
    /// Id in the case of its creation.
    pub id: ResourceId,
    /// Kind in lower case: `microsoft.app/containerapps`, `resourcegroups`.
    pub kind: String,
    /// What the user gave, canonical, without secret values.
    pub doc: Value,
    /// The same as a model value, for resources that are reconciled.
    pub spec: Option<Value>,
    /// Rises with every write by the user.
    pub generation: u64,
    /// Changes with every write.
    pub etag: String,
    /// ARM's `provisioningState`.
    pub provisioning: Provisioning,
    /// Why it failed.
    pub failure: Option<Failure>,
    /// First written.
    pub created_at: Timestamp,
    /// Last written by the user.
    pub updated_at: Timestamp,
}

/// A resource as loops want it: [`Store::snapshot`].
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot<T> {
    /// Its model value, for resources that are reconciled.
    pub spec: Option<T>,
    /// Rises with every write by the user.
    pub generation: u64,
    /// ARM's `provisioningState`.
    pub provisioning: Provisioning,
}

/// ARM's `provisioningState`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Provisioning {
    /// Work is under way.
    InProgress,
    /// Done.
    Succeeded,
    /// Given up; the failure says why.
    Failed,
    /// Superseded or stopped by the user.
    Canceled,
    /// Being taken down.
    Deleting,
}

impl Provisioning {
    /// ARM's spelling.
    #[must_use]
    pub fn as_arm(self) -> &'static str {
        match self {
            Self::InProgress => "InProgress",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
            Self::Deleting => "Deleting",
        }
    }

    fn parse(text: &str) -> Self {
        match text {
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            "Canceled" => Self::Canceled,
            "Deleting" => Self::Deleting,
            _ => Self::InProgress,
        }
    }
}

/// Why something failed, as ARM says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// ARM error code.
    pub code: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// A write of a resource and everything that must come with it.
#[derive(Clone, Debug)]
pub struct PutResource {
    /// Its id; an existing one keeps the case it has.
    pub id: ResourceId,
    /// New document.
    pub doc: Value,
    /// New model value.
    pub spec: Option<Value>,
    /// What to do with its secrets.
    pub secrets: SecretsChange,
    /// State after the write.
    pub provisioning: Provisioning,
    /// A long-running operation that ends when the controller says so.
    pub operation: Option<NewOperation>,
    /// A revision made by this write.
    pub revision: Option<NewRevision>,
    /// What the writer believes is there.
    pub expect: Expect,
    /// When.
    pub now: Timestamp,
}

/// What must be there for a write to happen; else [`StoreError::Conflict`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Anything.
    Anything,
    /// No such resource.
    Absent,
    /// This generation.
    Generation(u64),
}

/// What to do with a resource's secrets; its `Debug` text has names only.
#[derive(Clone, PartialEq, Eq)]
pub enum SecretsChange {
    /// Keep all.
    Keep,
    /// These and no others; `None` keeps the old value of that name.
    Replace(BTreeMap<String, Option<String>>),
}

const COLUMNS: &str = "id, kind, doc, spec, generation, etag, state, error, created_at, updated_at";

impl Store {
    /// One resource.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn resource(&self, id: &ResourceId) -> Result<Option<ResourceRow>, StoreError> {
        self.read(|db| load(db, id.key()))
    }

    /// A resource without its document, its model value read as `T`.
    ///
    /// # Errors
    /// When the database cannot be read, or the value is no `T`.
    pub fn snapshot<T: DeserializeOwned>(&self, id: &ResourceId) -> Result<Option<Snapshot<T>>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT spec, generation, state FROM resources WHERE key = ?1")?;
            let mut rows = query.query([id.key()])?;
            let Some(row) = rows.next()? else { return Ok(None) };
            let spec: Option<String> = row.get(0)?;
            Ok(Some(Snapshot {
                spec: spec.map(|spec| serde_json::from_str(&spec)).transpose()?,
                generation: u64::try_from(row.get::<_, i64>(1)?).unwrap_or(0),
                provisioning: Provisioning::parse(&row.get::<_, String>(2)?),
            }))
        })
    }

    /// Ids of all resources of a kind (any case) that live in an environment, by id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn ids_in(&self, kind: &str, environment: &ResourceId) -> Result<Vec<ResourceId>, StoreError> {
        let kind = kind.to_ascii_lowercase();
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id FROM resources INDEXED BY resources_by_environment
                 WHERE kind = ?1 AND spec ->> '$.environment' IS NOT NULL AND lower(spec ->> '$.environment') = ?2
                 ORDER BY key",
            )?;
            let ids = query.query_map(params![kind, environment.key()], |row| row.get::<_, String>(0))?;
            ids.map(|id| {
                let id = id?;
                ResourceId::parse(&id).map_err(|_| StoreError::NotFound { id })
            })
            .collect()
        })
    }

    /// All resources of a kind (any case) whose id lies below `scope` (a subscription or group id), by id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn resources(&self, kind: &str, scope: Option<&ResourceId>) -> Result<Vec<ResourceRow>, StoreError> {
        self.resources_page(kind, scope, None, usize::MAX)
    }

    /// The first `limit` of [`Store::resources`] whose key (the id in lower case) comes after `after`.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn resources_page(
        &self,
        kind: &str,
        scope: Option<&ResourceId>,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<ResourceRow>, StoreError> {
        let kind = kind.to_ascii_lowercase();
        let prefix = scope.map_or_else(String::new, |scope| format!("{}/", scope.key()));
        let after = after.unwrap_or_default();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        self.read(|db| {
            let mut query = db.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM resources WHERE kind = ?1 AND key > max(?2, ?3) AND key < ?2 || x'ff'
                 ORDER BY key LIMIT ?4"
            ))?;
            let rows = query.query_map(params![kind, prefix, after, limit], |row| Ok(from_row(row)))?;
            rows.map(|row| row?).collect()
        })
    }

    /// All resources of a kind (any case) that live in an environment, by id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn resources_in(&self, kind: &str, environment: &ResourceId) -> Result<Vec<ResourceRow>, StoreError> {
        let kind = kind.to_ascii_lowercase();
        self.read(|db| {
            let mut query = db.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM resources INDEXED BY resources_by_environment
                 WHERE kind = ?1 AND spec ->> '$.environment' IS NOT NULL AND lower(spec ->> '$.environment') = ?2
                 ORDER BY key"
            ))?;
            let rows = query.query_map(params![kind, environment.key()], |row| Ok(from_row(row)))?;
            rows.map(|row| row?).collect()
        })
    }

    /// Ids of all resources of a kind (any case) with this name (any case), in all groups.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn ids_named(&self, kind: &str, name: &str) -> Result<Vec<ResourceId>, StoreError> {
        let (kind, name) = (kind.to_ascii_lowercase(), name.to_ascii_lowercase());
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id FROM resources INDEXED BY resources_by_name
                 WHERE kind = ?1 AND substr(key, length(rtrim(key, replace(key, '/', ''))) + 1) = ?2 ORDER BY key",
            )?;
            let ids = query.query_map(params![kind, name], |row| row.get::<_, String>(0))?;
            ids.map(|id| {
                let id = id?;
                ResourceId::parse(&id).map_err(|_| StoreError::NotFound { id })
            })
            .collect()
        })
    }

    /// Everything below a resource or group, of any kind, by id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn resources_below(&self, scope: &ResourceId) -> Result<Vec<ResourceRow>, StoreError> {
        let prefix = format!("{}/", scope.key());
        self.read(|db| {
            let mut query = db.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM resources WHERE key > ?1 AND substr(key, 1, length(?1)) = ?1 ORDER BY key"
            ))?;
            let rows = query.query_map(params![prefix], |row| Ok(from_row(row)))?;
            rows.map(|row| row?).collect()
        })
    }

    /// Values of a resource's secrets.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn secrets(&self, id: &ResourceId) -> Result<BTreeMap<String, String>, StoreError> {
        self.read(|db| crate::secrets::read(db, self.keyring(), id.key()))
    }

    /// Writes a resource with its secrets, operation and revision, all or nothing; gives it as it is now.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when `expect` does not hold, [`StoreError::RevisionExists`] for a taken revision name.
    pub async fn put(&self, put: PutResource) -> Result<ResourceRow, StoreError> {
        let keyring = std::sync::Arc::clone(self.keyring());
        self.write(move |tx| put_in(tx, put, &keyring)).await
    }

    /// Marks a resource as being deleted, with an operation that ends when it is gone.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn begin_delete(
        &self,
        id: ResourceId,
        operation: NewOperation,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |tx| {
            let old = load(tx.db, id.key())?.ok_or_else(|| StoreError::NotFound { id: id.to_string() })?;
            let generation = old.generation + 1;
            tx.db.execute(
                "UPDATE resources SET state = 'Deleting', generation = ?2, etag = ?3, updated_at = ?4 WHERE key = ?1",
                params![id.key(), to_i64(generation), etag(id.key(), generation), now.to_string()],
            )?;
            operations::insert(tx, &operation, &old.id, generation, now)?;
            tx.changed(&old.id);
            Ok(())
        })
        .await
    }

    /// Removes a resource and all that hangs on it, and ends its operations well. Says whether it was there.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn remove(&self, id: ResourceId, now: Timestamp) -> Result<bool, StoreError> {
        self.write(move |tx| {
            let was_there = tx.db.execute("DELETE FROM resources WHERE key = ?1", [id.key()])? > 0;
            // children, role assignments and other extensions of it have nothing left to hang on
            let prefix = format!("{}/", id.key());
            const BELOW: &str = "key > ?1 AND key < ?1 || x'ff' AND substr(key, 1, length(?1)) = ?1";
            let mut query = tx.db.prepare_cached(&format!("SELECT id FROM resources WHERE {BELOW}"))?;
            let below: Vec<String> = query.query_map([&prefix], |row| row.get(0))?.collect::<Result<_, _>>()?;
            drop(query);
            tx.db.execute(&format!("DELETE FROM resources WHERE {BELOW}"), [&prefix])?;
            for child in below.iter().filter_map(|child| ResourceId::parse(child).ok()) {
                tx.gone(&child);
            }
            operations::end_all(tx, &id, u64::MAX, None, now)?;
            tx.gone(&id);
            Ok(was_there)
        })
        .await
    }

    /// Ends the operations of a resource up to `generation` and, if that is still its generation, sets its state.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn finish(
        &self,
        id: ResourceId,
        generation: u64,
        failure: Option<Failure>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |tx| {
            let state = if failure.is_some() { Provisioning::Failed } else { Provisioning::Succeeded };
            let error = failure.as_ref().map(serde_json::to_string).transpose()?;
            let changed = tx.db.execute(
                "UPDATE resources SET state = ?3, error = ?4
                 WHERE key = ?1 AND generation = ?2 AND state <> 'Deleting' AND (state <> ?3 OR error IS NOT ?4)",
                params![id.key(), to_i64(generation), state.as_arm(), error],
            )?;
            operations::end_all(tx, &id, generation, failure.as_ref(), now)?;
            if changed > 0 {
                tx.changed(&id);
            }
            Ok(())
        })
        .await
    }

    /// A named value of the server itself.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        self.read(|db| {
            Ok(db.query_row("SELECT value FROM settings WHERE name = ?1", [name], |row| row.get(0)).optional()?)
        })
    }

    /// Sets a named value of the server itself.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn set_setting(&self, name: String, value: String) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.db.execute("INSERT OR REPLACE INTO settings (name, value) VALUES (?1, ?2)", params![name, value])?;
            Ok(())
        })
        .await
    }
}

fn put_in(tx: &mut Tx<'_>, put: PutResource, keyring: &Keyring) -> Result<ResourceRow, StoreError> {
    let old = load(tx.db, put.id.key())?;
    let holds = match put.expect {
        Expect::Anything => true,
        Expect::Absent => old.is_none(),
        Expect::Generation(generation) => old.as_ref().is_some_and(|old| old.generation == generation),
    };
    if !holds {
        return Err(StoreError::Conflict { id: put.id });
    }
    let id = old.as_ref().map_or(&put.id, |old| &old.id).clone();
    let generation = old.as_ref().map_or(0, |old| old.generation) + 1;
    let created_at = old.as_ref().map_or(put.now, |old| old.created_at);
    let kind = if id.kind().is_empty() { "resourcegroups".to_owned() } else { id.kind().to_ascii_lowercase() };
    tx.db.execute(
        "INSERT INTO resources (key, id, kind, doc, spec, generation, etag, state, error, created_at, updated_at)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, NULL, ?9, ?10)
         ON CONFLICT (key) DO UPDATE SET doc = excluded.doc, spec = excluded.spec, generation = excluded.generation,
             etag = excluded.etag, state = excluded.state, error = NULL, updated_at = excluded.updated_at",
        params![
            id.key(),
            id.as_str(),
            kind,
            put.doc.to_string(),
            put.spec.as_ref().map(ToString::to_string),
            to_i64(generation),
            etag(id.key(), generation),
            put.provisioning.as_arm(),
            created_at.to_string(),
            put.now.to_string(),
        ],
    )?;
    change_secrets(tx, &id, put.secrets, keyring)?;
    if let Some(revision) = put.revision {
        revisions::insert(tx, &id, revision)?;
    }
    if let Some(operation) = put.operation {
        operations::insert(tx, &operation, &id, generation, put.now)?;
    }
    tx.changed(&id);
    load(tx.db, id.key())?.ok_or_else(|| StoreError::NotFound { id: id.to_string() })
}

fn change_secrets(tx: &Tx<'_>, id: &ResourceId, change: SecretsChange, keyring: &Keyring) -> Result<(), StoreError> {
    let SecretsChange::Replace(wanted) = change else { return Ok(()) };
    let mut query = tx.db.prepare_cached("SELECT name FROM sealed_secrets WHERE key = ?1")?;
    let names: Vec<String> = query.query_map([id.key()], |row| row.get(0))?.collect::<Result<_, _>>()?;
    for name in names.iter().filter(|name| !wanted.contains_key(*name)) {
        tx.db.execute("DELETE FROM sealed_secrets WHERE key = ?1 AND name = ?2", params![id.key(), name])?;
    }
    for (name, value) in wanted {
        if let Some(value) = value {
            crate::secrets::write(tx.db, keyring, id.key(), &name, &value)?;
        }
    }
    Ok(())
}

pub(crate) fn load(db: &Connection, key: &str) -> Result<Option<ResourceRow>, StoreError> {
    let mut query = db.prepare_cached(&format!("SELECT {COLUMNS} FROM resources WHERE key = ?1"))?;
    query.query_row([key], |row| Ok(from_row(row))).optional()?.transpose()
}

fn from_row(row: &Row<'_>) -> Result<ResourceRow, StoreError> {
    let id: String = row.get(0)?;
    let doc: String = row.get(2)?;
    let spec: Option<String> = row.get(3)?;
    let generation: i64 = row.get(4)?;
    let state: String = row.get(6)?;
    let error: Option<String> = row.get(7)?;
    Ok(ResourceRow {
        id: ResourceId::parse(&id).map_err(|_| StoreError::NotFound { id })?,
        kind: row.get(1)?,
        doc: serde_json::from_str(&doc)?,
        spec: spec.map(|spec| serde_json::from_str(&spec)).transpose()?,
        generation: u64::try_from(generation).unwrap_or(0),
        etag: row.get(5)?,
        provisioning: Provisioning::parse(&state),
        failure: error.map(|error| serde_json::from_str(&error)).transpose()?,
        created_at: time(row, 8)?,
        updated_at: time(row, 9)?,
    })
}

pub(crate) fn time(row: &Row<'_>, column: usize) -> Result<Timestamp, rusqlite::Error> {
    let text: String = row.get(column)?;
    text.parse().map_err(|error: jiff::Error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, Box::new(error))
    })
}

/// SQLite's integers are signed; generations never come near the limit.
pub(crate) fn to_i64(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn etag(key: &str, generation: u64) -> String {
    // FNV-1a over the key: enough to tell resources apart, the generation tells their states apart
    let hash = key
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    format!("\"{hash:016x}-{generation:x}\"")
}
