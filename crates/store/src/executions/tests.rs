//! Executions against real files.

use std::sync::Arc;

use cove_model::{Counts, ExecutionCause, Scale, Template};
use serde_json::json;

use super::*;
use crate::{Expect, NewOperation, PutResource, SecretsChange};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn job() -> ResourceId {
    ResourceId::resource("s", "G", "Microsoft.App/jobs", "Nightly").unwrap()
}

fn execution(suffix: &str, cause: ExecutionCause) -> Execution {
    let template = Template {
        init_containers: vec![],
        containers: vec![],
        volumes: vec![],
        scale: Scale::default(),
        termination_grace_period_secs: 30,
    };
    Execution {
        job: job(),
        name: RevisionName::new(format!("nightly-{suffix}")).unwrap(),
        cause,
        environment: ResourceId::resource("s", "G", "Microsoft.App/managedEnvironments", "env").unwrap(),
        workload_profile: None,
        template: Arc::new(template),
        counts: Counts::default(),
        replica_timeout_secs: 60,
        replica_retry_limit: 0,
        priority: 0,
        status: ExecutionStatus::Processing,
        reason: None,
        message: None,
        created_at: NOW,
        started_at: None,
        ended_at: None,
        succeeded: 0,
        failed: 0,
        replicas: vec![],
        stop_requested_at: None,
    }
}

fn manual(number: u32) -> Execution {
    execution(&format!("m{number:06}"), ExecutionCause::Manual(number.to_string()))
}

async fn store_with_job(dir: &std::path::Path) -> Store {
    let store = Store::open(dir).unwrap();
    let put = PutResource {
        id: job(),
        doc: json!({}),
        spec: None,
        secrets: SecretsChange::Keep,
        provisioning: Provisioning::Succeeded,
        operation: None,
        revision: None,
        expect: Expect::Absent,
        now: NOW,
    };
    store.put(put).await.unwrap();
    store
}

fn names(executions: &[Execution]) -> Vec<&str> {
    executions.iter().map(|execution| execution.name.as_str()).collect()
}

#[tokio::test]
async fn a_cause_starts_one_execution_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_job(dir.path()).await;
    let mut changes = store.changes();
    changes.take();
    let tick = ExecutionCause::Tick(NOW);
    let first = execution("aaaaaaa", tick.clone());
    assert_eq!(store.insert_execution(first.clone()).await.unwrap(), Inserted::New);
    assert!(changes.next().await.contains(&job()));
    drop((changes, store));
    let store = Store::open(dir.path()).unwrap();
    let again = store.insert_execution(execution("bbbbbbb", tick)).await.unwrap();
    assert_eq!(again, Inserted::Known(first.name.clone()));
    let taken = store.insert_execution(execution("aaaaaaa", ExecutionCause::Manual("x".into()))).await;
    assert!(matches!(taken, Err(StoreError::ExecutionExists { .. })), "{taken:?}");
    assert_eq!(store.open_executions(&job()).unwrap(), [first]);
}

#[tokio::test]
async fn a_full_disk_is_told_and_got_over() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_job(dir.path()).await;
    let limit = |pages: i64| {
        store.write(move |tx| {
            Ok(tx.db.pragma_update_and_check(None, "max_page_count", pages, |row| row.get::<_, i64>(0))?)
        })
    };
    // as many as there are, and no more
    limit(1).await.unwrap();
    let mut stored = 0;
    let refused = loop {
        match store.insert_execution(manual(stored)).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
        assert!(stored < 1000, "the database has no limit");
    };
    assert!(refused.is_disk_full(), "{refused:?}");
    assert_eq!(store.executions(&job()).unwrap().len(), usize::try_from(stored).unwrap());
    limit(1 << 30).await.unwrap();
    assert_eq!(store.insert_execution(manual(stored)).await.unwrap(), Inserted::New);
}

#[tokio::test]
async fn a_line_has_an_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_job(dir.path()).await;
    assert_eq!(store.insert_execution(manual(0)).await.unwrap(), Inserted::New);
    let copies = i64::try_from(OPEN_EXECUTIONS_MAX).unwrap() - 1;
    let fill = move |tx: &mut Tx<'_>| {
        let sql = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?1)
             INSERT INTO executions (job_key, name, cause, status, outcome, stop_requested_at, doc)
             SELECT job_key, 'c' || i, 'c' || i, status, outcome, stop_requested_at, doc FROM executions, n";
        Ok(tx.db.execute(sql, [copies])?)
    };
    assert_eq!(store.write(fill).await.unwrap(), OPEN_EXECUTIONS_MAX - 1);
    let refused = store.insert_execution(manual(1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::TooManyExecutions { max: OPEN_EXECUTIONS_MAX, .. }), "{refused}");
    // one that is known is given, and one that ends makes room
    let known = manual(0);
    assert_eq!(store.insert_execution(manual(0)).await.unwrap(), Inserted::Known(known.name.clone()));
    let ended = Execution { status: ExecutionStatus::Succeeded, ended_at: Some(NOW), ..known };
    store.save_executions(vec![ended]).await.unwrap();
    assert_eq!(store.insert_execution(manual(1)).await.unwrap(), Inserted::New);
}

#[tokio::test]
async fn what_has_ended_stays_as_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_job(dir.path()).await;
    let mut one = manual(1);
    store.insert_execution(one.clone()).await.unwrap();
    store.insert_execution(manual(2)).await.unwrap();
    assert_eq!(store.count_open_executions(&job()).unwrap(), OpenExecutions { running: 2, pending: 2 });
    one.status = ExecutionStatus::Running;
    store.save_executions(vec![one.clone()]).await.unwrap();
    assert_eq!(store.count_open_executions(&job()).unwrap(), OpenExecutions { running: 2, pending: 1 });
    one.status = ExecutionStatus::Succeeded;
    store.save_executions(vec![one.clone()]).await.unwrap();
    let late = Execution { status: ExecutionStatus::Failed, ..one.clone() };
    store.save_executions(vec![late, manual(9)]).await.unwrap();
    assert_eq!(store.execution(&one.key()).unwrap(), Some(one));
    assert_eq!(names(&store.open_executions(&job()).unwrap()), ["nightly-m000002"]);
    assert_eq!(names(&store.executions(&job()).unwrap()), ["nightly-m000002", "nightly-m000001"]);
}

#[tokio::test]
async fn a_stop_is_not_overwritten_by_the_controller() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_job(dir.path()).await;
    for number in 1..=3 {
        store.insert_execution(manual(number)).await.unwrap();
    }
    let one = manual(1);
    assert_eq!(
        store.stop_executions(job(), Some(one.name.clone()), NOW).await.unwrap(),
        std::slice::from_ref(&one.name)
    );
    let running = Execution { status: ExecutionStatus::Running, ..one.clone() };
    store.save_executions(vec![running]).await.unwrap();
    let read = store.execution(&one.key()).unwrap().unwrap();
    assert_eq!((read.status, read.stop_requested_at), (ExecutionStatus::Running, Some(NOW)));
    assert_eq!(store.stop_requests(&job()).unwrap(), [(one.name.clone(), NOW)]);
    assert_eq!(store.stop_executions(job(), None, NOW).await.unwrap().len(), 3);
    let (all, last) = store.open_executions_since(&job(), 0).unwrap();
    assert_eq!((all.len(), store.open_executions_since(&job(), last).unwrap()), (3, (vec![], last)));
    let nobody = RevisionName::new("nightly-nobody1").unwrap();
    assert!(matches!(store.stop_executions(job(), Some(nobody), NOW).await, Err(StoreError::NotFound { .. })));
}

#[tokio::test]
async fn the_history_is_bounded_by_outcome() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_job(dir.path()).await;
    for number in 0..230 {
        let mut one = manual(number);
        store.insert_execution(one.clone()).await.unwrap();
        let ends = [ExecutionStatus::Succeeded, ExecutionStatus::Failed];
        one.status = ends[usize::try_from(number % 2).unwrap()];
        store.save_executions(vec![one]).await.unwrap();
    }
    store.insert_execution(manual(230)).await.unwrap();
    let kept = store.executions(&job()).unwrap();
    let count = |status| kept.iter().filter(|execution| execution.status == status).count();
    assert_eq!(
        [ExecutionStatus::Succeeded, ExecutionStatus::Failed, ExecutionStatus::Processing].map(count),
        [EXECUTION_HISTORY_MAX, EXECUTION_HISTORY_MAX, 1]
    );
    assert_eq!(names(&kept).last(), Some(&"nightly-m000030"));
}

#[tokio::test]
async fn a_job_that_goes_takes_its_executions_along() {
    let dir = tempfile::tempdir().unwrap();
    let store = store_with_job(dir.path()).await;
    store.insert_execution(manual(1)).await.unwrap();
    store.set_job_state(job(), json!({"last_tick": 7})).await.unwrap();
    assert_eq!(store.job_state(&job()).unwrap(), Some(json!({"last_tick": 7})));
    let operation = NewOperation { id: "op".into(), kind: "delete".into() };
    store.begin_delete(job(), operation, NOW).await.unwrap();
    assert!(matches!(store.insert_execution(manual(2)).await, Err(StoreError::NotFound { .. })));
    store.remove(job(), NOW).await.unwrap();
    assert_eq!(store.executions(&job()).unwrap(), []);
    assert_eq!(store.job_state(&job()).unwrap(), None);
    store.set_job_state(job(), json!(1)).await.unwrap();
    assert_eq!(store.job_state(&job()).unwrap(), None);
}
