//! Secrets at rest against real files: what is on disk, what a lost key says, what a `kill -9` leaves.

use std::{os::unix::fs::PermissionsExt, path::Path};

use cove_model::ResourceId;
use jiff::Timestamp;
use rusqlite::Connection;
use serde_json::json;

use super::*;
use crate::{Expect, Provisioning, PutResource};

const VALUE: &str = "correct horse battery staple";

fn app(name: &str) -> ResourceId {
    ResourceId::resource("s", "G", "Microsoft.App/containerApps", name).unwrap()
}

fn put(name: &str, value: &str) -> PutResource {
    PutResource {
        id: app(name),
        doc: json!({}),
        spec: None,
        secrets: SecretsChange::Replace(BTreeMap::from([("pass".to_owned(), Some(value.to_owned()))])),
        provisioning: Provisioning::Succeeded,
        operation: None,
        revision: None,
        expect: Expect::Anything,
        now: Timestamp::UNIX_EPOCH,
    }
}

/// Files below a directory that hold a text.
fn files_with(dir: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && fs::read(&path).unwrap().windows(text.len()).any(|part| part == text.as_bytes()) {
            found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    found
}

fn value_of(store: &Store, name: &str) -> String {
    store.secrets(&app(name)).unwrap()["pass"].clone()
}

#[tokio::test]
async fn no_file_holds_a_value_in_clear() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.put(put("web", VALUE)).await.unwrap();
    store.set_sealed_setting("key".into(), VALUE.into()).await.unwrap();
    assert_eq!(files_with(dir.path(), VALUE), Vec::<String>::new());
    let mode = fs::metadata(dir.path().join("secrets.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(value_of(&store, "web"), VALUE);
    assert_eq!(store.sealed_setting("key").unwrap().as_deref(), Some(VALUE));
    assert_eq!(store.secret_names(&app("web")).unwrap(), BTreeSet::from(["pass".to_owned()]));
    assert!(!format!("{:?}", put("web", VALUE)).contains(VALUE));
}

/// A database as the first release left it: values in clear, some of them in free pages and in the log.
fn old_database(dir: &Path) {
    let db = Connection::open(dir.join("cove.db")).unwrap();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    db.execute_batch(include_str!("../schema/1.sql")).unwrap();
    db.pragma_update(None, "user_version", 1).unwrap();
    for name in ["web", "gone"] {
        let id = app(name);
        db.execute(
            "INSERT INTO resources VALUES (?1, ?2, 'microsoft.app/containerapps', '{}', NULL, 1, 'e', 'Succeeded', NULL,
             '2026-01-01T00:00:00Z', '2026-01-01T00:00:00Z')",
            params![id.key(), id.as_str()],
        )
        .unwrap();
        db.execute("INSERT INTO secrets VALUES (?1, 'pass', ?2)", params![id.key(), VALUE]).unwrap();
        let filler = "x".repeat(9000);
        db.execute("INSERT INTO secrets VALUES (?1, 'filler', ?2)", params![id.key(), filler]).unwrap();
    }
    db.execute("INSERT INTO settings VALUES ('control_plane.token_key', ?1)", [VALUE]).unwrap();
    db.execute_batch("DELETE FROM secrets WHERE key LIKE '%gone'").unwrap();
    // as after a kill -9: the log stays
    std::mem::forget(db);
}

#[tokio::test]
async fn an_old_database_is_sealed_and_scrubbed_at_its_first_start() {
    let dir = tempfile::tempdir().unwrap();
    old_database(dir.path());
    assert!(!files_with(dir.path(), VALUE).is_empty());
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(files_with(dir.path(), VALUE), Vec::<String>::new());
    assert_eq!(value_of(&store, "web"), VALUE);
    assert_eq!(store.sealed_setting("control_plane.token_key").unwrap().as_deref(), Some(VALUE));
    assert_eq!(store.setting("control_plane.token_key").unwrap(), None);
    assert_eq!(store.setting(SCRUB).unwrap(), None);
}

#[test]
fn a_start_that_was_killed_before_the_scrub_does_it_next_time() {
    let dir = tempfile::tempdir().unwrap();
    old_database(dir.path());
    {
        // the migration alone, as if the process had ended right after its commit
        let mut db = Connection::open(dir.path().join("cove.db")).unwrap();
        let keyring = Keyring::open(dir.path(), &db).unwrap();
        let tx = db.transaction().unwrap();
        tx.execute_batch(include_str!("../schema/2.sql")).unwrap();
        seal_clear_values(&tx, &keyring).unwrap();
        tx.pragma_update(None, "user_version", 2).unwrap();
        tx.commit().unwrap();
    }
    assert!(!files_with(dir.path(), VALUE).is_empty());
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(files_with(dir.path(), VALUE), Vec::<String>::new());
    assert_eq!(value_of(&store, "web"), VALUE);
}

#[tokio::test]
async fn a_lost_open_or_foreign_key_is_told_and_nothing_is_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    Store::open(dir.path()).unwrap().put(put("web", VALUE)).await.unwrap();
    let path = dir.path().join("secrets.key");
    let key = fs::read(&path).unwrap();

    fs::remove_file(&path).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::SecretsKeyMissing { .. }), "{error}");
    assert!(!path.exists());

    write_file(&path, &[[7; KEY_LEN]]).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::SecretsKeyOther { .. }), "{error}");

    fs::write(&path, "v1 nonsense").unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::SecretsKeyDamaged { .. }), "{error}");

    fs::write(&path, &key).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("chmod 600"), "{error}");

    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(value_of(&Store::open(dir.path()).unwrap(), "web"), VALUE);
}

#[tokio::test]
async fn a_value_that_was_changed_or_moved_does_not_open() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        store.put(put("web", VALUE)).await.unwrap();
        store.put(put("api", "other")).await.unwrap();
    }
    let db = Connection::open(dir.path().join("cove.db")).unwrap();
    db.execute(
        "UPDATE sealed_secrets SET sealed = (SELECT sealed FROM sealed_secrets WHERE key = ?1) WHERE key = ?2",
        [app("web").key(), app("api").key()],
    )
    .unwrap();
    drop(db);
    let store = Store::open(dir.path()).unwrap();
    let error = store.secrets(&app("api")).unwrap_err();
    assert!(matches!(error, StoreError::SecretDamaged { .. }), "{error}");
    assert_eq!(value_of(&store, "web"), VALUE);
}

#[tokio::test]
async fn a_rotation_changes_the_key_and_no_value() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.put(put("web", VALUE)).await.unwrap();
    store.set_sealed_setting("key".into(), "k".into()).await.unwrap();
    let before = fs::read_to_string(dir.path().join("secrets.key")).unwrap();
    assert_eq!(store.rotate_secrets().await.unwrap(), 2);
    let after = fs::read_to_string(dir.path().join("secrets.key")).unwrap();
    assert_ne!(before, after);
    assert_eq!(after.matches(PREFIX).count(), 1);
    assert_eq!(value_of(&store, "web"), VALUE);
    store.put(put("api", VALUE)).await.unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!((value_of(&store, "web"), value_of(&store, "api")), (VALUE.into(), VALUE.into()));
    assert_eq!(store.sealed_setting("key").unwrap().as_deref(), Some("k"));
}

#[tokio::test]
async fn a_rotation_that_was_killed_is_ended_by_the_next_start() {
    // killed after the new key was written, and after half of the values were sealed with it
    for is_half_sealed in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        {
            let store = Store::open(dir.path()).unwrap();
            store.put(put("web", VALUE)).await.unwrap();
            store.keyring().add_key().unwrap();
            if is_half_sealed {
                store.put(put("api", VALUE)).await.unwrap();
            }
        }
        let path = dir.path().join("secrets.key");
        assert_eq!(fs::read_to_string(&path).unwrap().matches(PREFIX).count(), 2);
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().matches(PREFIX).count(), 1);
        assert_eq!(value_of(&store, "web"), VALUE);
        drop(store);
        assert_eq!(value_of(&Store::open(dir.path()).unwrap(), "web"), VALUE);
    }
}

#[tokio::test]
async fn a_damaged_value_does_not_keep_the_next_start_from_happening() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        store.put(put("web", VALUE)).await.unwrap();
        store.put(put("api", VALUE)).await.unwrap();
        store.keyring().add_key().unwrap();
    }
    let db = Connection::open(dir.path().join("cove.db")).unwrap();
    let damage = "UPDATE sealed_secrets SET sealed = zeroblob(64) WHERE key = ?1";
    assert_eq!(db.execute(damage, [app("api").key()]).unwrap(), 1);
    drop(db);
    let store = Store::open(dir.path()).unwrap();
    assert!(matches!(store.secrets(&app("api")), Err(StoreError::SecretDamaged { .. })));
    assert_eq!(value_of(&store, "web"), VALUE, "the old key is still there");
    assert!(store.rotate_secrets().await.is_err());
    assert_eq!(value_of(&store, "web"), VALUE);
}

#[tokio::test]
async fn readers_and_writers_go_on_during_rotations() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.put(put("web", VALUE)).await.unwrap();
    let rotations = tokio::spawn({
        let store = store.clone();
        async move {
            for _ in 0..5 {
                store.rotate_secrets().await.unwrap();
            }
        }
    });
    while !rotations.is_finished() {
        assert_eq!(value_of(&store, "web"), VALUE);
        store.put(put("web", VALUE)).await.unwrap();
    }
    rotations.await.unwrap();
    assert_eq!(value_of(&store, "web"), VALUE);
}
