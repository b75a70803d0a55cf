//! Snapshots of sessions that are kept by themselves. Their files are the driver's.
//!
//! **Invariant:** a pool has one snapshot of a name, and an identifier one suspended session. **Invariant:** unlike sessions
//! they outlive the machine's end: when one is kept its row is on disk.

use cove_model::{ResourceId, SessionSnapshot, SnapshotId};
use rusqlite::params;

use crate::{Store, StoreError};

/// What came of keeping a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is on disk.
    Kept,
    /// There is one of this name.
    Taken,
    /// Its pool is gone.
    NoPool,
}

impl Store {
    /// All kept snapshots of a pool, by id.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn session_snapshots(&self, pool: &ResourceId) -> Result<Vec<SessionSnapshot>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT doc FROM session_snapshots WHERE pool_key = ?1 ORDER BY id")?;
            let rows = query.query_map([pool.key()], |row| row.get::<_, String>(0))?;
            rows.map(|row| Ok(serde_json::from_str(&row?)?)).collect()
        })
    }

    /// All kept snapshots of a pool and of the others of its group.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn session_snapshots_beside(&self, pool: &ResourceId) -> Result<Vec<SessionSnapshot>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT doc FROM session_snapshots WHERE substr(pool_key, 1, length(?1)) = ?1 ORDER BY id",
            )?;
            let rows = query.query_map([beside(pool)], |row| row.get::<_, String>(0))?;
            rows.map(|row| Ok(serde_json::from_str(&row?)?)).collect()
        })
    }

    /// A pool and the others of its group.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn session_pools_beside(&self, pool: &ResourceId) -> Result<Vec<ResourceId>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached(
                "SELECT id FROM resources WHERE key > ?1 AND substr(key, 1, length(?1)) = ?1 AND kind = ?2 ORDER BY key",
            )?;
            let kind = pool.kind().to_ascii_lowercase();
            let rows = query.query_map(params![beside(pool), kind], |row| row.get::<_, String>(0))?;
            let ids = rows.map(|row| Ok(ResourceId::parse(&row?).ok())).collect::<Result<Vec<_>, StoreError>>()?;
            Ok(ids.into_iter().flatten().collect())
        })
    }

    /// Keeps a snapshot; that of a suspended session takes the place of an older one. The change feed is not told: whoever
    /// keeps it knows it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn keep_session_snapshot(&self, snapshot: SessionSnapshot) -> Result<Kept, StoreError> {
        self.write(move |tx| {
            let is_there: bool = tx.db.query_row(
                "SELECT EXISTS (SELECT 1 FROM resources WHERE key = ?1)",
                [snapshot.pool.key()],
                |row| row.get(0),
            )?;
            if !is_there {
                return Ok(Kept::NoPool);
            }
            let identifier = snapshot.suspended().map(|(identifier, _)| identifier.as_str().to_owned());
            if let Some(identifier) = &identifier {
                // the files of its newer session count
                let older = "DELETE FROM session_snapshots WHERE pool_key = ?1 AND identifier = ?2";
                tx.db.execute(older, params![snapshot.pool.key(), identifier])?;
            }
            let made = tx.db.execute(
                "INSERT INTO session_snapshots (id, pool_key, name, identifier, doc) VALUES (?1, ?2, ?3, ?4, ?5)
                 ON CONFLICT DO NOTHING",
                params![
                    snapshot.id.as_str(),
                    snapshot.pool.key(),
                    snapshot.name(),
                    identifier,
                    serde_json::to_string(&snapshot)?,
                ],
            )?;
            Ok(if made == 1 { Kept::Kept } else { Kept::Taken })
        })
        .await
    }

    /// Keeps snapshots no longer; unknown ones are fine.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn drop_session_snapshots(&self, ids: Vec<SnapshotId>) -> Result<(), StoreError> {
        self.write(move |tx| {
            let mut drop = tx.db.prepare_cached("DELETE FROM session_snapshots WHERE id = ?1")?;
            for id in &ids {
                drop.execute([id.as_str()])?;
            }
            Ok(())
        })
        .await
    }
}

/// What the keys of a group's pools begin with.
fn beside(pool: &ResourceId) -> String {
    let key = pool.key();
    key[..key.rfind('/').map_or(0, |at| at + 1)].to_owned()
}

#[cfg(test)]
mod tests {
    use cove_model::{SESSION_POOL_KIND, SessionIdentifier, SnapshotKeep};
    use jiff::Timestamp;

    use super::*;
    use crate::{Expect, PutResource};

    fn pool() -> ResourceId {
        ResourceId::resource("s", "g", SESSION_POOL_KIND, "pool").unwrap()
    }

    fn snapshot(digit: char, keep: SnapshotKeep) -> SessionSnapshot {
        SessionSnapshot {
            id: SnapshotId::new(&digit.to_string().repeat(32)).unwrap(),
            pool: pool(),
            keep,
            session_guid: "guid".to_owned(),
            bytes: 1,
            files: 1,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[tokio::test]
    async fn a_name_and_an_identifier_have_one_and_all_go_with_their_pool() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let named = |digit| snapshot(digit, SnapshotKeep::Named { name: "base".to_owned() });
        assert_eq!(store.keep_session_snapshot(named('a')).await.unwrap(), Kept::NoPool);
        let put = PutResource {
            id: pool(),
            doc: serde_json::json!({}),
            spec: None,
            secrets: crate::SecretsChange::Keep,
            expect: Expect::Anything,
            operation: None,
            revision: None,
            provisioning: crate::Provisioning::Succeeded,
            now: Timestamp::UNIX_EPOCH,
        };
        store.put(put).await.unwrap();
        assert_eq!(store.keep_session_snapshot(named('a')).await.unwrap(), Kept::Kept);
        assert_eq!(store.keep_session_snapshot(named('b')).await.unwrap(), Kept::Taken);
        let suspended = |digit| {
            let identifier = SessionIdentifier::new("user-1").unwrap();
            snapshot(digit, SnapshotKeep::Suspended { identifier, expires_at: Timestamp::UNIX_EPOCH })
        };
        assert_eq!(store.keep_session_snapshot(suspended('c')).await.unwrap(), Kept::Kept);
        assert_eq!(store.keep_session_snapshot(suspended('d')).await.unwrap(), Kept::Kept, "the newer one");
        assert_eq!(store.session_snapshots(&pool()).unwrap(), [named('a'), suspended('d')]);
        assert_eq!(store.session_snapshots_beside(&pool()).unwrap().len(), 2);
        let other = ResourceId::resource("s", "other", SESSION_POOL_KIND, "pool").unwrap();
        assert_eq!(store.session_snapshots_beside(&other).unwrap(), []);
        assert_eq!(store.session_pools_beside(&pool()).unwrap(), [pool()]);
        store.drop_session_snapshots(vec![named('a').id, named('b').id]).await.unwrap();
        assert_eq!(store.keep_session_snapshot(named('b')).await.unwrap(), Kept::Kept);
        store.remove(pool(), Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(store.session_snapshots(&pool()).unwrap(), []);
    }
}
