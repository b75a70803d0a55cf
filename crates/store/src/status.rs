//! What loops wrote down: replicas as last seen, counts of the autoscaler, executed plans.

use cove_model::{ReplicaObservation, ResourceId, RevisionKey, RevisionName};
use jiff::Timestamp;
use rusqlite::params;
use serde_json::Value;

use crate::{
    Store, StoreError,
    resources::{time, to_i64},
};

/// Plans kept per app.
const PLANS_KEPT: i64 = 100;

/// The autoscaler's memory of one revision; its content is the autoscaler's own.
#[derive(Clone, Debug, PartialEq)]
pub struct CountRow {
    /// The revision.
    pub revision: RevisionKey,
    /// Opaque to the store.
    pub state: Value,
}

/// An executed plan.
#[derive(Clone, Debug, PartialEq)]
pub struct PlanRow {
    /// When.
    pub at: Timestamp,
    /// For which generation of the app.
    pub generation: u64,
    /// Its actions with their reasons, as text lines.
    pub actions: Vec<String>,
}

impl Store {
    /// Replicas of a revision as last seen.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn replicas(&self, revision: &RevisionKey) -> Result<Vec<ReplicaObservation>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT observation FROM replicas WHERE app_key = ?1 AND revision = ?2 ORDER BY name",
            )?;
            let rows =
                query.query_map(params![revision.app.key(), revision.name.as_str()], |row| row.get::<_, String>(0))?;
            rows.map(|row| Ok(serde_json::from_str(&row?)?)).collect()
        })
    }

    /// Replaces what is known of a revision's replicas.
    ///
    /// # Errors
    /// When the database cannot be written. A revision whose app is gone is left alone.
    pub async fn set_replicas(
        &self,
        revision: RevisionKey,
        replicas: Vec<ReplicaObservation>,
    ) -> Result<(), StoreError> {
        self.write(move |tx| {
            let (app, name) = (revision.app.key(), revision.name.as_str());
            if crate::resources::load(tx.db, app)?.is_none() {
                return Ok(());
            }
            tx.db.execute("DELETE FROM replicas WHERE app_key = ?1 AND revision = ?2", params![app, name])?;
            for replica in &replicas {
                tx.db.execute(
                    "INSERT INTO replicas (app_key, revision, name, observation) VALUES (?1, ?2, ?3, ?4)",
                    params![app, name, replica.name.as_str(), serde_json::to_string(replica)?],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// The autoscaler's memory.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn counts(&self) -> Result<Vec<CountRow>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT r.id, c.revision, c.state FROM counts c JOIN resources r ON r.key = c.app_key",
            )?;
            let rows = query.query_map([], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?))
            })?;
            let mut counts = Vec::new();
            for row in rows {
                let (app, name, state) = row?;
                let (Ok(app), Ok(name)) = (ResourceId::parse(&app), RevisionName::new(&name)) else { continue };
                counts.push(CountRow { revision: RevisionKey { app, name }, state: serde_json::from_str(&state)? });
            }
            Ok(counts)
        })
    }

    /// Writes the autoscaler's memory of some revisions and forgets that of others, all or nothing.
    ///
    /// # Errors
    /// When the database cannot be written. Revisions whose app is gone are left alone.
    pub async fn save_counts(&self, counts: Vec<CountRow>, forgotten: Vec<RevisionKey>) -> Result<(), StoreError> {
        self.write(move |tx| {
            for revision in &forgotten {
                let sql = "DELETE FROM counts WHERE app_key = ?1 AND revision = ?2";
                tx.db.execute(sql, params![revision.app.key(), revision.name.as_str()])?;
            }
            for count in &counts {
                tx.db.execute(
                    "INSERT OR REPLACE INTO counts (app_key, revision, state)
                     SELECT key, ?2, ?3 FROM resources WHERE key = ?1",
                    params![count.revision.app.key(), count.revision.name.as_str(), count.state.to_string()],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Writes down an executed plan; only the newest are kept.
    ///
    /// # Errors
    /// When the database cannot be written. An app that is gone is left alone.
    pub async fn record_plan(&self, app: ResourceId, plan: PlanRow) -> Result<(), StoreError> {
        self.write(move |tx| {
            tx.db.execute(
                "INSERT INTO plans (app_key, at, generation, actions) SELECT key, ?2, ?3, ?4 FROM resources WHERE key = ?1",
                params![app.key(), plan.at.to_string(), to_i64(plan.generation), serde_json::to_string(&plan.actions)?],
            )?;
            tx.db.execute(
                "DELETE FROM plans WHERE app_key = ?1 AND seq <=
                     (SELECT seq FROM plans WHERE app_key = ?1 ORDER BY seq DESC LIMIT 1 OFFSET ?2)",
                params![app.key(), PLANS_KEPT],
            )?;
            Ok(())
        })
        .await
    }

    /// The newest executed plans of an app, newest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn plans(&self, app: &ResourceId) -> Result<Vec<PlanRow>, StoreError> {
        self.read(|db| {
            let mut query =
                db.prepare_cached("SELECT at, generation, actions FROM plans WHERE app_key = ?1 ORDER BY seq DESC")?;
            let rows = query
                .query_map([app.key()], |row| Ok((time(row, 0)?, row.get::<_, i64>(1)?, row.get::<_, String>(2)?)))?;
            rows.map(|row| {
                let (at, generation, actions) = row?;
                let actions = serde_json::from_str(&actions)?;
                Ok(PlanRow { at, generation: u64::try_from(generation).unwrap_or(0), actions })
            })
            .collect()
        })
    }
}
