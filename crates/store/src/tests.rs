//! The store against real files.

use std::collections::BTreeMap;

use cove_model::{ResourceId, Revision, RevisionName, Scale, Template};
use jiff::Timestamp;
use serde_json::json;

use crate::{
    Expect, Failure, NewOperation, NewRevision, OperationStatus, PlanRow, Provisioning, PutResource, SecretsChange,
    Store, StoreError,
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn app() -> ResourceId {
    ResourceId::resource("s", "G", "Microsoft.App/containerApps", "web").unwrap()
}

fn put(expect: Expect) -> PutResource {
    PutResource {
        id: app(),
        doc: json!({"a": 1}),
        spec: None,
        secrets: SecretsChange::Keep,
        provisioning: Provisioning::InProgress,
        operation: None,
        revision: None,
        expect,
        now: NOW,
    }
}

fn revision(suffix: &str) -> NewRevision {
    let template = Template {
        init_containers: vec![],
        containers: vec![],
        volumes: vec![],
        scale: Scale::default(),
        termination_grace_period_secs: 30,
    };
    let revision = Revision {
        name: RevisionName::of("web", suffix).unwrap(),
        app: app(),
        number: 0,
        template,
        ingress: None,
        is_active: true,
        created_at: NOW,
        activated_at: NOW,
        restart_generation: 0,
    };
    NewRevision { revision, doc: json!({}) }
}

#[tokio::test]
async fn a_write_survives_and_wakes_the_feed() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut changes = store.changes();
    let operation = NewOperation { id: "op1".into(), kind: "create".into() };
    let row = store
        .put(PutResource { operation: Some(operation), revision: Some(revision("a")), ..put(Expect::Absent) })
        .await
        .unwrap();
    assert_eq!((row.generation, row.provisioning), (1, Provisioning::InProgress));
    assert!(changes.next().await.contains(&app()));
    store.finish(app(), 1, None, NOW).await.unwrap();
    assert_eq!(store.operation("op1").unwrap().unwrap().status, OperationStatus::Succeeded);
    drop(changes);
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.resource(&app()).unwrap().unwrap().provisioning, Provisioning::Succeeded);
    assert_eq!(store.revisions(&app()).unwrap()[0].revision.number, 1);
    assert!(store.changes().next().await.contains(&app()), "after a restart everything counts as changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_one_moment_see_no_later_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.put(PutResource { revision: Some(revision("a")), ..put(Expect::Absent) }).await.unwrap();
    let writer = (store.clone(), tokio::runtime::Handle::current());
    let seen = |store: &Store| {
        let generation = store.resource(&app())?.unwrap().generation;
        Ok::<_, StoreError>((generation, store.revision_snapshots(&app())?.len()))
    };
    let (before, after, kept) = tokio::task::spawn_blocking(move || {
        let (store, runtime) = writer;
        store.at_one_moment(|at| {
            let before = seen(at)?;
            let later = PutResource { revision: Some(revision("b")), ..put(Expect::Anything) };
            runtime.block_on(store.put(later))?;
            Ok((before, seen(at)?, at.clone()))
        })
    })
    .await
    .unwrap()
    .unwrap();
    assert_eq!((before, after), ((1, 1), (1, 1)));
    assert_eq!(seen(&store).unwrap(), (2, 2));
    assert_eq!(seen(&kept).unwrap(), (2, 2), "the moment is over");
    let refused =
        store.at_one_moment(|at| at.snapshot::<Revision>(&app()).map(drop).and(Err::<(), _>(StoreError::Closed)));
    assert!(matches!(refused, Err(StoreError::Closed)));
    assert_eq!(seen(&store).unwrap(), (2, 2), "and an error leaves no moment open");
}

#[tokio::test]
async fn a_stale_writer_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let first = store.put(put(Expect::Absent)).await.unwrap();
    store.put(put(Expect::Generation(first.generation))).await.unwrap();
    let stale = store.put(put(Expect::Generation(first.generation))).await;
    assert!(matches!(stale, Err(StoreError::Conflict { .. })));
    assert!(matches!(store.put(put(Expect::Absent)).await, Err(StoreError::Conflict { .. })));
    let newest = store.resource(&app()).unwrap().unwrap();
    assert_eq!(newest.generation, 2);
    // a late controller may end only what it saw
    store.finish(app(), 1, Some(Failure { code: "X".into(), message: "y".into() }), NOW).await.unwrap();
    assert_eq!(store.resource(&app()).unwrap().unwrap().provisioning, Provisioning::InProgress);
}

#[tokio::test]
async fn a_taken_revision_name_undoes_the_whole_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.put(PutResource { revision: Some(revision("a")), ..put(Expect::Absent) }).await.unwrap();
    let again = store.put(PutResource { revision: Some(revision("a")), ..put(Expect::Anything) }).await;
    assert!(matches!(again, Err(StoreError::RevisionExists { .. })));
    assert_eq!(store.resource(&app()).unwrap().unwrap().generation, 1);
    store.put(PutResource { revision: Some(revision("b")), ..put(Expect::Anything) }).await.unwrap();
    let numbers: Vec<u64> = store.revisions(&app()).unwrap().iter().map(|row| row.revision.number).collect();
    assert_eq!(numbers, [1, 2]);
}

#[tokio::test]
async fn secrets_keep_their_value_when_sent_without() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let secrets = |pairs: &[(&str, Option<&str>)]| {
        SecretsChange::Replace(pairs.iter().map(|(n, v)| ((*n).to_owned(), v.map(ToOwned::to_owned))).collect())
    };
    let first = secrets(&[("a", Some("1")), ("b", Some("2"))]);
    store.put(PutResource { secrets: first, ..put(Expect::Absent) }).await.unwrap();
    let second = secrets(&[("a", None), ("c", Some("3"))]);
    store.put(PutResource { secrets: second, ..put(Expect::Anything) }).await.unwrap();
    let expected = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("c".to_owned(), "3".to_owned())]);
    assert_eq!(store.secrets(&app()).unwrap(), expected);
}

#[tokio::test]
async fn delete_takes_everything_along() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.put(PutResource { revision: Some(revision("a")), ..put(Expect::Absent) }).await.unwrap();
    store.record_plan(app(), PlanRow { at: NOW, generation: 1, actions: vec!["launch".into()] }).await.unwrap();
    store.begin_delete(app(), NewOperation { id: "del".into(), kind: "delete".into() }, NOW).await.unwrap();
    assert_eq!(store.resource(&app()).unwrap().unwrap().provisioning, Provisioning::Deleting);
    assert!(store.remove(app(), NOW).await.unwrap());
    assert_eq!(store.operation("del").unwrap().unwrap().status, OperationStatus::Succeeded);
    assert!(store.revisions(&app()).unwrap().is_empty());
    assert!(store.plans(&app()).unwrap().is_empty());
}

#[tokio::test]
async fn a_second_server_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = Store::open(dir.path()).unwrap();
    let second = Store::open(dir.path()).unwrap_err();
    assert!(second.to_string().contains(&std::process::id().to_string()), "{second}");
}

#[tokio::test]
async fn many_writers_share_commits_and_none_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let writers: Vec<_> = (0..500)
        .map(|n| {
            let store = store.clone();
            tokio::spawn(async move { store.set_setting(format!("n{n}"), n.to_string()).await })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap().unwrap();
    }
    assert_eq!(store.setting("n499").unwrap().as_deref(), Some("499"));
}

#[tokio::test]
async fn a_rehearsal_starts_equal_and_stays_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let secrets = SecretsChange::Replace(BTreeMap::from([("a".to_owned(), Some("1".to_owned()))]));
    store.put(PutResource { secrets, ..put(Expect::Absent) }).await.unwrap();
    let rehearsal = store.rehearsal().unwrap();
    assert_eq!(rehearsal.resource(&app()).unwrap(), store.resource(&app()).unwrap());
    assert_eq!(rehearsal.secrets(&app()).unwrap(), store.secrets(&app()).unwrap());
    rehearsal.remove(app(), NOW).await.unwrap();
    assert!(rehearsal.resource(&app()).unwrap().is_none() && store.resource(&app()).unwrap().is_some());
    let copies = dir.path().join("rehearsals");
    assert_eq!(std::fs::read_dir(&copies).unwrap().count(), 1);
    drop(rehearsal);
    assert_eq!(std::fs::read_dir(&copies).unwrap().count(), 0);
    std::fs::create_dir(copies.join("7")).unwrap();
    drop(store);
    let _store = Store::open(dir.path()).unwrap();
    assert!(!copies.exists(), "what a killed server left is deleted");
}

#[tokio::test]
async fn resources_are_found_by_page_name_and_environment() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let kind = "Microsoft.App/containerApps";
    for (group, name, environment) in [("g1", "a", "One"), ("g1", "B", "two"), ("g2", "b", "one"), ("g2", "ab", "one")]
    {
        let id = ResourceId::resource("s", group, kind, name).unwrap();
        let environment = ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", environment).unwrap();
        let spec = Some(json!({ "environment": environment }));
        store.put(PutResource { id, spec, ..put(Expect::Absent) }).await.unwrap();
    }
    let names = |rows: Vec<crate::ResourceRow>| rows.iter().map(|row| row.id.name().to_owned()).collect::<Vec<_>>();
    let group = ResourceId::group("s", "g1").unwrap();
    assert_eq!(names(store.resources(kind, None).unwrap()), ["a", "B", "ab", "b"]);
    assert_eq!(names(store.resources(kind, Some(&group)).unwrap()), ["a", "B"]);
    let first = store.resources_page(kind, None, None, 3).unwrap();
    let after = first.last().unwrap().id.key().to_owned();
    assert_eq!(names(first), ["a", "B", "ab"]);
    assert_eq!(names(store.resources_page(kind, None, Some(&after), 3).unwrap()), ["b"]);
    assert_eq!(names(store.resources_page(kind, Some(&group), Some(&after), 3).unwrap()), [""; 0]);
    let same = store.ids_named(kind, "B").unwrap();
    assert_eq!(same.iter().map(ResourceId::group_name).collect::<Vec<_>>(), ["g1", "g2"]);
    let one = ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "ONE").unwrap();
    assert_eq!(names(store.resources_in(kind, &one).unwrap()), ["a", "ab", "b"]);
}

#[tokio::test]
async fn a_store_closes_while_a_write_is_awaited() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let mut write = Box::pin(store.put(put(Expect::Anything)));
    let first = std::future::poll_fn(|context| std::task::Poll::Ready(write.as_mut().poll(context))).await;
    let (ended, closed) = std::sync::mpsc::channel();
    let closing = store.clone();
    std::thread::spawn(move || {
        closing.close();
        let _test_left = ended.send(());
    });
    closed.recv_timeout(std::time::Duration::from_secs(20)).expect("it closes though nobody takes the answer");
    if first.is_pending() {
        write.await.expect("what was handed over before is committed");
    }
    assert!(matches!(store.put(put(Expect::Anything)).await, Err(StoreError::Closed)));
}
