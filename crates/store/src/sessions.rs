//! Sessions of pools: what waits, what belongs to an identifier, what is on its way out.
//!
//! **Invariant:** of one identifier of a pool there is at most one session that has not ended; the database itself refuses a
//! second one. **Invariant:** a session that has ended stays ended, and one with an identifier keeps it.

use cove_model::{ReplicaName, ResourceId, Session};
use rusqlite::params;

use crate::{SessionNote, Store, StoreError, db::Outlives, session_use};

/// One change of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionChange {
    /// It is so now.
    Save(Box<Session>),
    /// Nothing is left of it.
    Forget(ReplicaName),
    /// What the driver knows of what it used.
    Note(SessionNote),
}

impl Store {
    /// All sessions of a pool, by the name of their replica.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn sessions(&self, pool: &ResourceId) -> Result<Vec<Session>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT doc FROM sessions WHERE pool_key = ?1 ORDER BY replica")?;
            let rows = query.query_map([pool.key()], |row| row.get::<_, String>(0))?;
            rows.map(|row| Ok(serde_json::from_str(&row?)?)).collect()
        })
    }

    /// Writes changes of sessions in their order, all or nothing. Sessions of a pool that is gone are left out. The change
    /// feed is not told: whoever writes this knows it. When this returns it outlives the end of this process, not that of the
    /// machine: no session does, so nothing waits for the disk.
    ///
    /// # Errors
    /// When the database cannot be written; when a change would give an identifier a second session.
    pub async fn save_sessions(&self, changes: Vec<SessionChange>) -> Result<(), StoreError> {
        self.write_to(Outlives::Process, move |tx| {
            let mut save = tx.db.prepare_cached(
                "INSERT INTO sessions (replica, pool_key, identifier, is_ended, doc)
                 SELECT ?1, key, ?3, ?4, ?5 FROM resources WHERE key = ?2
                 ON CONFLICT (replica) DO UPDATE SET identifier = excluded.identifier, is_ended = excluded.is_ended,
                     doc = excluded.doc
                 WHERE is_ended <= excluded.is_ended AND (identifier IS NULL OR identifier IS excluded.identifier)",
            )?;
            let mut forget = tx.db.prepare_cached("DELETE FROM sessions WHERE replica = ?1")?;
            for change in &changes {
                match change {
                    SessionChange::Save(session) => {
                        let saved = save.execute(params![
                            session.replica.as_str(),
                            session.pool.key(),
                            session.identifier.as_ref().map(cove_model::SessionIdentifier::as_str),
                            i64::from(session.ended.is_some()),
                            serde_json::to_string(session)?,
                        ])?;
                        if saved > 0 {
                            session_use::follow(tx.db, session)?;
                        }
                    }
                    SessionChange::Forget(replica) => {
                        forget.execute([replica.as_str()])?;
                    }
                    SessionChange::Note(note) => session_use::note(tx.db, note)?,
                }
            }
            Ok(())
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{SESSION_POOL_KIND, SessionEndReason, SessionEnded, SessionIdentifier};
    use jiff::Timestamp;

    use super::*;
    use crate::{Expect, PutResource};

    fn pool() -> ResourceId {
        ResourceId::resource("s", "g", SESSION_POOL_KIND, "pool").unwrap()
    }

    fn session(name: &str, identifier: Option<&str>) -> Session {
        Session {
            pool: pool(),
            generation: cove_model::generation_name("pool", "abc1234").unwrap(),
            replica: ReplicaName::new(name).unwrap(),
            guid: "guid".to_owned(),
            target_port: 80,
            snapshot: None,
            identifier: identifier.map(|text| SessionIdentifier::new(text).unwrap()),
            created_at: Timestamp::UNIX_EPOCH,
            allocated_at: None,
            last_accessed_at: None,
            ended: None,
        }
    }

    fn a_pool() -> PutResource {
        PutResource {
            id: pool(),
            doc: serde_json::json!({}),
            spec: None,
            secrets: crate::SecretsChange::Keep,
            expect: Expect::Anything,
            operation: None,
            revision: None,
            provisioning: crate::Provisioning::Succeeded,
            now: Timestamp::UNIX_EPOCH,
        }
    }

    fn save(session: &Session) -> Vec<SessionChange> {
        vec![SessionChange::Save(Box::new(session.clone()))]
    }

    #[tokio::test]
    async fn an_identifier_has_one_session_until_that_has_ended() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut one = session("pool--abc1234-one", Some("user-1"));
        store.save_sessions(save(&one)).await.unwrap();
        assert_eq!(store.sessions(&pool()).unwrap(), [], "no pool, no session");
        store.put(a_pool()).await.unwrap();
        store.save_sessions(save(&one)).await.unwrap();
        let two = session("pool--abc1234-two", Some("user-1"));
        assert!(store.save_sessions(save(&two)).await.is_err(), "a second session of the same identifier");
        assert_eq!(store.sessions(&pool()).unwrap(), [one.clone()]);

        // its identifier stays, and an end is for good
        store.save_sessions(save(&session("pool--abc1234-one", Some("user-2")))).await.unwrap();
        assert_eq!(store.sessions(&pool()).unwrap(), [one.clone()]);
        let at = Timestamp::UNIX_EPOCH;
        one.ended = Some(SessionEnded { at, reason: SessionEndReason::CooledDown, message: None });
        store.save_sessions(save(&one)).await.unwrap();
        store.save_sessions(save(&session("pool--abc1234-one", Some("user-1")))).await.unwrap();
        assert_eq!(store.sessions(&pool()).unwrap(), [one.clone()]);

        store.save_sessions(save(&two)).await.unwrap();
        assert_eq!(store.sessions(&pool()).unwrap(), [one.clone(), two.clone()]);
        store.save_sessions(vec![SessionChange::Forget(one.replica.clone())]).await.unwrap();
        assert_eq!(store.sessions(&pool()).unwrap(), [two]);
        store.remove(pool(), Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(store.sessions(&pool()).unwrap(), []);
    }
    #[tokio::test]
    async fn what_was_answered_is_there_after_a_kill() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.put(a_pool()).await.unwrap();
        let given = session("pool--abc1234-one", Some("user-1"));
        store.save_sessions(save(&given)).await.unwrap();
        // the files as the kernel has them at this moment; the process that wrote them does nothing any more
        let after = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(dir.path()).unwrap() {
            let path = entry.unwrap().path();
            let is_shared_memory = path.extension().is_some_and(|end| end.to_string_lossy().ends_with("shm"));
            if path.is_file() && !is_shared_memory {
                std::fs::copy(&path, after.path().join(path.file_name().unwrap())).unwrap();
            }
        }
        assert_eq!(Store::open(after.path()).unwrap().sessions(&pool()).unwrap(), [given]);
    }
}
