//! Revisions of apps: immutable snapshots, `is_active`, and the status that the controller writes.

use cove_model::{ResourceId, Revision, RevisionKey, RevisionName, RevisionStatus};
use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::Value;

use crate::{Store, StoreError, db::Tx, resources::to_i64};

/// A revision that a write of its app makes. Its number is given by the store.
#[derive(Clone, Debug)]
pub struct NewRevision {
    /// The snapshot; `number` is ignored.
    pub revision: Revision,
    /// Its template as ARM shows it.
    pub doc: Value,
}

/// A stored revision.
#[derive(Clone, Debug, PartialEq)]
pub struct RevisionRow {
    /// The snapshot.
    pub revision: Revision,
    /// Its template as ARM shows it.
    pub doc: Value,
    /// What the controller last wrote.
    pub status: RevisionStatus,
}

impl Store {
    /// An app's revisions, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn revisions(&self, app: &ResourceId) -> Result<Vec<RevisionRow>, StoreError> {
        self.read(|db| {
            let mut query =
                db.prepare_cached("SELECT revision, doc, status FROM revisions WHERE app_key = ?1 ORDER BY number")?;
            let rows = query.query_map([app.key()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.map(|row| parse(&row?)).collect()
        })
    }

    /// An app's revisions and their statuses without their documents, oldest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn revision_snapshots(&self, app: &ResourceId) -> Result<Vec<(Revision, RevisionStatus)>, StoreError> {
        self.read(|db| {
            let mut query =
                db.prepare_cached("SELECT revision, status FROM revisions WHERE app_key = ?1 ORDER BY number")?;
            let rows = query.query_map([app.key()], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
            rows.map(|row| {
                let (revision, status) = row?;
                Ok((serde_json::from_str(&revision)?, serde_json::from_str(&status)?))
            })
            .collect()
        })
    }

    /// One revision; its name in any case.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn revision(&self, app: &ResourceId, name: &str) -> Result<Option<RevisionRow>, StoreError> {
        self.read(|db| load(db, app, &name.to_ascii_lowercase()))
    }

    /// Changes a revision in place: `change` may touch `is_active`, `activated_at` and `restart_generation` only.
    ///
    /// # Errors
    /// [`StoreError::NotFound`].
    pub async fn change_revision(
        &self,
        key: RevisionKey,
        change: impl FnOnce(&mut Revision) + Send + 'static,
    ) -> Result<Revision, StoreError> {
        self.write(move |tx| {
            let row = load(tx.db, &key.app, key.name.as_str())?;
            let mut revision = row.ok_or_else(|| StoreError::NotFound { id: key.name.to_string() })?.revision;
            change(&mut revision);
            save(tx, &revision)?;
            tx.changed(&key.app);
            Ok(revision)
        })
        .await
    }

    /// Writes what the controller knows of revisions; does not wake the change feed.
    ///
    /// # Errors
    /// When the database cannot be written. A revision that is gone is left alone.
    pub async fn set_revision_statuses(&self, statuses: Vec<(RevisionKey, RevisionStatus)>) -> Result<(), StoreError> {
        self.write(move |tx| {
            let mut update =
                tx.db.prepare_cached("UPDATE revisions SET status = ?3 WHERE app_key = ?1 AND name = ?2")?;
            for (key, status) in &statuses {
                update.execute(params![key.app.key(), key.name.as_str(), serde_json::to_string(status)?])?;
            }
            Ok(())
        })
        .await
    }

    /// Sets which of an app's revisions are active, in one go; the others become inactive.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn set_active(
        &self,
        app: ResourceId,
        active: Vec<RevisionName>,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.write(move |tx| {
            let mut changed = false;
            for row in load_all(tx.db, &app)? {
                let mut revision = row.revision;
                let should = active.contains(&revision.name);
                if revision.is_active != should {
                    revision.is_active = should;
                    if should {
                        revision.activated_at = now;
                    }
                    save(tx, &revision)?;
                    changed = true;
                }
            }
            if changed {
                tx.changed(&app);
            }
            Ok(())
        })
        .await
    }

    /// Removes revisions, with what is known of their replicas and counts.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn remove_revisions(&self, keys: Vec<RevisionKey>) -> Result<(), StoreError> {
        self.write(move |tx| {
            for key in &keys {
                for table in ["replicas", "counts"] {
                    let sql = format!("DELETE FROM {table} WHERE app_key = ?1 AND revision = ?2");
                    tx.db.execute(&sql, params![key.app.key(), key.name.as_str()])?;
                }
                let sql = "DELETE FROM revisions WHERE app_key = ?1 AND name = ?2";
                tx.db.execute(sql, params![key.app.key(), key.name.as_str()])?;
            }
            Ok(())
        })
        .await
    }
}

pub(crate) fn insert(tx: &Tx<'_>, app: &ResourceId, new: NewRevision) -> Result<(), StoreError> {
    let mut revision = new.revision;
    if load(tx.db, app, revision.name.as_str())?.is_some() {
        return Err(StoreError::RevisionExists { name: revision.name.to_string() });
    }
    let newest: Option<i64> =
        tx.db.query_row("SELECT max(number) FROM revisions WHERE app_key = ?1", [app.key()], |row| row.get(0))?;
    let number = newest.unwrap_or(0) + 1;
    revision.number = u64::try_from(number).unwrap_or(0);
    tx.db.execute(
        "INSERT INTO revisions (app_key, name, number, revision, doc, status) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            app.key(),
            revision.name.as_str(),
            to_i64(revision.number),
            serde_json::to_string(&revision)?,
            new.doc.to_string(),
            serde_json::to_string(&RevisionStatus::default())?
        ],
    )?;
    Ok(())
}

fn save(tx: &Tx<'_>, revision: &Revision) -> Result<(), StoreError> {
    tx.db.execute(
        "UPDATE revisions SET revision = ?3 WHERE app_key = ?1 AND name = ?2",
        params![revision.app.key(), revision.name.as_str(), serde_json::to_string(revision)?],
    )?;
    Ok(())
}

fn load(db: &Connection, app: &ResourceId, name: &str) -> Result<Option<RevisionRow>, StoreError> {
    let mut query =
        db.prepare_cached("SELECT revision, doc, status FROM revisions WHERE app_key = ?1 AND name = ?2")?;
    let row =
        query.query_row(params![app.key(), name], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).optional()?;
    row.map(|row| parse(&row)).transpose()
}

fn load_all(db: &Connection, app: &ResourceId) -> Result<Vec<RevisionRow>, StoreError> {
    let mut query =
        db.prepare_cached("SELECT revision, doc, status FROM revisions WHERE app_key = ?1 ORDER BY number")?;
    let rows = query.query_map([app.key()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    rows.map(|row| parse(&row?)).collect()
}

fn parse((revision, doc, status): &(String, String, String)) -> Result<RevisionRow, StoreError> {
    Ok(RevisionRow {
        revision: serde_json::from_str(revision)?,
        doc: serde_json::from_str(doc)?,
        status: serde_json::from_str(status)?,
    })
}
